"""Super-resolution, the paper's third task: whether each patch looks at its own place, and whether texture does so more.

The model restores a picture from one of half its resolution through cross-attention on the denoiser's own grid, as PASD
does, so that the truth of a row of the map (SRAM) is known: the pixel of the reference at the same place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from i2am_debug import CapturePlan, trace
from i2am_debug.demo.pixel_vae import LATENT_CHANNELS
from i2am_debug.demo.super_resolution.model import GRID, denoising_loss
from i2am_debug.demo.super_resolution.pairs import SIZE, LowAndHigh, make_batch
from i2am_debug.demo.super_resolution.pipeline import TinySuperResolutionPipeline, load_super_resolution_pipeline

from .intervals import resampled
from .section import Section, Table, with_interval
from .sizes import Sizes

NOISE_TIMES = (999, 800, 600, 400, 200, 20)
"""Of 1000; the first is pure noise."""
ALL = "all layers"
_PATCHES = GRID**2
_SAMPLER_STEPS = 20
_WEAK = 0.2  # rank correlation
_HELD_OUT = 10_000  # seeds of pairs that neither the model nor the demo's evaluations have seen

Interval = tuple[float, float, float]


def measure(sizes: Sizes, _runs: Path) -> Section:
    batch = make_batch(sizes.pairs, torch.Generator().manual_seed(_HELD_OUT))
    pipeline = load_super_resolution_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    seen = {time: rows_at(pipeline, batch, time) for time in NOISE_TIMES}
    layers = list(seen[NOISE_TIMES[0]])
    over_times = {layer: np.mean([seen[time][layer] for time in NOISE_TIMES], 0) for layer in layers}
    rows_of = {"all": over_times} | {str(time): seen[time] for time in NOISE_TIMES}
    detail = batch.detail_BGG(GRID).flatten(1).numpy()
    found = {
        when: {layer: _figures(rows, detail, sizes) for layer, rows in by_layer.items()}
        for when, by_layer in rows_of.items()
    }
    swapped = [rows_at(pipeline, batch, time, batch.reference_B3LL.roll(1, 0)) for time in NOISE_TIMES]
    wrong = {layer: _mean(hits(np.mean([rows[layer] for rows in swapped], 0)), sizes) for layer in layers}
    quality = {name: _mean(psnr, sizes) for name, psnr in _restored(pipeline, batch).items()}
    return Section(
        title="Super-resolution",
        asked=f"{sizes.pairs} held-out pictures of 32×32, restored from 16×16 by a model that sees the latter in "
        f"cross-attention alone, teacher forced at the noise times {', '.join(map(str, NOISE_TIMES))} of 1000. Hit rate: share "
        f"of the {_PATCHES} patches whose row (SRAM, all heads) has its maximum at its own place; chance {1 / _PATCHES:.3f}. "
        f"Concentration of a row: {np.log2(_PATCHES):.0f} bit less its entropy; its rank correlation, within a picture, with "
        "the standard deviation of the true picture in the 8×8 pixels around the patch, about a period of its textures "
        "(texture against flat areas), and as a control with that of another picture; and with what both have beyond their "
        "means over pictures at that place, since the middle has more detail than the edge. G2R is the mean of the rows: how "
        "much each patch of the reference is looked at. Intervals are over pictures.",
        said=_in_words(found, wrong, quality, layers),
        tables=[
            _by_layer(found["all"], wrong),
            _by_time(found, layers),
            Table(
                title=f"Restored with {_SAMPLER_STEPS} sampler steps:",
                columns=("from", "PSNR, dB"),
                rows=[[name, with_interval(*value, digits=1)] for name, value in quality.items()],
            ),
        ],
        command="python -m benchmarks.evidence super_resolution",
        values={"by_time": found, "hit_with_wrong_reference": wrong, "psnr": quality},
    )


@torch.no_grad()
def rows_at(
    pipeline: TinySuperResolutionPipeline,
    batch: LowAndHigh,
    noise_time: int,
    reference_B3LL: torch.Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Layer → (B, 256, 256): the G2R rows of each patch, mean over heads; and their mean over layers under `ALL`.

    `reference_B3LL` are other references than the pairs' own.
    """
    count = len(batch)
    noise = torch.randn(count, LATENT_CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(noise_time))
    with trace(pipeline.unet, plan=CapturePlan.full()) as seen:
        denoising_loss(
            pipeline.unet,
            pipeline.reference_encoder(batch.reference_B3LL if reference_B3LL is None else reference_B3LL),
            pipeline.scheduler,
            batch.target_B3SS,
            torch.full((count,), noise_time),
            noise,
        )
    maps = [seen.maps(image).rows for image in range(count)]
    rows = {layer: np.stack([one.by_layer[layer][1] for one in maps]) for layer in maps[0].by_layer}
    return {**rows, ALL: np.stack([one.unified for one in maps])}


