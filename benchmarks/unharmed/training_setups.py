"""The ways people train, on the tiny model: what each does before the first step, in a step, and around an evaluation."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset
from training import Run

from i2am_debug.demo.inpainting.pairs import PairBatch, make_batch

Look = Callable[[int], None]
"""What the script calls when a (micro-)step is done: the callback's `on_step_end`, or nothing."""


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """One way to train."""

    name: str
    adapt: Callable[[Run], None] = lambda run: None
    """Changes the model before it is prepared."""
    accelerator: dict[str, Any] = field(default_factory=dict)
    """Settings of the `Accelerator`."""
    begin: Callable[[Run], None] = lambda run: None
    """Sets up what a step needs; before the first one."""
    train: Callable[[Run, int, Look], list[torch.Tensor]] = lambda run, steps, look: plainly(run, steps, look)
    """Runs so many (micro-)steps; returns their losses."""
    pipeline: Callable[[Run], Any] = lambda run: run.pipeline
    """What the callback gets as `pipeline=`: a pipeline, or a function that builds one."""
    in_short_form: bool = True
    is_slow: bool = False
    """Whether a case takes minutes; the long form then tries one way only."""
    unavailable: Callable[[], str] = lambda: ""
    """Why it can't be run here; empty where it can."""


# -- loops -----------------------------------------------------------------------------------------------------------


def step(run: Run, loss: torch.Tensor) -> torch.Tensor:
    run.accelerator.backward(loss)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return loss.detach().clone()


def plainly(run: Run, steps: int, look: Look) -> list[torch.Tensor]:
    losses = []
    for number in range(1, steps + 1):
        losses.append(step(run, run.loss()))
        look(number)
    return losses


def under_autocast(run: Run, steps: int, look: Look) -> list[torch.Tensor]:
    """Forward, evaluation and another forward under one autocast, whose cache of cast weights they share."""
    losses = []
    for number in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16):
            first = run.loss()
            look(number)
            loss = first + run.loss()
        losses.append(step(run, loss))
    return losses


def accumulating(where: str, run: Run, steps: int, look: Look) -> list[torch.Tensor]:
    """Two micro-steps an optimizer step; evaluated after it, inside its context, or while gradients are pending."""
    losses, done = [], 0
    for micro in range(2 * steps):
        with run.accelerator.accumulate(run.unet, run.encoder):
            losses.append(step(run, run.loss()))
            pending = not run.accelerator.sync_gradients
            done += not pending
            assert pending == any(p.grad is not None for p in run.unet.parameters()), micro
            if where == "inside" and not pending:
                look(done)
        if (where == "after" and not pending) or (where == "pending" and pending):
            look(done + pending)
    return losses


def with_averages(run: Run, steps: int, look: Look) -> list[torch.Tensor]:
    """The averages stand in for the weights while the callback is called, as official scripts do for their validation."""
    parameters = list(run.pipeline.unet.parameters())
    losses = []
    for number in range(1, steps + 1):
        losses.append(step(run, run.loss()))
        run.averages.step(parameters)
        run.averages.store(parameters)
        run.averages.copy_to(parameters)
        look(number)
        run.averages.restore(parameters)
    return losses


def from_a_loader(run: Run, steps: int, look: Look) -> list[torch.Tensor]:
    losses: list[torch.Tensor] = []
    while len(losses) < steps:
        for batch in run.loader:
            losses.append(step(run, run.loss(PairBatch(**batch))))
            look(len(losses))
            if len(losses) == steps:
                break
    return losses


