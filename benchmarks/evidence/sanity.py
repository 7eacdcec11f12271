"""Sanity: maps that tell of the model must go when its weights go, and must move with the reference.

After Adebayo et al., "Sanity checks for saliency maps" (2018): weights are drawn anew block by block from the output on, as the
model's recipe starts them, and the maps compared with those of the trained model.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch

from i2am_debug.demo.demo_model import demo_model
from i2am_debug.figures.distances import js_distance

from .deletion import rank_correlation
from .forced import forced
from .intervals import resampled
from .looked_at import held_out
from .section import Section, Table, with_interval
from .sizes import Sizes
from .token_maps import Looks, look_at

MODELS = {"inpainting": "inpainting", "edit": "editing"}
STAGES: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "inpainting": {
        "up_blocks.1 and output": (("unet", "up_blocks.1."), ("unet", "conv_norm_out"), ("unet", "conv_out")),
        "up_blocks.0": (("unet", "up_blocks.0."),),
        "mid_block": (("unet", "mid_block."),),
        "down_blocks.1": (("unet", "down_blocks.1."),),
        "all of the UNet": (("unet", ""),),
        "and the reference encoder": (("reference_encoder", ""),),
    },
    "edit": {
        "single_transformer_blocks.2 and output": (
            ("transformer", "single_transformer_blocks.2."),
            ("transformer", "norm_out"),
            ("transformer", "proj_out"),
        ),
        "single_transformer_blocks.1": (("transformer", "single_transformer_blocks.1."),),
        "single_transformer_blocks.0": (("transformer", "single_transformer_blocks.0."),),
        "transformer_blocks.0": (("transformer", "transformer_blocks.0."),),
        "all of it": (("transformer", ""), ("instruction_encoder", "")),
    },
}
"""Model → in this order, one after the other → (module, beginning of the names of what is drawn anew)."""
_LINES = {
    "(other noise)": "the trained model with other noise",
    "(another pair)": "another pair's map, of the trained model",
    "(another reference)": "the trained model with another reference",
}
_ROWS = "rows, copying layer"
_ALIKE, _SAME = 0.2, 0.9
"""Rank correlations above which something is left of the map before, and nearly all."""
Found = dict[str, dict[str, dict[str, tuple[float, float, float]]]]
"""What was changed → map → "js" and "rho"."""


def measure(sizes: Sizes, _folder: Path) -> Section:
    values = {model: _of_model(model, sizes) for model in MODELS}
    tables = [
        Table(
            title=f"{what} between the maps before and after; the {title} model:",
            columns=("what changed", *names),
            rows=[
                [
                    _LINES.get(change, change),
                    *(with_interval(*maps[name][key]) if name in maps else "" for name in names),
                ]
                for change, maps in values[model].items()
            ],
        )
        for model, title in MODELS.items()
        for names in [list(values[model]["(other noise)"])]
        for key, what in (("js", "JS distance (0 to 1)"), ("rho", "Rank correlation"))
    ]
    return Section(
        title="Sanity",
        asked="Held-out pairs, teacher forced. Weights are drawn anew block by block from the output on, each stage beside "
        f"those before it ({len(sizes.seeds)} draws; queries and keys of the inpainting model start as large as in its "
        "recipe); the maps are compared token by token with the trained model's. For scale: other noise, which should change "
        "little; the map of another pair, which has nothing to do with this one; and another pair's reference in place of "
        "the own, which must move a map that tells of the reference.",
        said=" ".join(_in_words(title, values[model]) for model, title in MODELS.items()),
        tables=tables,
        command="python -m benchmarks.evidence sanity",
        values=values,
    )


def _of_model(model: str, sizes: Sizes) -> Found:
    pairs, pipeline = held_out(model, sizes.pairs, seed=0), demo_model(model).load(device="cpu")
    trained = forced(model, pairs, pipeline)
    looks = look_at(trained, sizes.noise_times)
    layer, regions = looks.copying_layer, trained.region_BG.numpy()
    before, with_other_noise = _maps(looks, layer, regions), forced(model, pairs, pipeline, noise_seed=1)
    seen = {
        "(other noise)": [_maps(look_at(with_other_noise, sizes.noise_times), layer, regions)],
        "(another reference)": [_maps(look_at(trained, sizes.noise_times, other=True), layer, regions)],
        "(another pair)": [
            {name: [*each[1:], each[0]] for name, each in before.items() if name != _ROWS}
        ],  # of other tokens
    }
    seen |= {stage: [] for stage in STAGES[model]}
    for seed in sizes.seeds:
        pipeline = demo_model(model).load(device="cpu")
        fresh = _fresh(model, seed)
        for stage, parts in STAGES[model].items():
            for module, beginning in parts:
                _redraw(getattr(pipeline, module), fresh[module], beginning)
            seen[stage].append(_maps(look_at(forced(model, pairs, pipeline), sizes.noise_times), layer, regions))
    return {change: _compared(before, each, sizes) for change, each in seen.items()}


def _fresh(model: str, seed: int) -> dict[str, torch.nn.Module]:
    recipe = importlib.import_module(f"i2am_debug.demo.{model}.pretraining").RECIPE
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return recipe.new_modules()


@torch.no_grad()
def _redraw(module: torch.nn.Module, fresh: torch.nn.Module, beginning: str) -> None:
    new = dict(fresh.named_parameters())
    drawn = [(own, new[name]) for name, own in module.named_parameters() if name.startswith(beginning)]
    assert drawn, beginning
    for own, other in drawn:
        own.copy_(other)


def _maps(looks: Looks, layer: str, regions_BG: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Name → of each pair one value a token. `layer`: the trained model's copying layer."""
    found: dict[str, list[np.ndarray]] = {}
    for index, region in enumerate(regions_BG):
        each = looks.of_pair(index)
        rows = np.mean([one.rows.by_layer[layer][1] for one in each], 0)
        of_pair = {
            "G2R, the paper's": [one.g2r.unified for one in each],
            "G2R, region": [one.g2r_region.unified for one in each],
            "G2R, region, copying layer": [one.g2r_region.by_layer[layer] for one in each],
            _ROWS: [rows[region >= 0.5]],
            "R2G, the paper's": [one.r2g.unified for one in each],
            "R2G, centred": [one.r2g_centred.unified for one in each],
            "R2G, object's mass": [one.r2g_object_mass.unified for one in each],
        }
        for name, maps in of_pair.items():
            found.setdefault(name, []).append(np.mean(maps, 0))
    return found