def hits(rows_BGR: np.ndarray) -> np.ndarray:
    """(B,) share of the rows with their maximum at their own place."""
    return (rows_BGR.argmax(2) == np.arange(rows_BGR.shape[1])).mean(1)


def near_hits(rows_BGR: np.ndarray) -> np.ndarray:
    """(B,) share of the rows with their maximum at most one place away from their own, in each direction."""
    found, own = (np.stack(np.divmod(places, GRID)) for places in (rows_BGR.argmax(2), np.arange(_PATCHES)))
    return (np.abs(found - own[:, None]).max(0) <= 1).mean(1)


def concentration(rows_BGR: np.ndarray) -> np.ndarray:
    """(B, G): bits by which a row is narrower than an even one."""
    p = rows_BGR / rows_BGR.sum(2, keepdims=True)
    return np.log2(p.shape[2]) + (p * np.log2(np.maximum(p, 1e-30))).sum(2)


def rank_correlations(values_BG: np.ndarray, detail_BG: np.ndarray) -> np.ndarray:
    """(B,) Spearman's, within each picture."""
    return np.array([spearmanr(a, b).statistic for a, b in zip(values_BG, detail_BG, strict=True)])


def _beyond_place(values_BG: np.ndarray) -> np.ndarray:
    """By how much each value differs from the mean over pictures at its place: the middle has more detail than the edge."""
    return values_BG - values_BG.mean(0)


def _figures(rows: np.ndarray, detail: np.ndarray, sizes: Sizes) -> dict[str, Interval]:
    bits = concentration(rows)
    own = np.einsum("bgg->bg", rows) / rows.sum(2)
    columns = {
        "hit": hits(rows),
        "near": near_hits(rows),
        "own": own.mean(1),
        "bits": bits.mean(1),
        "rho": rank_correlations(bits, detail),
        "rho_control": rank_correlations(bits, np.roll(detail, 1, 0)),
        "rho_placed": rank_correlations(_beyond_place(bits), _beyond_place(detail)),
        "rho_g2r": rank_correlations(_beyond_place(rows.mean(1)), _beyond_place(detail)),
    }
    return {name: _mean(values, sizes) for name, values in columns.items()}


def _mean(values: np.ndarray, sizes: Sizes) -> Interval:
    return resampled(lambda chosen: float(values[chosen].mean()), len(values), sizes.resamples)


