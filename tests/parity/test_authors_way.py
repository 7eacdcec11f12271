"""What the authors compute on a stack of layers like theirs, restated from SPEC in float64, against `CapturePlan.paper()`.

Several resolutions, 8 heads, 50 sampler steps in 5 groups, the conditional half of a guidance batch, no middle block, layers
averaged without normalisation. Their two directions come from different layers of their model (docs/reading-the-maps.md), here
as there: R2G of the one set, G2R of the other.

Shapes: S sampler steps, L layers, N heads, G R tokens, h w of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel

from i2am_debug import AttributionMaps, CapturePlan, imacs, trace
from i2am_debug.families.unet_cross_attention import UNetCrossAttention

HEADS, STEPS, GROUPS, SIDE, REFERENCE = 8, 50, 5, 16, (4, 4)
FINEST = (SIDE, SIDE)


@dataclass(frozen=True)
class Run:
    maps: AttributionMaps
    products: dict[str, np.ndarray]
    """Layer → logits (S, N, G, R), float64, of the conditional sample."""

    def samples(self, softmax_over: int) -> dict[str, np.ndarray]:
        """Layer → (S, N, tokens): softmax over G (axis 2) and mean over R, or over R (axis 3) and mean over G."""
        return {layer: _softmax(logits, softmax_over).mean(5 - softmax_over) for layer, logits in self.products.items()}


@pytest.fixture(scope="module")
def run() -> Run:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=HEADS,
        norm_num_groups=8,
    ).eval()
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k")):
            module.weight.data *= 6  # maps of a random model are flat, and equal whatever is done to them
    scheduler, seen, products, handles = DDIMScheduler(), {}, {}, []

    def keeps(layer: str, which: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            seen[which] = output[1].double().unflatten(-1, (HEADS, -1)).transpose(0, 1)
            if which == "k":
                logits = seen["q"] @ seen["k"].transpose(1, 2) * seen["q"].shape[-1] ** -0.5
                products.setdefault(layer, []).append(logits.numpy())

        return hook

    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k")) and not name.startswith("mid_block"):
            layer = name[: name.index(".transformer_blocks")]
            handles.append(module.register_forward_hook(keeps(layer, name[-1])))
    picture = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(1))
    states, latents = torch.cat([torch.zeros_like(picture), picture]), torch.randn(1, 4, SIDE, SIDE)
    with (
        torch.no_grad(),
        trace(
            SimpleNamespace(unet=unet, scheduler=scheduler),
            plan=CapturePlan.paper(),
            family=UNetCrossAttention(reference_grid=REFERENCE),
        ) as t,
    ):
        scheduler.set_timesteps(STEPS)
        for time in scheduler.timesteps:
            without, with_picture = unet(latents.repeat(2, 1, 1, 1), time, states).sample.chunk(2)
            latents = scheduler.step(without + 2 * (with_picture - without), time, latents).prev_sample
    for handle in handles:
        handle.remove()
    return Run(t.maps(), {layer: np.stack(each) for layer, each in products.items()})


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(…, tokens of a square grid) → (…, h, w): bicubic, clamped at 0, as SPEC has it."""
    side = round(maps.shape[-1] ** 0.5)
    flat = torch.from_numpy(maps.reshape(-1, 1, side, side))
    return F.interpolate(flat, size=size, mode="bicubic", align_corners=False).clamp_min(0).numpy().reshape(
        *maps.shape[:-1], *size
    )  # fmt: skip


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """To 1e-5 of the largest value, both brought to sum 1; of maps that are not flat."""
    theirs = theirs / theirs.sum((-2, -1), keepdims=True)
    assert ours.shape == theirs.shape and theirs.max() > 1.05 * theirs.mean()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * theirs.max(), rtol=0)


SIDES = pytest.mark.parametrize(("direction", "softmax_over", "grid"), [("r2g", 2, FINEST), ("g2r", 3, REFERENCE)])


def test_the_stack_is_as_theirs(run: Run) -> None:
    assert run.maps.steps == tuple(range(STEPS)) and run.maps.total_steps == STEPS
    assert set(run.maps.layers) == set(run.products) and len(run.products) == 9
    assert {logits.shape for logits in run.products.values()} == {(STEPS, HEADS, n, 16) for n in (256, 64, 16)}
    assert not any(layer.startswith("mid_block") for layer in run.maps.layers)


