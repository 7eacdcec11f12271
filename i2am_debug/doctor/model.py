"""What can be said of a pipeline without running it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..capture.sampler_steps import scheduler_name
from ..capture.trace import find_denoiser
from ..errors import UnsupportedModel
from ..evaluation.calls import default_call
from ..evaluation.evaluator import Evaluator
from ..families.family import Family
from ..families.registry import find_family, registered
from .cures import nothing_to_see, uncallable
from .findings import Diagnosis, counted, size

SECTION = "pipeline"


def describe(diagnosis: Diagnosis, pipeline: Any) -> None:
    """Adds class, weights, scheduler, attention and what is compiled."""
    denoiser = find_denoiser(pipeline)
    weights = weights_of(pipeline)
    diagnosis.add(SECTION, "class", type(pipeline).__name__)
    diagnosis.add(SECTION, "denoiser", f"{type(denoiser).__name__}, {in_words(list(denoiser.parameters()))}")
    if weights > sum(map(_bytes, denoiser.parameters())):
        diagnosis.add(SECTION, "all weights", size(weights))
    name = scheduler_name(pipeline)
    diagnosis.add(
        SECTION,
        "scheduler",
        "none found: a plan's steps can't be drawn" if name is None else type(getattr(pipeline, name)).__name__,
    )
    diagnosis.add(SECTION, "compiled", _compiled(denoiser))
    if offloaded := [type(m).__name__ for m in _modules(pipeline) if hasattr(m, "_hf_hook")]:
        diagnosis.add(SECTION, "offloaded", f"{counted(offloaded)}: each look moves weights to and fro")
    for finding in _broken_weights(denoiser):
        diagnosis.find(finding, "load or train it anew: nothing that it computes is a number", fatal=True)


def find(diagnosis: Diagnosis, pipeline: Any, evaluator: Evaluator | None) -> Family | None:
    """Adds the family, how a pair becomes a call, layers, heads and how they attend; None where there is nothing to see."""
    denoiser = find_denoiser(pipeline)
    given = None if evaluator is None else evaluator.family
    called = evaluator is not None and (evaluator.call is not None or evaluator.loss_fn is not None)
    if given is None and not called and (blocked := nothing_to_see(pipeline, denoiser)) is not None:
        diagnosis.find(*blocked, fatal=True)
        return None
    try:
        family = given or find_family(pipeline, denoiser)
    except UnsupportedModel as error:
        _tell_what_was_refused(diagnosis, pipeline, denoiser, error)
        return None
    how = "given" if given is not None else "found from the model"
    diagnosis.add(SECTION, "family", f"{family.name}, {how}: {family.about.models}")
    if given is not None and (doubt := family.refuses(pipeline, denoiser)) is not None:
        diagnosis.add(SECTION, "of itself", f"it would not have been found: {doubt}")
    unknown = None if called else uncallable(pipeline)
    if unknown is not None:
        diagnosis.find(*unknown, fatal=True)
    diagnosis.add(SECTION, "a pair's call", "not known" if unknown is not None else _call(pipeline, evaluator))
    layers = family.layers(denoiser)
    heads = [int(count) for m in layers.values() if (count := getattr(m, "heads", None)) is not None]
    diagnosis.add(SECTION, "layers", f"{len(layers)}: {_in_short(list(layers))}")
    diagnosis.add(SECTION, "heads", f"{sum(heads)}" + ("" if len(heads) == len(layers) else ", of those that say"))
    diagnosis.add(SECTION, "attention", counted(map(_attends, layers.values())))
    diagnosis.add(SECTION, "backend", _backend())
    return family


def weights_of(pipeline: Any) -> int:
    """Bytes of all parameters of the pipeline's modules."""
    return sum(map(_bytes, {id(p): p for m in _modules(pipeline) for p in m.parameters()}.values()))


def in_words(parameters: list[torch.Tensor]) -> str:
    """How many parameters, of which types, where."""
    count = sum(p.numel() for p in parameters)
    short = next(
        (f"{count / of:.3g} {unit}" for of, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if count >= of), str(count)
    )
    types = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
    places = ", ".join(sorted({str(p.device) for p in parameters}))
    return f"{short} parameters, {types}, on {places}"


def _bytes(parameter: torch.Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _modules(pipeline: Any) -> list[nn.Module]:
    if isinstance(pipeline, nn.Module):
        return [pipeline]
    parts = getattr(pipeline, "components", None) or getattr(pipeline, "__dict__", {})
    return [part for part in parts.values() if isinstance(part, nn.Module)] or [find_denoiser(pipeline)]


def _tell_what_was_refused(diagnosis: Diagnosis, pipeline: Any, denoiser: nn.Module, error: UnsupportedModel) -> None:
    what, _, _ = str(error).partition(". ")
    for family in registered():
        diagnosis.add("families asked", family.name, family.refuses(pipeline, denoiser) or "-")
    diagnosis.find(
        what,
        "if you know which family fits, say it: family=, in a dict that MODULE:FACTORY returns; a family of your own is one "
        "class (register_family; docs/families.md)",
        fatal=True,
    )


def _call(pipeline: Any, evaluator: Evaluator | None) -> str:
    if evaluator is not None and evaluator.loss_fn is not None:
        return "your loss_fn"
    if evaluator is not None and evaluator.call is not None:
        return "your call="
    return f"{type(pipeline).__name__}({default_call(pipeline).reference_parameter}=the reference, …)"


def _in_short(names: list[str]) -> str:
    shown = names if len(names) <= 3 else [names[0], "…", names[-1]]
    return ", ".join(shown)


def _attends(module: nn.Module) -> str:
    """By which code a module attends."""
    processor = getattr(module, "processor", None)
    if processor is None:
        return type(module).__name__
    backend = getattr(processor, "_attention_backend", None)
    return type(processor).__name__ + (f" ({getattr(backend, 'value', backend)})" if backend else "")


def _backend() -> str:
    """By which code diffusers' newer processors attend where they name none themselves."""
    try:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    except ImportError:  # an older diffusers
        return "torch's"
    name, _ = _AttentionBackendRegistry.get_active_backend()
    return f"{getattr(name, 'value', name)}, where a processor names none"


def _compiled(denoiser: nn.Module) -> str:
    parts = [
        name or "the denoiser"
        for name, m in denoiser.named_modules()
        if hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None
    ]
    return f"{_in_short(parts)}; looked at eagerly" if parts else "no"


def _broken_weights(denoiser: nn.Module) -> Iterable[str]:
    for name, parameter in denoiser.named_parameters():
        if parameter.is_floating_point() and parameter.device.type != "meta":
            total = float(parameter.detach().float().abs().sum())
            if not math.isfinite(total):
                yield f"the weights {name} hold values that are not finite"
                return
