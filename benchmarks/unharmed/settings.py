"""Whether every setting that moves a figure makes evaluations not comparable: each is changed in turn, on both tiny models.

Two evaluations of the same weights that differ in one setting must either have the same figures, bit for bit, or name that
setting as a difference. Named without having moved anything is no harm, but needless: it is listed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from fnmatch import fnmatch
from itertools import combinations, groupby
from typing import Any

from i2am_debug.capture.plan import CapturePlan
from i2am_debug.demo.demo_model import demo_model
from i2am_debug.evaluation.fingerprint import of_family
from i2am_debug.families.registry import registered
from i2am_debug.figures.record import Evaluation, differences
from i2am_debug.figures.values import Undefined
from i2am_debug.settings import MonitorSettings

from .found import Found
from .setting_values import Change, World, changes

_WAYS = ("teacher_forcing", "loss_fn", "sampling")
_ALL = {(name, way): ("*",) for name in ("inpainting", "edit") for way in _WAYS}
_SHORT = {
    ("inpainting", "teacher_forcing"): ("*",),
    ("inpainting", "loss_fn"): ("loss_fn", "batch_size", "seed"),
    ("edit", "sampling"): (
        "pairs*",
        "call",
        "kept_threshold",
        "num_inference_steps",
        "plan.seed",
        "size",
        "scheduler.s*",
    ),
}
"""(model, way) → shell patterns of the settings that are tried; the short form leaves out what it tries elsewhere."""
_OTHER = (2, (2, 3), "first", "layer")  # some that no family has by default


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One setting's value, and what was found with it."""

    where: str
    """Model and way."""
    change: Change
    base: Evaluation
    found: Evaluation | None
    """None where the value was refused."""
    refused: str = ""


def measure(*, long: bool) -> Found:
    """Every setting of both models in all ways with all values; short: of some of them with one value."""
    try:
        return found_in(try_worlds(long=long))
    except LookupError as error:
        return Found(rows=[], harm=[str(error)], counted={})


def try_worlds(*, long: bool) -> list[Tried]:
    """What `measure` judges.

    Raises:
        LookupError: a setting has no values to try; names it.
    """
    worlds = _ALL if long else _SHORT
    return [
        one
        for (name, way), patterns in worlds.items()
        for one in try_all(new_world(name, way), values=99 if long else 1, only=patterns)
    ]


def found_in(tried: Sequence[Tried]) -> Found:
    """The harm, and what sums it up."""
    return Found(
        rows=[_row(one) for one in tried],
        harm=[*silent(tried), *silent_families()],
        counted={
            "settings": len({one.change.setting for one in tried}),
            "values tried": len(tried),
            "refused": sum(one.found is None for one in tried),
            "moved a figure": sum(_moved(one.base, one.found) > 0 for one in tried if one.found),
            "needlessly not comparable": ", ".join(needless(tried)),
            "an omission of it would be found": ", ".join(needed(tried)),
        },
    )


def new_world(name: str, way: str) -> World:
    """A tiny model that is looked at in one way: two pairs, three sampler steps of which two are looked at."""
    model = demo_model(name)
    pipeline = model.load()
    pipeline.set_progress_bar_config(disable=True)
    given = {
        "pairs": list(model.validation_pairs()[:2]),
        "every_n_steps": 1,
        "way": way,
        "loss_fn": model.loss_fn(pipeline),
        "plan": CapturePlan(sampler_steps=2),
        "num_inference_steps": 3,
        "disable_progress_bar": True,
    }
    return World(model=model, pipeline=pipeline, given=given)


def try_all(world: World, *, values: int, only: Sequence[str] = ("*",)) -> Iterator[Tried]:
    """Evaluates with each other value of each setting, at most so many of one; `only`: patterns of settings."""
    base = evaluate(world, {})
    where = f"{world.model.name}, {base.fingerprint['way']}"
    for setting, each in groupby(changes(world), lambda change: change.setting):
        for change in list(each)[:values] if any(fnmatch(setting, pattern) for pattern in only) else ():
            own = {name: getattr(world.pipeline, name) for name in change.parts}
            try:
                for name, make in change.parts.items():
                    setattr(world.pipeline, name, make())
                found, refused = evaluate(world, change.given), ""
            except Exception as error:  # a value that can't be has no figures that could be compared
                found, refused = None, f"{type(error).__name__}: {error}"
            finally:
                for name, part in own.items():
                    setattr(world.pipeline, name, part)
            yield Tried(where=where, change=change, base=base, found=found, refused=refused)