@SIDES
def test_unified_and_time_and_head_levels(run: Run, direction: str, softmax_over: int, grid: tuple[int, int]) -> None:
    """ULAM, TLAM of 5 groups of 10, HLAM: each layer's and head's mean over its steps, brought to the finest grid; then plain
    means, coarse layers as they are."""
    ours = getattr(run.maps, direction)
    samples = run.samples(softmax_over).values()  # each (S, N, tokens)
    of_all_steps = np.stack([_resized(s.mean(0), grid) for s in samples])  # (L, N, h, w)
    assert_close(ours.unified, of_all_steps.mean((0, 1)))
    assert_close(ours.by_head, of_all_steps.mean(0))
    in_groups = [s.reshape(GROUPS, STEPS // GROUPS, HEADS, -1).mean(1) for s in samples]
    assert_close(ours.by_time, np.stack([_resized(g, grid) for g in in_groups]).mean((0, 2)))


@SIDES
def test_the_layer_level(run: Run, direction: str, softmax_over: int, grid: tuple[int, int]) -> None:
    for layer, samples in run.samples(softmax_over).items():
        found = getattr(run.maps, direction).by_layer[layer]
        assert_close(found, samples.mean((0, 1)).reshape(found.shape))


def test_the_specific_reference_level(run: Run) -> None:
    """SRAM: of each layer, the rows of its own patches; of all, the mean over layers on the finest grid."""
    on_finest = []
    for layer, logits in run.products.items():
        rows = _softmax(logits, 3).mean((0, 1))  # (G, R)
        side = round(len(rows) ** 0.5)
        for row, column in ((0, 0), (side // 2, side - 1)):
            assert_close(run.maps.specific(row, column, layer=layer), rows[row * side + column].reshape(REFERENCE))
        columns = torch.from_numpy(rows.T.reshape(1, -1, side, side))
        resized = F.interpolate(columns, size=FINEST, mode="bilinear", align_corners=False)[0]
        on_finest.append(resized.flatten(1).T.numpy())
    expected = np.mean(on_finest, 0)
    for row, column in ((0, 0), (7, 15), (15, 3)):
        assert_close(run.maps.specific(row, column), expected[row * SIDE + column].reshape(REFERENCE))


@SIDES
def test_the_score(run: Run, direction: str, softmax_over: int, grid: tuple[int, int]) -> None:
    """IMACS as their code has it: R2G inverted; G2R multiplied by the mask first."""
    mask = np.zeros((64, 64))
    mask[12:40, 20:52] = 1
    samples = np.mean([_resized(s.mean(0), grid) for s in run.samples(softmax_over).values()], (0, 1))
    ours = imacs(getattr(run.maps, direction).unified, mask, preset="authors", direction=direction)
    assert ours == pytest.approx(_authors_imacs(samples, mask, direction), abs=1e-5)


def _authors_imacs(attention: np.ndarray, mask: np.ndarray, direction: str) -> float:
    def to(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(x))[None, None]
        return F.interpolate(tensor, size=size, mode="bicubic", align_corners=False)[0, 0].numpy()

    def from_0_to_1(x: np.ndarray) -> np.ndarray:
        return (x - x.min()) / (x.max() - x.min() + 1e-8)

    attention = attention / attention.sum()
    if direction == "g2r":
        attention = attention * to(mask, attention.shape)
    a = from_0_to_1(to(from_0_to_1(attention), mask.shape))
    if direction == "r2g":
        a = 1 - a
    a = np.where(a <= 0.4, 0, a)
    inside, outside = (a * mask).sum() / mask.sum(), (a * (1 - mask)).sum() / (1 - mask).sum()
    return float(inside - 3 * outside)


def test_coarse_layers_count_otherwise_by_default(run: Run) -> None:
    """The check can fail: with layers normalised first, as the default has it, the same samples give another map."""
    samples = run.samples(2)
    equal = np.mean([_resized((s / s.mean(-1, keepdims=True)).mean(0), FINEST) for s in samples.values()], (0, 1))
    with pytest.raises(AssertionError):
        assert_close(run.maps.r2g.unified, equal)
