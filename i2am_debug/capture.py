"""Observes queries and keys inside a denoiser's attention modules, and puts everything back.

While a tracked module runs, a torch function mode sees its call of `scaled_dot_product_attention` with the very tensors the
model uses; nothing is replaced, so outputs stay bit-identical. This module does not know what the tokens mean (the family
does) nor what becomes of them (the accumulator does).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from .accumulate import Accumulator
from .attention import attribute, pooled_rows, region_weight
from .errors import I2AMError, NothingCaptured, UndefinedFigure, UnsupportedModel
from .families import Family, Layout, find_family
from .maps import AttributionMaps
from .plan import CapturePlan, HeadChoice

_SDPA = F.scaled_dot_product_attention


def trace(
    pipeline: Any,
    *,
    plan: CapturePlan | None = None,
    family: Family | None = None,
    mask: Any = None,
    reference_mask: Any = None,
    heads: HeadChoice | None = None,
) -> Trace:
    """Looks at the attention of one pipeline call, or of a denoiser called by hand::

        with trace(pipeline) as t:
            pipeline(...)
        t.maps().g2r.unified

    Args:
        pipeline: a diffusers pipeline with a `unet` or `transformer`, or such a module itself.
        plan: what to look at; default `CapturePlan.full()`.
        family: where the reference sits; found from the model when not given.
        mask: (H, W) array, or one for each image; the hole. The attention information and `g2r_region` are over its tokens.
        reference_mask: (H, W) array, or one for each image; the object. Needed for the R2G variant `object_mass`.
        heads: a choice made by a pilot (`choose_heads`); default all.

    Raises:
        UnsupportedModel: no family knows where the reference sits in this model.
    """
    return Trace(
        pipeline,
        plan=plan or CapturePlan.full(),
        family=family,
        masks=_as_list(mask),
        reference_masks=_as_list(reference_mask),
        heads=heads,
    )


class Trace(AbstractContextManager["Trace"]):
    """A capture under way or finished; made by `trace`."""

    def __init__(
        self,
        pipeline: Any,
        *,
        plan: CapturePlan,
        family: Family | None,
        masks: Sequence[Any] | None,
        reference_masks: Sequence[Any] | None,
        heads: HeadChoice | None,
    ) -> None:
        self.denoiser = find_denoiser(pipeline)
        self.family = family or find_family(pipeline, self.denoiser)
        self.plan = plan
        self._scheduler = None if pipeline is self.denoiser else getattr(pipeline, "scheduler", None)
        self._masks, self._reference_masks = _stack(masks), _stack(reference_masks)
        self._heads = heads
        self._accumulator = Accumulator(plan)
        self._steps = _StepCounter(plan, self._scheduler)
        self._arguments: dict[str, Any] | None = None  # of the forward call under way, when it is looked at
        self._running: list[_RunningModule] = []
        self._handles: list[Any] = []
        self._stance: AbstractContextManager[None] | None = None

    def __enter__(self) -> Trace:
        modules = {n: m for n, m in self.family.layers(self.denoiser).items() if self.plan.looks_at(n)}
        if not modules:
            raise UnsupportedModel(
                f"the plan's layers {self.plan.layers} without {self.plan.exclude} match none of "
                f"{', '.join(self.family.layers(self.denoiser)) or 'no attention modules'}"
            )
        # Compiled modules skip hooks added after compilation without a word; run eagerly while looking.
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        # The denoiser's hooks go first so that a hook of the caller's that raises can't leave ours half done.
        self._handles.append(
            self.denoiser.register_forward_pre_hook(self._before_forward, with_kwargs=True, prepend=True)
        )
        self._handles.append(self.denoiser.register_forward_hook(self._after_forward, always_call=True))
        for name, module in modules.items():
            self._handles.append(module.register_forward_pre_hook(lambda m, _, n=name: self._before_module(n, m)))
            self._handles.append(module.register_forward_hook(self._after_module, always_call=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        while self._running:  # an interrupt (KeyboardInterrupt) skips forward hooks
            self._running.pop().__exit__(None, None, None)
        self._arguments = None
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None

    def maps(self, image: int = 0) -> AttributionMaps:
        """The maps of one image of the batch.

        Raises:
            NothingCaptured: the denoiser did not run inside the `with`, or no looked-at sampler step was reached.
        """
        if self._accumulator.empty:
            raise NothingCaptured(
                "no attention was seen: call the pipeline inside `with trace(pipeline) as t:`"
                if not self._steps.forwards
                else f"the denoiser ran {self._steps.forwards} times, but at none of the sampler steps the plan looks at "
                f"({self._steps.chosen}); use CapturePlan(sampler_steps=None)"
            )
        with torch.autocast(
            "cpu", enabled=False
        ):  # the sums are brought to the CPU; the caller may be inside an autocast
            return self._accumulator.maps(image, self._steps.total)

    @property
    def images(self) -> int:
        """How many images the captured batch held."""
        return self._accumulator.images

    def _before_forward(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if _in_backward():  # gradient checkpointing runs the forward a second time
            return
        arguments = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        arguments = {**arguments.pop("kwargs", {}), **arguments}
        self._arguments = arguments if self._steps.advance(arguments.get("timestep")) else None

    def _after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._arguments = None

    def _before_module(self, name: str, module: nn.Module) -> None:
        if self._arguments is not None:
            self._running.append(_RunningModule(name, module, self._observe))
            self._running[-1].__enter__()

    def _after_module(self, module: nn.Module, args: tuple, output: Any) -> None:
        if not (self._running and self._running[-1].module is module):
            return
        running = self._running.pop()
        running.__exit__(None, None, None)
        if running.error is not None:
            raise running.error
        if output is not None and running.calls == 0:
            processor = getattr(module, "processor", None)
            raise NothingCaptured(
                f"attention module {running.name!r} ran without a call of torch's scaled_dot_product_attention: its "
                f"processor is {type(processor).__name__}. Attention slicing and memory-efficient backends bypass it; use "
                "AttnProcessor2_0 (pipeline.disable_attention_slicing(), "
                "pipeline.disable_xformers_memory_efficient_attention()) or leave the layer out with "
                "CapturePlan(exclude=(…))"
            )

    def _observe(self, running: _RunningModule, query: torch.Tensor, key: torch.Tensor, scale: Any, mask: Any) -> None:
        assert self._arguments is not None
        layout = self.family.layout(self._arguments, query.shape[2], key.shape[2], running.calls)
        if layout is None:
            return
        if mask is not None:
            raise UnsupportedModel(
                f"attention module {running.name!r} masks some of its keys; the attribution of masked reference tokens is "
                "not defined for this family"
            )
        if query.shape[1] != key.shape[1]:
            raise UnsupportedModel(
                f"attention module {running.name!r} has {query.shape[1]} query and {key.shape[1]} key heads (grouped)"
            )
        heads = self._weights(running.name, query.shape[1])
        index = torch.tensor(list(heads), device=query.device)
        q = query[layout.conditional, :, layout.generated].index_select(1, index)
        k = key[layout.conditional, :, layout.reference].index_select(1, index)
        regions = {
            "query_weight_BG": self._region(self._masks, layout.generated_grid, len(q), q.device, "mask"),
            "key_weight_BR": self._region(
                self._reference_masks, layout.reference_grid, len(q), q.device, "reference_mask"
            ),
        }
        self._accumulator.add(
            running.name,
            self._steps.step,
            layout,
            list(heads),
            torch.tensor(list(heads.values())),
            attribute(q, k, scale=scale, **regions),
            self._rows(q, k, layout, scale, torch.tensor(list(heads.values()))),
        )

    def _rows(self, q: torch.Tensor, k: torch.Tensor, layout: Layout, scale: Any, weights: torch.Tensor) -> Any:
        reference_grid = layout.reference_grid or (1, k.shape[2])
        return pooled_rows(q, k, layout.generated_grid, reference_grid, scale=scale, head_weight_N=weights)

    def _weights(self, layer: str, count: int) -> Mapping[int, float]:
        if self._heads is None:
            return dict.fromkeys(range(count), 1.0)
        if layer not in self._heads:
            raise UnsupportedModel(
                f"the stored choice of heads has no layer {layer!r}; it was made for another model or plan. "
                "Start a new baseline."
            )
        return self._heads[layer]

    def _region(
        self, masks: torch.Tensor | None, grid: Any, images: int, device: torch.device, name: str
    ) -> torch.Tensor | None:
        if masks is None or grid is None:
            return None
        if len(masks) not in (1, images):
            raise UnsupportedModel(f"trace has {len(masks)} of {name}, the denoiser's batch holds {images} images")
        weight = region_weight(masks.to(device), grid).expand(images, -1)
        if not bool((weight.sum(-1) > 0).all()):
            raise UndefinedFigure(f"the trace's {name} is empty")
        return weight


class _RunningModule(TorchFunctionMode):
    """Watches torch calls while one attention module runs."""

    def __init__(self, name: str, module: nn.Module, observe: Any) -> None:
        super().__init__()
        self.name, self.module, self.calls = name, module, 0
        self.error: I2AMError | None = None
        self._observe = observe

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is _SDPA and self.error is None:
            given = inspect_sdpa(args, kwargs)
            try:
                with torch.autocast(given["query"].device.type, enabled=False):
                    self._observe(self, given["query"], given["key"], given.get("scale"), given.get("attn_mask"))
            except I2AMError as error:  # raised after the module is done, so that the model's own code never sees it
                self.error = error
            self.calls += 1
        return func(*args, **kwargs)


_SDPA_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def inspect_sdpa(args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call of `scaled_dot_product_attention` by name (it is a builtin without a signature)."""
    return {**dict(zip(_SDPA_PARAMETERS, args, strict=False)), **kwargs}


