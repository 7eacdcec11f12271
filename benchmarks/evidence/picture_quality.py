"""How near the pictures that the tiny inpainting model samples come to the truth, in the hole and as a whole."""

from __future__ import annotations

import numpy as np
import torch

from i2am_debug.demo.inpainting.pipeline import TinyExamplePipeline
from i2am_debug.pairs.collection import ValidationPairs

QUALITIES = {
    "psnr_hole": "PSNR in the hole, dB",
    "ssim_hole": "SSIM in the hole",
    "psnr": "PSNR of the picture, dB",
    "ssim": "SSIM of the picture",
}
_SAMPLER_STEPS = 5  # as the demo's own measure of quality


def sampled_quality(pipeline: TinyExamplePipeline, pairs: ValidationPairs) -> dict[str, float]:
    """Name of `QUALITIES` → mean over pairs.

    SSIM (Wang et al. 2004) is torchmetrics', with a Gaussian window of 11 pixels; in the hole it is the mean of its map there,
    whose windows reach over the hole's edge.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    made = pipeline(
        image=[p.target for p in pairs],
        mask_image=[p.mask_image for p in pairs],
        example_image=[p.reference for p in pairs],
        num_inference_steps=_SAMPLER_STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    true = torch.from_numpy(np.stack([np.asarray(p.target) for p in pairs])).permute(0, 3, 1, 2) / 255
    hole = torch.from_numpy(np.stack([p.mask for p in pairs]))[:, None].float()
    ssim, ssim_map = structural_similarity_index_measure(
        made, true, data_range=1.0, reduction="none", return_full_image=True
    )
    error = ((made - true) ** 2).mean(1, keepdim=True)

    def in_hole(of_pixels: torch.Tensor) -> torch.Tensor:
        return (of_pixels * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))

    found = {
        "psnr_hole": -10 * in_hole(error).log10(),
        "ssim_hole": in_hole(ssim_map.mean(1, keepdim=True)),
        "psnr": -10 * error.mean((1, 2, 3)).log10(),
        "ssim": ssim,
    }
    return {name: float(values.mean()) for name, values in found.items()}
