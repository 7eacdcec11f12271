"""What a look at some noise times and heads gets wrong, and whether the "±" that is stored with its figures holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from i2am_debug.capture.plan import CapturePlan, drawn_anew
from i2am_debug.figures.sampling_error import Sampled

from .intervals import resampled
from .looked_at import held_out
from .looked_at_anew import Look, kept_look, whole
from .section import Section, Table, with_interval
from .sizes import Sizes
from .smaller_looks import Apart, apart, blind, piloted

MODELS = ("inpainting", "edit")
_TOGETHER = 8  # pairs, as many as a small evaluation has
_STEPS, _OF = (1, 2, 3, 4, 8, 12, 16), 20  # of a sampler's
_TIMES, _OF_TIMES = (2, 4, 8), 40  # by teacher forcing
_HEADS = (1, 12)  # as a plan says it; at least one of each layer
_AT = 4  # noise times: the default
_MAPS = {"js_r2g": "JS, R2G", "js_g2r": "JS, G2R", "pearson_r2g": "Pearson, R2G", "pearson_g2r": "Pearson, G2R"}
Found = dict[str, list[Apart]]


def measure(sizes: Sizes, _runs: Path) -> Section:
    of_models = {model: _of(model, sizes) for model in MODELS}
    values = {m: {plan: _summed(seen, sizes) for plan, seen in found.items()} for m, found in of_models.items()}
    return Section(
        title="Sampling: some noise times, some heads",
        asked=f"Beside the look at all: {_OF} sampler steps of which some are drawn, seed by seed; {_OF_TIMES} noise times by "
        f"teacher forcing beside fewer evenly spread ones; and all heads at {_AT} noise times beside some, which a pilot chose "
        f'or which were drawn blindly, as many. Figures are means over {_TOGETHER} pairs. "Held": how often the stored 95 % '
        "interval, ±, holds the figure of the look at all; intervals by resampling draws, which are what is independent "
        f"({sizes.draws} a row, by teacher forcing {sizes.looked_at // _TOGETHER} groups of pairs): the figures of one draw "
        "go together.",
        said=_in_words(values),
        tables=[_table(model, found) for model, found in values.items()] + [_by_figure(of_models)],
        command="python -m benchmarks.evidence sampling",
        values=values,
    )


def _of(model: str, sizes: Sizes) -> Found:
    pairs = held_out(model, sizes.looked_at, seed=0)
    found: Found = {}
    by_steps = _groups(kept_look(model, pairs, way="sampling", num_inference_steps=_OF))
    for count in _STEPS:
        found[f"{count} of {_OF} steps"] = [
            _some_steps(by_steps[seed % len(by_steps)], CapturePlan(sampler_steps=count, heads=None, seed=seed))
            for seed in range(sizes.draws)
        ]
    full = _groups(kept_look(model, pairs, plan=CapturePlan(sampler_steps=_OF_TIMES, heads=None)))
    for count in _TIMES:
        fewer = _groups(kept_look(model, pairs, plan=CapturePlan(sampler_steps=count, heads=None)))
        found[f"{count} forced times"] = [
            apart(some, every, Sampled(steps=10**6)) for some, every in zip(fewer, full, strict=True)
        ]
        if count == _AT:
            for heads in _HEADS:
                found |= _some_heads(fewer, heads, sizes)
    return found


def _groups(look: Look) -> list[Look]:
    count = len(look.observations)
    return [look.of(slice(at, at + _TOGETHER)) for at in range(0, count, _TOGETHER)]


def _some_steps(all_of_it: Look, plan: CapturePlan) -> Apart:
    every = whole(all_of_it.observations[0].maps)
    return apart(all_of_it.anew(plan.draw_steps(_OF), every, plan), all_of_it, Sampled(steps=_OF))


def _some_heads(groups: list[Look], count: int, sizes: Sizes) -> Found:
    plan = CapturePlan(sampler_steps=_AT, heads=count)
    every = whole(groups[0].observations[0].maps)
    # All the noise times there are: what heads do is to be seen by itself.
    pilots = [piloted(group.anew(group.steps, every, plan, every_head=True), plan, _AT) for group in groups]
    looked_at = sum(map(len, pilots[0].heads.values()))
    found: Found = {}

    def seen(choose: Callable[[int, int], Any]) -> list[Apart]:
        out = []
        for seed in range(sizes.draws):
            number = seed % len(groups)
            group = groups[number]
            out.append(apart(group.anew(group.steps, choose(number, seed), plan), group, pilots[number].sampled))
        return out

    found[f"{looked_at} heads, pilot"] = seen(
        lambda n, seed: drawn_anew(pilots[n].heads, groups[n].heads, 10_000 + seed)
    )
    found[f"{looked_at} heads, blind"] = seen(lambda n, seed: blind(groups[n].heads, looked_at, seed))
    return found


def _held(looks: Iterable[Apart], only: str | None = None) -> list[bool]:
    """Of each figure that has an interval wider than nothing, whether it holds."""
    return [
        abs(look.errors[tag]) <= reach
        for look in looks
        for tag, reach in look.reaches.items()
        if reach > 0 and only in (None, tag)
    ]


def _summed(looks: list[Apart], sizes: Sizes) -> dict[str, Any]:
    out: dict[str, Any] = {name: float(np.mean([one.maps[name] for one in looks])) for name in _MAPS}
    tags = [tag for tag in looks[0].errors if tag.startswith("imacs")]
    out["error"] = float(np.sqrt(np.mean([one.errors[tag] ** 2 for one in looks for tag in tags])))
    shares = np.array([np.mean(held) for one in looks if (held := _held([one]))])
    if len(shares):
        out["held"] = resampled(lambda chosen: float(shares[chosen].mean()), len(shares), sizes.resamples)
    return out


def _table(model: str, found: dict[str, dict[str, Any]]) -> Table:
    rows = [
        [
            plan,
            *(f"{one[name]:.3f}" for name in _MAPS),
            f"{one['error']:.3f}",
            "said by no pilot" if "blind" in plan else with_interval(*one["held"]) if "held" in one else "undefined",
        ]
        for plan, one in found.items()
    ]
    columns = ("looked at", *_MAPS.values(), "error of IMACS, root mean square", "held")
    return Table(title=f"The {model} model:", columns=columns, rows=rows)


def _by_figure(of_models: dict[str, Found]) -> Table:
    kinds = {"steps": " steps", "forced times": "forced times", "heads, pilot": "heads, pilot"}
    tags = {
        tag: None for found in of_models.values() for looks in found.values() for one in looks for tag in one.reaches
    }
    rows = []
    for tag in tags:
        cells = []
        for found in of_models.values():
            for kind in kinds.values():
                held = _held([one for plan, looks in found.items() if plan.endswith(kind) for one in looks], tag)
                cells.append(f"{np.mean(held):.2f} ({len(held)})" if held else "")
        rows.append([tag, *cells])
    columns = ("figure", *(f"{model}, {kind}" for model in of_models for kind in kinds))
    return Table(title="Held, by figure (looks; those of one draw go together):", columns=columns, rows=rows)


def _in_words(values: dict[str, dict[str, dict[str, Any]]]) -> str:
    sentences = []
    for model, found in values.items():
        held = {plan: one["held"] for plan, one in found.items() if "held" in one and "blind" not in plan}
        within = [plan for plan, one in held.items() if 0.93 <= one[0] <= 0.97]
        wide = [plan for plan, one in held.items() if one[0] > 0.97]
        narrow = [plan for plan, one in held.items() if one[0] < 0.93]
        pilots = [
            f"with {plan.split()[0]} heads a pilot's choice errs by {one['error']:.3f} and a blind one by "
            f"{found[plan.replace('pilot', 'blind')]['error']:.3f}"
            for plan, one in found.items()
            if "pilot" in plan
        ]
        sentences.append(
            f"{model.capitalize()}: 93 to 97 % hold at {', '.join(within) or 'none'}; more, as ± is wider than need be, at "
            f"{', '.join(wide) or 'none'}; fewer at {', '.join(narrow) or 'none'}. Of IMACS, {'; '.join(pilots)}."
        )
    return " ".join(sentences)
