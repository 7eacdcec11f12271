"""A model that i2am-debug does not know: say in one class where its reference sits.

python examples/own_model.py OUT_FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from i2am_debug import trace
from i2am_debug.families.family import About, Layout, Product, Reference
from i2am_debug.families.registry import register_family
from i2am_debug.report.render import heat


class LookAtReference(nn.Module):
    """Generated tokens read reference tokens; any module that calls torch's attention can be looked at."""

    def forward(self, generated: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        q, k = generated[:, None], reference[:, None]  # one head
        return F.scaled_dot_product_attention(q, k, k)[:, 0]


class MyDenoiser(nn.Module):
    """Stands for your own: latents (B, C, h, w) and reference features (B, C, rh, rw)."""

    def __init__(self) -> None:
        super().__init__()
        self.look = LookAtReference()

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        seen = self.look(latents.flatten(2).transpose(1, 2), features.flatten(2).transpose(1, 2))
        return seen.transpose(1, 2).reshape(latents.shape)


@dataclass(frozen=True, kw_only=True)
class MyFamily:
    """Where the reference sits in `MyDenoiser`."""

    name: ClassVar[str] = "my_family"
    about: ClassVar[About] = About(models="MyDenoiser")
    projections: ClassVar[bool] = False  # True: may be read off to_q and to_k where torch's attention is not called

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        return None if isinstance(denoiser, MyDenoiser) else "the denoiser is no MyDenoiser."

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return {n: m for n, m in denoiser.named_modules() if isinstance(m, LookAtReference)}

    def layout(self, product: Product) -> Layout | None:
        latents, features = product.arguments["latents"], product.arguments["features"]
        return Layout(
            generated=slice(0, product.query_tokens),
            generated_grid=tuple(latents.shape[-2:]),
            references={0: Reference(tokens=slice(0, product.key_tokens), grid=tuple(features.shape[-2:]))},
            conditional=slice(0, len(latents)),
        )


def main(folder: Path) -> None:
    register_family(MyFamily())  # from now on found from the model; or pass family=MyFamily()
    torch.manual_seed(0)
    latents, features = 3 * torch.randn(1, 8, 6, 10), torch.randn(1, 8, 4, 5)
    denoiser = MyDenoiser()
    with trace(denoiser) as t, torch.no_grad():
        for time in (900, 500, 100):
            denoiser(latents, torch.tensor(time), features)
    maps = t.maps()
    print("R2G", maps.r2g.unified.shape, "G2R", maps.g2r.unified.shape, maps.layer_information)
    folder.mkdir(parents=True, exist_ok=True)
    heat(Image.new("RGB", (320, 256), "grey"), maps.g2r.unified, size=(320, 256)).save(folder / "g2r.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/family"))