def evaluate(world: World, given: Mapping[str, Any]) -> Evaluation:
    """One evaluation of the world's model, with other settings."""
    evaluator = MonitorSettings(**{**world.given, **given}).evaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # such as that a pair has no prompt
        evaluator.check(world.pipeline)
    evaluator.prepare(world.pipeline)
    seen = [one for batch in evaluator.batches for one in evaluator.observe(world.pipeline, batch)]
    seen.sort(key=lambda observation: observation.index)
    return evaluator.score(seen, global_step=0, pipeline=world.pipeline, baseline=None)


def silent(tried: Sequence[Tried]) -> list[str]:
    """Figures that moved while nothing is said to differ: each value against none, and against the setting's other ones."""
    harm = []
    for (where, setting), each in groupby(tried, lambda one: (one.where, one.change.setting)):
        some = [one for one in each if one.found is not None]
        for value, ours, theirs in _pairings(some):
            if _moved(ours, theirs) and not differences(ours, theirs):
                harm.append(f"{where}: {setting} {value} moved a figure by {_moved(ours, theirs):.2g}, unnoticed")
    return harm


def silent_families() -> list[str]:
    """Settings of families that their fingerprint does not name, of the families that the tiny models are not of."""
    harm = []
    for family in registered():
        for one in fields(family) if is_dataclass(family) else ():
            others = [replace(family, **{one.name: value}) for value in _OTHER]
            if len({str(of_family(other)) for other in (family, *others)}) <= len(_OTHER):
                harm.append(f"the family {family.name}: {one.name} is not in the fingerprint")
    return harm


def needless(tried: Sequence[Tried]) -> list[str]:
    """Settings that make evaluations not comparable and moved no figure, and where: everywhere, or in some ways of looking."""
    moved: dict[str, dict[str, bool]] = {}
    for one in tried:
        if one.found is not None and (differences(one.found, one.base) or _moved(one.base, one.found)):
            of = moved.setdefault(one.change.setting, {})
            of[one.where] = of.get(one.where, False) or _moved(one.base, one.found) > 0
    out = []
    for setting, of in moved.items():
        still = [where for where, yes in of.items() if not yes]
        if still:
            out.append(f"{setting} ({'everywhere' if len(still) == len(of) else '; '.join(still)})")
    return out


def needed(tried: Sequence[Tried]) -> list[str]:
    """Names of a fingerprint that alone kept a moved figure from being compared: without one of them there was harm."""
    names = set()
    for one in tried:
        if one.found is not None and _moved(one.base, one.found):
            unlike = list(differences(one.found, one.base))
            names |= set(unlike) if len(unlike) == 1 else set()
    return sorted(names)


def _pairings(some: Sequence[Tried]) -> Iterator[tuple[str, Evaluation, Evaluation]]:
    for one in some:
        assert one.found is not None
        yield one.change.value, one.found, one.base
    for one, other in combinations(some, 2):
        assert one.found is not None and other.found is not None
        yield f"{one.change.value} against {other.change.value}", one.found, other.found


def _moved(ours: Evaluation, theirs: Evaluation) -> float:
    """By how much a figure or its error differs at most: 0 where all are equal bit for bit, infinite where only one has it.

    Why a figure has no value is not compared: that is told in words, for which a pair may have its own.
    """
    most = 0.0
    for a, b in ((ours.figures, theirs.figures), (ours.errors, theirs.errors)):
        if a.keys() != b.keys() or any(len(a[tag]) != len(b[tag]) for tag in a):
            return math.inf
        for tag in a:
            for one, other in zip(a[tag], b[tag], strict=True):
                if isinstance(one, Undefined) or isinstance(other, Undefined):
                    most = most if isinstance(one, Undefined) and isinstance(other, Undefined) else math.inf
                elif one != other:
                    most = max(most, abs(one - other))
    return most


def _row(one: Tried) -> dict[str, Any]:
    moved = None if one.found is None else _moved(one.base, one.found)
    unlike = {} if one.found is None else differences(one.found, one.base)
    comparable = "yes" if not unlike else f"no: {', '.join(sorted({name.split('.')[0] for name in unlike}))}"
    return {
        "model, way": one.where,
        "setting": one.change.setting,
        "value": one.change.value.replace("|", "/"),
        "figures moved by at most": "refused" if moved is None else "0" if moved == 0 else f"{moved:.2g}",
        "comparable": one.refused[:60].replace("|", "/") if one.found is None else comparable,
    }
