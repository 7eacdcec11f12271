"""Other values of every setting there is, for both tiny models: what `settings` changes in turn.

The settings themselves are listed by the dataclasses, a scheduler's by its configuration. One without values here is a harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial, wraps
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, ImageOps

from i2am_debug.alerts.rules import Rules
from i2am_debug.capture.plan import CapturePlan
from i2am_debug.capture.trace import find_denoiser
from i2am_debug.demo.demo_model import DemoModel
from i2am_debug.demo.edit.model import to_tokens
from i2am_debug.demo.pixel_vae import to_cells
from i2am_debug.families.family import Family
from i2am_debug.families.registry import find_family
from i2am_debug.figures.scores import IMACSSettings
from i2am_debug.pairs.pair import ValidationPair
from i2am_debug.settings import MonitorSettings


@dataclass(frozen=True, kw_only=True)
class World:
    """One tiny model looked at in one way, before anything is changed."""

    model: DemoModel
    pipeline: Any
    given: Mapping[str, Any]
    """Arguments of `MonitorSettings`."""

    @property
    def family(self) -> Family:
        """The one that knows the model."""
        return find_family(self.pipeline, find_denoiser(self.pipeline))

    @property
    def pairs(self) -> list[ValidationPair]:
        """Those it is looked at with."""
        return list(self.given["pairs"])


@dataclass(frozen=True, kw_only=True)
class Change:
    """One setting with another value."""

    setting: str
    value: str
    given: Mapping[str, Any] = field(default_factory=dict)
    """In place of those of the world."""
    parts: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    """Attributes of the pipeline → what makes another one."""


def changes(world: World) -> Iterator[Change]:
    """Every setting's other values.

    Raises:
        LookupError: a setting has none here; names it.
    """
    for one in fields(MonitorSettings):
        of = _OF_PARTS.get(one.name)
        if of is not None:
            yield from of(world)
        else:
            for given in _listed("MonitorSettings", one.name, _MONITOR)(world):
                yield Change(setting=one.name, value=_short(given[one.name]), given=given)
    yield from _of_scheduler(world)
    yield Change(setting="pipeline", value="of another class", parts={"__class__": partial(_mirrored, world.pipeline)})


def untried(settings: type, table: Mapping[str, Any]) -> list[str]:
    """Names of the fields of a dataclass that the table has no values for."""
    return [one.name for one in fields(settings) if one.name not in table]


# -- what is handed in ---------------------------------------------------------------------------------------------------


def _call(pipeline: Any, pair: ValidationPair, generator: torch.Generator, *, mirrored: bool = False) -> Any:
    reference = ImageOps.mirror(pair.reference) if mirrored else pair.reference
    if hasattr(pipeline, "transformer"):
        return pipeline(image=reference, prompt=pair.prompt, num_inference_steps=4, generator=generator)
    return pipeline(
        image=pair.target,
        mask_image=pair.mask_image,
        example_image=reference,
        num_inference_steps=4,
        generator=generator,
    )


def _encode(pipeline: Any, pair: ValidationPair, *, mirrored: bool = False) -> torch.Tensor:
    picture = ImageOps.mirror(pair.target) if mirrored else pair.target
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    return to_tokens(pixels) if hasattr(pipeline, "transformer") else to_cells(pixels)


def _mirrored(pipeline: Any) -> type:
    """The pipeline's class, but that it mirrors its reference."""
    own, reference = type(pipeline), "image" if hasattr(pipeline, "transformer") else "example_image"

    @wraps(own.__call__)
    def mirrored(self: Any, *arguments: Any, **named: Any) -> Any:
        pictures = named[reference]
        several = isinstance(pictures, list)
        named[reference] = [ImageOps.mirror(one) for one in pictures] if several else ImageOps.mirror(pictures)
        return own.__call__(self, *arguments, **named)

    return type("MirroringPipeline", (own,), {"__call__": mirrored})


def _losses(world: World) -> list[Any]:
    """A loss function of other weight, two of them made by one maker, which only their arguments tell apart."""
    own = world.given["loss_fn"]
    return [partial(_scaled_loss, own, by=2.0), partial(_scaled_loss, own, by=3.0), lambda *a, **k: own(*a, **k) + 1]


def _scaled_loss(loss_fn: Any, *arguments: Any, by: float, **named: Any) -> torch.Tensor:
    return by * loss_fn(*arguments, **named)


# -- the tables ----------------------------------------------------------------------------------------------------------