class DrawnPairs(Dataset):
    """Pairs with noise out of the worker's own random numbers, which start from the main process's."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = make_batch(1, torch.Generator().manual_seed(index))
        one = {name: value[0] for name, value in vars(batch).items()}
        return {**one, "target_B3SS": one["target_B3SS"] + 0.01 * torch.randn(3, 32, 32)}


def loader(persistent: bool, run: Run) -> None:
    run.loader = run.accelerator.prepare(
        DataLoader(DrawnPairs(), batch_size=2, shuffle=True, num_workers=2, persistent_workers=persistent)
    )


# -- models ----------------------------------------------------------------------------------------------------------


def averages(run: Run) -> None:
    run.averages = EMAModel(run.pipeline.unet.parameters(), decay=0.5)


def partly_in_eval(run: Run) -> None:
    run.unet.mid_block.eval(), run.unet.down_blocks[0].eval(), run.encoder.block.eval()


def partly_frozen(run: Run) -> None:
    run.unet.down_blocks.requires_grad_(False), run.encoder.positions.requires_grad_(False)


def shared_modules(run: Run) -> None:
    """One module at two places, and one parameter in two models."""
    run.unet.down_blocks[1].attentions[0] = run.unet.mid_block.attentions[0]
    run.encoder.norm.weight = run.unet.mid_block.attentions[0].transformer_blocks[0].norm1.weight


def lora(run: Run) -> None:
    """Two adapters, one of them active and trained."""
    from peft import LoraConfig

    run.unet.requires_grad_(False)
    for name in ("one", "two"):
        config = LoraConfig(r=2, lora_dropout=0.1, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
        run.unet.add_adapter(config, name)
    run.unet.set_adapters(["one"])


def compiled(backend: str, run: Run) -> None:
    torch._dynamo.reset()
    run.unet = torch.compile(run.unet, backend=backend, dynamic=False)


def compiled_for_both(backend: str, run: Run) -> None:
    compiled(backend, run)
    run.pipeline.unet = run.unet


def compiled_in_place(backend: str, run: Run) -> None:
    torch._dynamo.reset()
    run.unet.compile(backend=backend, dynamic=False)


def no_peft() -> str:
    try:
        import peft  # noqa: F401
    except ImportError:
        return "peft is not installed"
    return ""


def no_compiler() -> str:
    return "" if shutil.which("g++") or shutil.which("c++") or shutil.which("clang++") else "no C++ compiler"


# -- pipelines -------------------------------------------------------------------------------------------------------


def _around(run: Run, unet: Any) -> Any:
    torch.rand(3)  # building one draws random numbers
    return type(run.pipeline)(unet, run.pipeline.reference_encoder, copy.deepcopy(run.pipeline.scheduler))


def of_averages(run: Run) -> Any:
    def build() -> Any:
        unet = copy.deepcopy(run.accelerator.unwrap_model(run.unet))
        run.averages.copy_to(unet.parameters())
        return _around(run, unet)

    return build


def touched(touch: Callable[[Any], Any], run: Run) -> Any:
    """The run's own pipeline, to which something is done that nobody undoes."""

    def build() -> Any:
        touch(run.pipeline)
        return run.pipeline

    return build


def another_scheduler(pipeline: Any) -> None:
    pipeline.scheduler.set_timesteps(3)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")


def _averaging(run: Run, steps: int, look: Look) -> list[torch.Tensor]:
    def average_and_look(number: int) -> None:
        run.averages.step(run.pipeline.unet.parameters())
        look(number)

    return plainly(run, steps, average_and_look)


def _all() -> Iterator[SetUp]:
    yield SetUp(name="plain")
    yield SetUp(name="bf16", accelerator={"mixed_precision": "bf16"})
    yield SetUp(name="bf16, inside autocast", train=under_autocast)
    for where in ("after", "inside", "pending"):
        yield SetUp(
            name=f"accumulation, {where}",
            accelerator={"gradient_accumulation_steps": 2},
            train=partial(accumulating, where),
            in_short_form=where != "inside",  # of the three the one between
        )
    yield SetUp(name="EMA swapped by the script", begin=averages, train=with_averages)
    yield SetUp(name="EMA in the pipeline", begin=averages, train=_averaging, pipeline=of_averages)
    adapters = {
        "LoRA": lambda p: None,
        "LoRA, several looked at": lambda p: p.unet.set_adapters(["one", "two"], [0.5, 0.25]),
        "LoRA, disabled": lambda p: p.unet.disable_adapters(),
        "LoRA, fused safely": lambda p: p.unet.fuse_lora(safe_fusing=True),
    }
    for name, touch in adapters.items():
        short = name != "LoRA, disabled"  # as the plain one
        yield SetUp(name=name, adapt=lora, pipeline=partial(touched, touch), unavailable=no_peft, in_short_form=short)
    yield SetUp(name="to bfloat16 in the pipeline", pipeline=partial(touched, lambda p: p.to(torch.bfloat16)))
    yield SetUp(name="another scheduler in the pipeline", pipeline=partial(touched, another_scheduler))
    yield SetUp(name="checkpointing", adapt=lambda run: run.unet.enable_gradient_checkpointing())
    yield SetUp(name="parts in eval", adapt=partly_in_eval)
    yield SetUp(name="partly frozen", adapt=partly_frozen)
    yield SetUp(name="shared modules", adapt=shared_modules)
    yield SetUp(name="workers", begin=partial(loader, False), train=from_a_loader, in_short_form=False)
    yield SetUp(name="workers, persistent", begin=partial(loader, True), train=from_a_loader)
    for backend, check in (("eager", lambda: ""), ("inductor", no_compiler)):
        hows = {
            "torch.compile": compiled,
            "torch.compile, in the pipeline too": compiled_for_both,
            "module.compile": compiled_in_place,
        }
        for name, how in hows.items():
            yield SetUp(
                name=f"{name}, {backend}",
                adapt=partial(how, backend),
                in_short_form=(how, backend) == (compiled_for_both, "eager"),  # the others take a minute or more
                is_slow=backend == "inductor",
                unavailable=check,
            )


SET_UPS = tuple(_all())


def new_run(set_up: SetUp, folder: Any) -> Run:
    """The same one each time; Accelerate's settings are of one per process, so they are made anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    run = Run(folder, tracker=False, adapt=set_up.adapt, **set_up.accelerator)
    set_up.begin(run)
    return run