def _compared(
    before: dict[str, list[np.ndarray]], after: list[dict[str, list[np.ndarray]]], sizes: Sizes
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Map → means over pairs and draws, and their intervals over pairs."""
    found = {}
    for name in after[0]:
        own, figures = before[name], {}
        for key, compare in (("js", js_distance), ("rho", lambda a, b: rank_correlation(a.ravel(), b.ravel()))):
            of_pairs = np.array([np.mean([compare(a, each[name][i]) for each in after]) for i, a in enumerate(own)])
            figures[key] = resampled(lambda chosen, v=of_pairs: float(v[chosen].mean()), len(own), sizes.resamples)
        found[name] = figures
    return found


def _in_words(title: str, found: Found) -> str:
    *_, before_last, last = found
    other, noise = found["(another reference)"], found["(other noise)"]
    less_than_noise = [f"*{name}*" for name in other if other[name]["js"][1] <= noise[name]["js"][2]]
    return (
        f"**{title.capitalize()}.** Maps that still go with the trained model's by a rank correlation above {_ALIKE}, with all "
        f"weights drawn anew: {_above(_ALIKE, found[last])}; at the stage before, *{before_last}*: "
        f"{_above(_ALIKE, found[before_last])}. By another reference these hardly change their order (above {_SAME}): "
        f"{_above(_SAME, other)}; no further than by other noise move {', '.join(less_than_noise) or 'none'}."
    )


def _above(limit: float, maps: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    above = [f"*{name}* ({one['rho'][0]:.2f})" for name, one in maps.items() if one["rho"][0] > limit]
    return ", ".join(above) or "none"