@torch.no_grad()
def _restored(pipeline: TinySuperResolutionPipeline, batch: LowAndHigh) -> dict[str, np.ndarray]:
    """(B,) dB of what each way makes of the pictures."""

    def psnr(made_B3SS: torch.Tensor) -> np.ndarray:
        return (10 * torch.log10(4 / ((made_B3SS - batch.target_B3SS) ** 2).mean((1, 2, 3)))).numpy()

    def model(reference_B3LL: torch.Tensor) -> torch.Tensor:
        pictures = [
            pipeline.image_processor.numpy_to_pil(one)[0]
            for one in ((reference_B3LL + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        ]
        draws = torch.Generator().manual_seed(0)
        made = pipeline(image=pictures, num_inference_steps=_SAMPLER_STEPS, generator=draws, output_type="pt").images
        return made * 2 - 1

    def enlarged(mode: str) -> torch.Tensor:
        return F.interpolate(batch.reference_B3LL, SIZE, mode=mode).clamp(-1, 1)

    return {
        "the right reference": psnr(model(batch.reference_B3LL)),
        "another picture's": psnr(model(batch.reference_B3LL.roll(1, 0))),
        "bicubic enlargement, no model": psnr(enlarged("bicubic")),
        "each pixel as four, no model": psnr(enlarged("nearest")),
    }


def _by_layer(found: Mapping[str, Mapping[str, Interval]], wrong: Mapping[str, Interval]) -> Table:
    columns = {
        "hit": "hit rate",
        "near": "within one patch",
        "own": "weight on its own place",
        "bits": "concentration, bit",
        "rho": "its correlation with detail",
        "rho_control": "with another picture's",
        "rho_placed": "beyond what the place says",
        "rho_g2r": "G2R's, beyond the place",
    }
    return Table(
        title="All noise times together:",
        columns=("layer", *columns.values(), "hit rate with another picture's reference"),
        rows=[
            [
                f"`{name}`" if name != ALL else name,
                *(with_interval(*one[c]) for c in columns),
                with_interval(*wrong[name]),
            ]
            for name, one in found.items()
        ],
    )


def _by_time(found: Mapping[str, Mapping[str, Mapping[str, Interval]]], layers: list[str]) -> Table:
    layer = sharpest(found, layers)
    return Table(
        title=f"By noise time, `{layer}` and all layers:",
        columns=(
            "noise time",
            "hit rate",
            "correlation with detail, beyond the place",
            "hit rate, all layers",
            "correlation, all layers",
        ),
        rows=[
            [when, *(with_interval(*found[when][name][c]) for name in (layer, ALL) for c in ("hit", "rho_placed"))]
            for when in map(str, NOISE_TIMES)
        ],
    )


def sharpest(found: Mapping[str, Mapping[str, Mapping[str, Interval]]], layers: list[str]) -> str:
    """The layer whose rows hit their own place most often, over all noise times."""
    return max((layer for layer in layers if layer != ALL), key=lambda layer: found["all"][layer]["hit"][0])


def _compared(correlation: float, low: float, high: float) -> str:
    if low <= 0 <= high:
        return "neither more nor less"
    return ("a little " if abs(correlation) < _WEAK else "") + ("more" if low > 0 else "less")


def _in_words(
    found: Mapping[str, Mapping[str, Mapping[str, Interval]]],
    wrong: Mapping[str, Interval],
    quality: Mapping[str, Interval],
    layers: list[str],
) -> str:
    layer = sharpest(found, layers)
    best, every = found["all"][layer], found["all"][ALL]
    first, last = (found[str(time)][layer] for time in (NOISE_TIMES[0], NOISE_TIMES[-1]))
    model, other, bicubic = (
        quality[name][0] for name in ("the right reference", "another picture's", "bicubic enlargement, no model")
    )
    against = "less" if model > bicubic else "more"
    return (
        f"In `{layer}` {best['hit'][0]:.0%} of the patches look at their own place, in the mean over layers "
        f"{every['hit'][0]:.0%}; in that layer {first['hit'][0]:.0%} in pure noise and {last['hit'][0]:.0%} near the end; with "
        f"another picture's reference {wrong[layer][0]:.0%}: that a map is right says nothing of what is found there. "
        f"That layer looks at texture {_compared(*best['rho_placed'])} narrowly than at flat areas (rank correlation "
        f"{best['rho_placed'][0]:.2f}; {best['own'][0]:.0%} of each row lies on its own place), the mean over layers "
        f"{_compared(*every['rho_placed'])} narrowly ({every['rho_placed'][0]:.2f}; {every['rho'][0]:.2f} where the place is "
        f"not taken out, of which another picture's detail gives {every['rho_control'][0]:.2f}). Of the attention texture gets "
        f"{_compared(*best['rho_g2r'])} there (G2R {best['rho_g2r'][0]:.2f}), {_compared(*every['rho_g2r'])} in the mean "
        f"({every['rho_g2r'][0]:.2f}). "
        f"The pictures reach {model:.1f} dB, {other:.1f} from another reference; bicubic enlargement gives {bicubic:.1f}, "
        f"{abs(model - bicubic):.1f} {against}."
    )