def _alone(name: str, *values: Any) -> Callable[[World], list[dict[str, Any]]]:
    return lambda world: [{name: value} for value in values]


_MONITOR: dict[str, Callable[[World], list[dict[str, Any]]]] = {
    "every_n_steps": _alone("every_n_steps", 7),
    "budget": lambda world: [{"budget": 0.5, "every_n_steps": None}],
    "loss_fn": lambda world: [{"loss_fn": one} for one in _losses(world)],
    "way": lambda world: [
        {"way": way} for way in ("loss_fn", "teacher_forcing", "sampling") if way != world.given["way"]
    ],
    "encode": _alone("encode", _encode, partial(_encode, mirrored=True), lambda p, pair: _encode(p, pair) + 0.1),
    "call": _alone(
        "call", _call, partial(_call, mirrored=True), lambda pipeline, pair, g: _call(pipeline, pair, g, mirrored=True)
    ),
    "size": _alone("size", (16, 16), (24, 24)),
    "baseline": _alone("baseline", "baseline.safetensors"),
    "rules": _alone("rules", Rules(min_pairs=2)),
    "on_alert": _alone("on_alert", print),
    "stop_on": _alone("stop_on", None, "info"),
    "fail_on": _alone("fail_on", "info"),
    "on_error": _alone("on_error", "raise"),
    "kept_threshold": _alone("kept_threshold", 0.1, 0.1006, 0.1007, 0.4),
    "num_inference_steps": _alone("num_inference_steps", 4, 2),
    "batch_size": _alone("batch_size", 2, 8),
    "pictures": _alone("pictures", 0, 1),
    "panels": _alone("panels", 0),
    "keep_matrices": _alone("keep_matrices", 1),
    "seed": _alone("seed", 1, 2),
    "disable_progress_bar": _alone("disable_progress_bar", False),
    "synchronous": _alone("synchronous", True),
}

_PLAN: dict[str, Callable[[World], Sequence[Any]]] = {
    "sampler_steps": lambda world: [1, 3, 4, None],
    "heads": lambda world: [4, 8, None],
    "layers": lambda world: [_layers(world)[:2], _layers(world)[-1:]],
    "exclude": lambda world: [_layers(world)[:1], _layers(world)[-1:]],
    "time_groups": lambda world: [1, 2],
    "layer_weighting": lambda world: ["paper"],
    "seed": lambda world: [1, 2],
    "budget": lambda world: [0.5],
}

_IMACS: dict[str, Sequence[Any]] = {
    "penalty": [1.0, 4.5],
    "threshold": [0.0, 0.6],
    "polarity": ["inverted"],
    "premask": [True],
}

_FAMILY: dict[str, Mapping[str, Sequence[Any]]] = {
    "unet_cross_attention": {
        "reference_grid": [(4, 16), (16, 4)],
        "reference_tokens": [slice(0, 16), slice(16, 32)],
        "guidance": [False],
    },
    "flux_kontext": {},
}

_PAIR: dict[str, Callable[[ValidationPair], list[dict[str, Any]]]] = {
    "name": lambda pair: [{"name": "another"}],
    "reference": lambda pair: [
        {"reference": _with_a_pixel(pair.reference)},
        {"reference": ImageOps.mirror(pair.reference)},
    ],
    "target": lambda pair: [{"target": _with_a_pixel(pair.target)}, {"target": ImageOps.mirror(pair.target)}],
    "mask": lambda pair: [{"mask": _LEFT}, {"mask": _TOP}],
    "reference_mask": lambda pair: [{"reference_mask": _LEFT}, {"reference_mask": _TOP}],
    "kept": lambda pair: [{"kept": _LEFT}, {"kept": _TOP}],
    "kept_origin": lambda pair: [{"kept": _LEFT, "kept_origin": "file"}],
    "undefined_kept": lambda pair: [{"undefined_kept": "it is not to be looked for"}],
    "further_references": lambda pair: [{"further_references": [ImageOps.mirror(pair.reference)]}],
    "prompt": lambda pair: [{"prompt": "move left" if pair.prompt != "move left" else "move right"}],
    "extra": lambda pair: [{"extra": {"num_inference_steps": 4}}, {"extra": {"no such argument": 1}}],
}

_SCHEDULER: dict[str, Sequence[Any]] = {
    "beta_schedule": ["linear", "scaled_linear"],
    "prediction_type": ["epsilon", "v_prediction"],
    "timestep_spacing": ["leading", "linspace"],
    "time_shift_type": ["linear"],
    "trained_betas": [np.linspace(1e-4, 0.02, 1000).tolist(), np.linspace(1e-4, 0.03, 1000).tolist()],
    "shift_terminal": [0.1],
}
"""Entries of which no other value follows from their type."""