class _StepCounter:
    """Which sampler step a denoiser forward belongs to, and whether the plan looks at it.

    Pipelines that run the denoiser twice a step (conditional and unconditional apart) use the same noise time for both, so
    a step is a change of noise time.
    """

    def __init__(self, plan: CapturePlan, scheduler: Any) -> None:
        self._plan, self._scheduler = plan, scheduler
        self._last: float | None = None
        self.step, self.forwards = -1, 0
        self.total: int | None = None
        self.chosen: tuple[int, ...] | None = None

    def advance(self, timestep: Any) -> bool:
        time = None if timestep is None else float(torch.as_tensor(timestep).flatten()[0])
        if self.forwards == 0 and self._scheduler is not None:
            self.total = _remaining_steps(self._scheduler, time)
            self.chosen = None if self.total is None else self._plan.draw_steps(self.total)
        if time is None or time != self._last:
            self.step += 1
        self._last = time
        self.forwards += 1
        if self.total is not None and self.step >= self.total:
            raise NothingCaptured(
                f"the denoiser ran more than the sampler's {self.total} steps inside one trace; "
                "open a new `with trace(pipeline)` for each pipeline call"
            )
        return self.chosen is None or self.step in self.chosen


def find_denoiser(pipeline: Any) -> nn.Module:
    """The network that removes noise: `pipeline.unet`, `pipeline.transformer`, or the module itself.

    Raises:
        UnsupportedModel: there is none.
    """
    for name in ("unet", "transformer"):
        module = getattr(pipeline, name, None)
        if isinstance(module, nn.Module):
            return getattr(module, "_orig_mod", module)
    if isinstance(pipeline, nn.Module):
        return getattr(pipeline, "_orig_mod", pipeline)
    raise UnsupportedModel(
        f"{type(pipeline).__name__} has neither a unet nor a transformer; pass a diffusers pipeline or the denoiser itself"
    )


def _remaining_steps(scheduler: Any, time: float | None) -> int | None:
    """Steps from the one at noise time `time` on; image-to-image calls with a strength skip the first ones."""
    times = getattr(scheduler, "timesteps", None)
    if times is None or getattr(scheduler, "num_inference_steps", None) is None:
        return None
    times = torch.as_tensor(times).flatten().tolist()
    return len(times) - (times.index(time) if time in times else 0)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _as_list(mask: Any) -> list[Any] | None:
    if mask is None:
        return None
    if isinstance(mask, (list, tuple)):
        return list(mask)
    return [mask] if np.ndim(mask) == 2 else list(mask)


def _stack(masks: Sequence[Any] | None) -> torch.Tensor | None:
    """(n, side, side) float; regions may differ in size from pair to pair, so each is brought to one common raster."""
    if masks is None:
        return None
    tensors = [torch.as_tensor(np.asarray(m), dtype=torch.float32) for m in masks]
    if len({t.shape for t in tensors}) > 1:
        raise UnsupportedModel("the masks of one batch differ in size; use batch_size=1")
    return torch.stack(tensors)
