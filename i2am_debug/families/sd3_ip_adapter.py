"""SD3 with an IP-Adapter: a second product in each attention module, over the image's own keys and the reference's.

The first product is the model's own over [image · text]. The adapter's has the image tokens as queries and the keys
[image · reference]; its output is added to the first one's, times the processor's `scale`. Image and reference keys share
one softmax, so the reference mass is the share of the adapter's attention that falls on the reference, before that scale. No
branch share is recorded: the branch's output holds what it draws from the image itself too, so its norm would not say how
much comes from the reference. The reference's tokens are a resampler's and have no grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from .family import About, Layout, Product, Reference
from .latents import every_row, half_of_guidance, patch_grid

_PROCESSOR, _SUFFIX = "SD3IPAdapterJointAttnProcessor2_0", ".attn"
_ORDER = ("uncond", "cond")
_ROW = "a row of tokens without a grid"


@dataclass(frozen=True, kw_only=True)
class SD3IPAdapter:
    """`SD3Transformer2DModel` whose attention processors are `SD3IPAdapterJointAttnProcessor2_0`."""

    guidance: bool = True
    """False: every row of a batch is a picture of its own. By default a batch that holds each latent twice, under other
    conditions, is taken for classifier-free guidance: two references of one picture under one noise look just like it."""
    name: ClassVar[str] = "sd3_ip_adapter"
    about: ClassVar[About] = About(
        models="Stable Diffusion 3 and 3.5 with an IP-Adapter",
        g2r=_ROW,
        specific=_ROW,
        imacs="IMACS_g; IMACS_r undefined: the reference tokens have no grid",
        reference_mass="of the adapter's own attention, before its scale",
    )
    projections: ClassVar[bool] = False
    reads_encoder: ClassVar[bool] = True

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if self.layers(denoiser):
            return None
        return f"no attention module has a {_PROCESSOR}; for SD3, load an adapter with pipeline.load_ip_adapter(…)."

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        found = {n.replace("_orig_mod.", ""): m for n, m in denoiser.named_modules() if _has_adapter(m)}
        return {n.removesuffix(_SUFFIX): m for n, m in found.items()}

    def layout(self, product: Product) -> Layout | None:
        # A further forward at the same noise time is skip-layer guidance: a correction of the one before, without layers.
        if product.call != 1 or product.forward > 0:
            return None
        arguments, image = product.arguments, product.query_tokens
        sample, adapter = arguments["hidden_states"], arguments["joint_attention_kwargs"]
        picture = adapter.get("ip_adapter_image_embeds", adapter.get("ip_hidden_states"))
        # The halves differ in the prompt or in the picture; either may be the same in both, as an empty prompt is.
        halves = [
            product.once(half_of_guidance, sample, s, _ORDER) for s in (arguments["encoder_hidden_states"], picture)
        ]
        return Layout(
            generated=slice(0, image),
            generated_grid=patch_grid(sample.shape[-2:], image)[0],
            references={0: Reference(tokens=slice(image, product.key_tokens), grid=None)},
            conditional=min(halves, key=lambda rows: rows.stop - rows.start) if self.guidance else every_row(sample),
            joint=True,
        )


def _has_adapter(module: nn.Module) -> bool:
    return any(c.__name__ == _PROCESSOR for c in type(getattr(module, "processor", None)).__mro__)