_OTHER_SCHEDULERS = {
    "DDIMScheduler": ("DDPMScheduler", "DPMSolverMultistepScheduler"),
    "FlowMatchEulerDiscreteScheduler": ("FlowMatchLCMScheduler",),
}

_LEFT = np.arange(32)[None, :].repeat(32, 0) < 16
_TOP = np.arange(32)[:, None].repeat(32, 1) < 12


# -- the settings that have settings of their own ------------------------------------------------------------------------


def _of_pairs(world: World) -> Iterator[Change]:
    first, *others = world.pairs
    for one in fields(ValidationPair):
        for changed in _listed("ValidationPair", one.name, _PAIR)(first):
            pair = replace(first, **changed)
            value = _short(changed[one.name])
            yield Change(setting=f"pairs.{one.name}", value=value, given={"pairs": [pair, *others]})
    yield Change(setting="pairs", value="in another order", given={"pairs": [*others, first]})
    yield Change(setting="pairs", value="one more", given={"pairs": [first, *others, replace(others[0], name="more")]})


def _of_plan(world: World) -> Iterator[Change]:
    own = world.given["plan"]
    for one in fields(CapturePlan):
        for value in _listed("CapturePlan", one.name, _PLAN)(world):
            # A budget stands alone: what it chooses can't be given too.
            plan = CapturePlan(budget=value) if one.name == "budget" else replace(own, **{one.name: value})
            yield Change(setting=f"plan.{one.name}", value=_short(value), given={"plan": plan})


def _of_imacs(world: World) -> Iterator[Change]:
    for one in fields(IMACSSettings):
        for value in _listed("IMACSSettings", one.name, _IMACS):
            given = {"imacs": IMACSSettings(**{one.name: value})}
            yield Change(setting=f"imacs.{one.name}", value=_short(value), given=given)


def _of_family(world: World) -> Iterator[Change]:
    own = world.family
    table = _listed("families", own.name, _FAMILY)
    for one in fields(type(own)):
        for value in _listed(type(own).__name__, one.name, table):
            given = {"family": replace(own, **{one.name: value})}
            yield Change(setting=f"family.{one.name}", value=_short(value), given=given)


def _of_scheduler(world: World) -> Iterator[Change]:
    own = world.pipeline.scheduler
    for name, value in own.config.items():
        if name.startswith("_"):
            continue
        others = _SCHEDULER[name] if name in _SCHEDULER else _others(name, value)
        for other in others:
            made = partial(type(own).from_config, own.config, **{name: other})
            yield Change(setting=f"scheduler.{name}", value=_short(other), parts={"scheduler": made})
    if hasattr(own, "set_shift"):
        yield Change(setting="scheduler.shift", value="by set_shift(3)", parts={"scheduler": partial(_shifted, own)})
    for name in _listed("schedulers", type(own).__name__, _OTHER_SCHEDULERS):
        made = partial(getattr(diffusers, name).from_config, own.config)
        yield Change(setting="scheduler", value=name, parts={"scheduler": made})


_OF_PARTS = {"pairs": _of_pairs, "plan": _of_plan, "imacs": _of_imacs, "family": _of_family}


# -- small help ------------------------------------------------------------------------------------------------------------


def _listed(of: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise LookupError(f"{of}.{name} has no values to try; add some to benchmarks/unharmed/setting_values.py")
    return table[name]


def _others(name: str, value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [max(1, value // 2)]
    if isinstance(value, float):
        return [1.5 * value]
    return _listed("the scheduler's configuration", name, _SCHEDULER)


def _shifted(own: Any) -> Any:
    scheduler = type(own).from_config(own.config)
    scheduler.set_shift(3.0)
    return scheduler


def _layers(world: World) -> tuple[str, ...]:
    return tuple(world.family.layers(find_denoiser(world.pipeline)))


def _with_a_pixel(picture: Image.Image) -> Image.Image:
    """One pixel by one level apart."""
    changed = np.array(picture)
    changed[16, 16, 0] ^= 1
    return Image.fromarray(changed)


def _short(value: Any) -> str:
    text = getattr(value, "__name__", None) or repr(value)
    if isinstance(value, partial):
        text = f"{value.func.__name__} with {value.keywords}"
    if isinstance(value, (Image.Image, np.ndarray)):
        text = "another one"
    return text if len(text) <= 40 else f"{text[:37]}…"
