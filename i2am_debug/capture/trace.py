"""Captures what a family finds in a denoiser's attention, and puts everything back.

This module does not know what the tokens mean (the family does), how products are seen (`taps`) nor what becomes of them
(the accumulator).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import NothingCaptured, UnsupportedModel
from ..families.family import Family, Layout, Product
from ..families.registry import check_still_found, find_family
from .accumulate import Accumulator
from .attention import Attribution, LookedAt
from .bypassed import bypassed
from .maps import AttributionMaps
from .mass import branch_share, check_mask, mass_means, mass_of, reference_mass, whole_normaliser
from .pending import Pending, Waiting
from .plan import CapturePlan, HeadChoice
from .product import Buffers, keys_of, shares, taken_heads
from .regions import Regions
from .sampler_steps import StepCounter, scheduler_name
from .taps import ModuleRun, SeenProduct

_NAMED = 3  # layers in a note


def trace(
    pipeline: Any,
    *,
    plan: CapturePlan | None = None,
    family: Family | None = None,
    mask: Any = None,
    reference_mask: Any = None,
    heads: HeadChoice | None = None,
    steps: Sequence[int] | None = None,
) -> Trace:
    """Looks at the attention of one pipeline call, or of a denoiser called by hand::

        with trace(pipeline) as t:
            pipeline(...)
        t.maps().g2r.unified

    Args:
        pipeline: a diffusers pipeline with a `unet` or `transformer`, or such a module itself.
        plan: what to look at; default `CapturePlan.full()`.
        family: where the reference sits; found from the model when not given.
        mask: (H, W) array, or one for each image (None: all of it); the region that ought to draw on the reference: the
            hole, or what an edit keeps. The attention information and `g2r_region` are over its tokens.
        reference_mask: (H, W) array, or one for each image; the region of the reference that ought to be drawn on: the
            object, or what an edit keeps. Needed for the R2G variant `object_mass`.
        heads: a choice made by a pilot (`choose_heads`); default all.
        steps: of the steps that the plan would look at, in order, the numbers of those looked at; default all.

    Raises:
        UnsupportedModel: no family knows where the reference sits in this model.
    """
    return Trace(
        pipeline,
        plan=plan or CapturePlan.full(),
        family=family,
        mask=mask,
        reference_mask=reference_mask,
        heads=heads,
        steps=steps,
    )


class Trace(AbstractContextManager["Trace"]):
    """A capture under way or finished; made by `trace`."""

    def __init__(
        self,
        pipeline: Any,
        *,
        plan: CapturePlan,
        family: Family | None,
        mask: Any,
        reference_mask: Any,
        heads: HeadChoice | None,
        steps: Sequence[int] | None = None,
        every_head: bool = False,
    ) -> None:
        self.denoiser = find_denoiser(pipeline)
        self.family = family or find_family(pipeline, self.denoiser)
        self.plan = plan
        self._given = family is not None
        alone = pipeline is self.denoiser
        name = None if alone else scheduler_name(pipeline)
        self._scheduler = None if name is None else getattr(pipeline, name)
        self._region, self._object = Regions(mask, "mask"), Regions(reference_mask, "reference_mask")
        self._heads = heads
        self._accumulators: dict[int, Accumulator] = {}
        self._steps = StepCounter(plan, self._scheduler, steps, getattr(self.family, "latent", None), alone=alone)
        self._every_head = every_head
        self._buffers = Buffers()
        self._pending = Pending(self._buffers)
        self._read: dict[Any, Any] = {}  # off the numbers in tensors: a look at them keeps a device waiting
        self._products = 0
        self._without_normaliser: dict[str, None] = {}  # layers, in the order in which they ran
        self._arguments: dict[str, Any] | None = None  # of the forward call under way, when it is looked at
        self._running: list[ModuleRun] = []
        self._modules: dict[str, nn.Module] = {}
        self._handles: list[Any] = []  # of the denoiser's hooks
        self._looking: list[Any] = []  # of the hooks that its modules carry while a forward call is looked at
        self._stance: AbstractContextManager[None] | None = None

    def __enter__(self) -> Trace:
        self._modules = {n: m for n, m in self.family.layers(self.denoiser).items() if self.plan.looks_at(n)}
        if not self._modules:
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
        if not self._given:
            self._handles.append(self.denoiser.register_forward_pre_hook(self._is_still_the_family, prepend=True))
        return self

    def __exit__(self, *exception: object) -> None:
        _remove(self._handles)
        _remove(self._looking)
        while self._running:  # an interrupt (KeyboardInterrupt) skips forward hooks
            self._running.pop().__exit__(None, None, None)
        self._arguments = None
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
        if not any(exception):
            self._pending.settle()

    def maps(self, image: int = 0, reference: int = 0) -> AttributionMaps:
        """The maps of one image of the batch, and of one of its reference pictures where there are several.

        Raises:
            NothingCaptured: the denoiser did not run inside the `with`, or none of its looked-at products held a reference.
        """
        if not self._accumulators:
            raise NothingCaptured(self._nothing())
        if reference not in self._accumulators:
            raise IndexError(f"reference {reference}: these were seen: {sorted(self._accumulators)}")
        self._pending.settle()
        with torch.autocast("cpu", enabled=False):  # the sums come to the CPU, where the caller's autocast may be on
            found = self._accumulators[reference].maps(image, self._steps.total, self._every_head)
        return replace(found, notes=self.notes)

    @property
    def references(self) -> tuple[int, ...]:
        """Numbers of the reference pictures that were seen."""
        return tuple(sorted(self._accumulators))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was seen in another way than the cheapest, and why."""
        layers = list(self._without_normaliser)
        if not layers:
            return ()
        more = f" and {len(layers) - _NAMED} others" if len(layers) > _NAMED else ""
        return (
            "the attention kernel gave no logarithmic normaliser, so that the reference mass took a second product over all "
            f"keys, in {', '.join(layers[:_NAMED])}{more}",
        )

    @property
    def images(self) -> int:
        """How many images the captured batch held."""
        return max((a.images for a in self._accumulators.values()), default=0)

    def _nothing(self) -> str:
        if not self._steps.forwards:
            return "no attention was seen: call the pipeline inside `with trace(pipeline) as t:`"
        if not self._products:
            return (
                f"the denoiser ran {self._steps.forwards} times, but at none of the sampler steps the plan looks at "
                f"({self._steps.chosen}); use CapturePlan(sampler_steps=None)"
            )
        return (
            f"{self._products} attention products were seen, but the family {self.family.name!r} found reference tokens in "
            "none: was the pipeline called with a reference, and is its scale above 0?"
        )

    def _is_still_the_family(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the first forward: some pipelines change their denoiser at the beginning of a call."""
        self._handles.pop().remove()
        check_still_found(self.family, self.denoiser)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _in_backward():  # gradient checkpointing runs the forward a second time
            return
        arguments = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        arguments = {**arguments.pop("kwargs", {}), **arguments}
        self._arguments = arguments if self._steps.advance(arguments) else None
        if self._arguments is not None and not self._looking:
            self._look()

    def _look(self) -> None:
        """Hooks on the attention modules, for one forward call of the denoiser: elsewhere they carry none."""
        for name, module in self._modules.items():
            self._looking.append(module.register_forward_pre_hook(partial(self._before_module, name)))
            self._looking.append(module.register_forward_hook(self._after_module, always_call=True))
            for part in ("to_q", "to_k") if self.family.projections else ():
                if isinstance(getattr(module, part, None), nn.Module):
                    hook = partial(self._projected, part)
                    self._looking.append(getattr(module, part).register_forward_hook(hook))

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._arguments = None
        _remove(self._looking)

    def _before_module(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._arguments is not None:
            self._running.append(ModuleRun(name, module, self._layout, self._observe))
            self._running[-1].__enter__()

    def _projected(self, part: str, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        if self._running and not self._running[-1].products:
            self._running[-1].projected[part] = output

    def _after_module(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not (self._running and self._running[-1].module is module):
            return
        run = self._running.pop()
        run.__exit__(None, None, None)
        seen = run.products or output is None or (self.family.projections and run.use_projections())
        if run.error is not None:
            raise run.error
        if not seen:
            raise NothingCaptured(bypassed(run))
        self._products += run.products
        if run.branches and run.plain:
            self._add_branch_shares(run)

    def _layout(self, run: ModuleRun, query_tokens: int, key_tokens: int) -> Layout | None:
        """Where the reference sits in the product that is about to be formed."""
        assert self._arguments is not None
        product = Product(
            layer=run.name,
            module=run.module,
            arguments=self._arguments,
            forward=self._steps.forward,
            repeat=self._steps.repeat,
            call=run.products,
            query_tokens=query_tokens,
            key_tokens=key_tokens,
            read=self._read,
        )
        return self.family.layout(product)

    def _observe(self, run: ModuleRun, seen: SeenProduct, layout: Layout | None) -> None:
        if layout is None:
            if seen.output is not None:
                run.plain.append(seen.output)
            return
        if layout.branch_scale is not None and seen.output is not None:
            run.branches.append((layout, seen.output))
        heads = self._weights(run.name, seen.query.shape[1])
        mask = None if seen.mask is None else self._own_mask(run, seen.mask, layout)
        q, keys = seen.query[layout.conditional][:, :, layout.generated], seen.key[layout.conditional]
        chosen = tuple(heads)
        whole = whole_normaliser(seen, q, keys, layout, chosen, mask) if layout.joint else None
        inside = self._region.weight(layout.generated_grid, len(q), q.device)
        for number, reference in layout.references.items():
            k = keys[:, :, reference.tokens]
            accumulator = self._accumulators.setdefault(number, Accumulator(self.plan))
            grids = layout.generated_grid, reference.grid
            accumulator.expect(run.name, grids, heads, images=len(q))
            own = accumulator, run.name, heads, inside
            mass = None if whole is None else partial(_add_mass_by, *own, whole)
            self._pending.add(
                Waiting(
                    accumulator=accumulator,
                    layer=run.name,
                    step=self._steps.step,
                    grids=grids,
                    heads=heads,
                    all_heads=q.shape[1],
                    product=LookedAt(
                        q_BNGH=taken_heads(q, chosen),
                        k_BNRH=taken_heads(k, keys_of(chosen, q, k)),
                        scale=q.shape[3] ** -0.5 if seen.scale is None else seen.scale,
                        query_weight_BG=inside,
                        # the mask is of the pair's own reference, the first
                        key_weight_BR=self._object.weight(reference.grid, len(q), q.device) if number == 0 else None,
                    ),
                    then=mass,
                )
            )
        if layout.joint and whole is None:
            self._without_normaliser.setdefault(run.name)
            tokens = [r.tokens for r in layout.references.values()]
            mass_RBNG = reference_mass(
                q, keys, tokens, heads=chosen, scale=seen.scale, mask=mask, buffers=self._buffers
            )
            for number, mass_BNG in zip(layout.references, mass_RBNG, strict=True):
                _add_mass(self._accumulators[number], run.name, heads, inside, mass_BNG)

    def _own_mask(self, run: ModuleRun, mask: torch.Tensor, layout: Layout) -> torch.Tensor:
        """The mask's part for the conditional rows and the generated tokens, read once for each product of a forward call."""
        own = mask[layout.conditional] if mask.shape[0] > 1 else mask
        own = own[:, :, layout.generated] if own.shape[2] > 1 else own
        key = run.name, run.products, self._steps.forward, own.shape
        if key not in self._read:
            self._read[key] = check_mask(own, layout, run.name)
        return own[:, :1] if self._read[key] else own

    def _add_branch_shares(self, run: ModuleRun) -> None:
        """Norm of each image branch's output over that of all branches, decoupled cross-attention's reference mass."""
        outputs = [*((1, o) for o in run.plain), *((layout.branch_scale, o) for layout, o in run.branches)]
        for own, (layout, _) in enumerate(run.branches, len(run.plain)):
            share = branch_share(outputs, own, (layout.conditional, layout.generated))
            for number in layout.references:
                self._accumulators[number].add_share(run.name, "branch_share", share)

    def _weights(self, layer: str, count: int) -> Mapping[int, float]:
        if self._heads is None:
            return dict.fromkeys(range(count), 1.0)
        if layer not in self._heads:
            raise UnsupportedModel(
                f"the stored choice of heads has no layer {layer!r}; it was made for another model or plan. "
                "Start a new baseline."
            )
        return self._heads[layer]


def _add_mass_by(
    accumulator: Accumulator,
    layer: str,
    heads: Mapping[int, float],
    inside_BG: torch.Tensor | None,
    whole_BNG: torch.Tensor,
    found: Attribution,
) -> None:
    _add_mass(accumulator, layer, heads, inside_BG, mass_of(found.log_normaliser_BNG, whole_BNG))


def _add_mass(
    accumulator: Accumulator,
    layer: str,
    heads: Mapping[int, float],
    inside_BG: torch.Tensor | None,
    mass_BNG: torch.Tensor,
) -> None:
    mass_BG = shares(tuple(heads.values()), mass_BNG.device) @ mass_BNG
    for name, mean_B in mass_means(mass_BG, inside_BG).items():
        accumulator.add_share(layer, name, mean_B)


def find_denoiser(pipeline: Any) -> nn.Module:
    """The network that removes noise: the pipeline's `unet` (OOTDiffusion: `unet_vton`), `transformer`, `decoder` (UnCLIP)
    or, in latent diffusion code, `model.diffusion_model`; or the module itself.

    Raises:
        UnsupportedModel: there is none.
    """
    for name in ("unet", "unet_vton", "transformer", "decoder"):
        module = getattr(pipeline, name, None)
        if isinstance(module, nn.Module):
            return getattr(module, "_orig_mod", module)
    inner = getattr(getattr(pipeline, "model", None), "diffusion_model", None)  # latent diffusion code before diffusers
    if isinstance(inner, nn.Module):
        return getattr(inner, "_orig_mod", inner)
    if isinstance(pipeline, nn.Module):
        return getattr(pipeline, "_orig_mod", pipeline)
    name = type(pipeline).__name__
    sampled = getattr(getattr(getattr(pipeline, "model", None), "model", None), "diffusion_model", None)
    if isinstance(sampled, nn.Module):
        raise UnsupportedModel(f"{name} is a sampler of latent diffusion code: pass its model, trace(sampler.model)")
    raise UnsupportedModel(
        f"{name} has neither a unet nor a transformer; pass a diffusers pipeline or the denoiser itself"
    )


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _remove(handles: list[Any]) -> None:
    while handles:
        handles.pop().remove()
