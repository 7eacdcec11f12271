"""What can go wrong on one of several processes, one scenario after another in one training; run by `several_processes`.

A run without the callback comes first; after every scenario one more step is trained, and the weights are compared with its.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, gather_object, set_seed
from i2am_debug.callbacks import I2AMCallback, checkpoints
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training import few_probes, untrained_pipeline

from i2am_debug import CapturePlan
from i2am_debug.demo.inpainting.model import denoising_loss
from i2am_debug.demo.inpainting.pairs import make_batch, validation_pairs
from i2am_debug.demo.inpainting.training import teacher_forced
from i2am_debug.demo.pixel_vae import LATENT_CHANNELS
from i2am_debug.errors import CannotForce
from i2am_debug.evaluation import ways
from i2am_debug.store.run_store import RunStore

SECONDS_A_SCENARIO = 40  # a hang is longer; the longest takes 5 on a loaded machine


class Run:
    """A tiny fine-tune, its model whole on every process ("ddp") or shared out ("fsdp2", "plugin")."""

    def __init__(self, kind: str) -> None:
        self.accelerator = Accelerator(cpu=True)
        set_seed(3, device_specific=True)
        self.rank = self.accelerator.process_index
        self.pipeline = untrained_pipeline(dropout=0.1)
        set_seed(4, device_specific=True)  # dropout and noise are each process's own
        self.draws = torch.Generator().manual_seed(self.rank)
        self.unet, self.encoder = self.pipeline.unet, self.pipeline.reference_encoder
        if kind == "fsdp2":
            for part in (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks, self.unet):
                fully_shard(part)
            for part in (self.encoder.block, self.encoder):
                fully_shard(part)
        self.optimizer = torch.optim.AdamW([*self.unet.parameters(), *self.encoder.parameters()], lr=1e-3, foreach=True)
        if kind == "plugin":  # Accelerate's own way of preparing; it turns it on where there are accelerators only
            self.encoder.requires_grad_(False)
            self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-3, foreach=True)
            plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2,
                reshard_after_forward=True,
                auto_wrap_policy="transformer_based_wrap",
                transformer_cls_names_to_wrap=["BasicTransformerBlock", "ResnetBlock2D"],
            )
            self.accelerator.state.fsdp_plugin = plugin
            self.accelerator.state.distributed_type = DistributedType.FSDP
            self.unet, self.optimizer = self.accelerator.prepare(self.unet, self.optimizer)
            self.pipeline.unet = self.unet
        if kind == "ddp":
            self.unet, self.encoder, self.optimizer = self.accelerator.prepare(self.unet, self.encoder, self.optimizer)
        self.unet.train(), self.encoder.train()

    def train(self, before_the_optimizer: Callable[[], Any] = lambda: None) -> None:
        batch = make_batch(2, self.draws)
        noise, timesteps = torch.randn(2, LATENT_CHANNELS, 16, 16), torch.randint(0, 1000, (2,))
        tokens = self.encoder(batch.reference_B3SS)
        inputs = (self.pipeline.scheduler, batch.target_B3SS, batch.hole_B1SS, timesteps, noise)
        self.accelerator.backward(denoising_loss(self.unet, tokens, *inputs, hole_weight=1.0).mean())
        before_the_optimizer()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, torch.Tensor]:
        """This process's weights and random state."""
        modules = {"unet": self.pipeline.unet, "encoder": self.pipeline.reference_encoder}
        weights = {f"{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}
        local = {k: (v.to_local() if isinstance(v, DTensor) else v).clone() for k, v in weights.items()}
        return {**local, "random": torch.get_rng_state()}

    def callback(self, folder: Path, **changes: Any) -> I2AMCallback:
        settings: dict[str, Any] = {
            "pipeline": self.pipeline,
            "pairs": validation_pairs(3, seed=11),
            "every_n_steps": 1,
            "plan": CapturePlan(sampler_steps=1),  # three forwards a pair: its own reference, another one, a blank one
            "way": "teacher_forcing",
            "pictures": 0,
            "panels": 0,
            "num_inference_steps": 2,
            "disable_progress_bar": True,
        }
        return I2AMCallback(self.accelerator, logdir=folder, **{**settings, **changes})


@contextmanager
def nothing(run: Run) -> Iterator[None]:
    yield


def raised_in(part: str, at: int, error: Exception | None = None) -> Callable[[Run], Any]:
    """On the last process, in a module's `at`-th forward from now."""

    @contextmanager
    def fault(run: Run) -> Iterator[None]:
        left = [at]

        def count(*_: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise error or RuntimeError("planted")

        owner, _, path = part.partition(".")
        module = getattr(run.pipeline, owner).get_submodule(path)
        handle = module.register_forward_pre_hook(count) if is_last(run) else None
        yield
        assert not is_last(run) or left[0] <= 0, "the fault never fired"
        if handle is not None:
            handle.remove()

    return fault


@contextmanager
def raised_in_a_collective(run: Run) -> Iterator[None]:
    """On the last process, out of memory where a block's weights should be gathered."""
    if is_last(run):
        (group,) = run.pipeline.unet.up_blocks[0]._get_fsdp_state()._fsdp_param_groups
        left = [torch.OutOfMemoryError("planted")]
        with mock.patch.object(
            group, "unshard", lambda *given: raised(left.pop()) if left else type(group).unshard(group)
        ):
            yield
        assert not left, "the fault never fired"
    else:
        yield


def raised(error: Exception) -> Any:
    raise error


def broken(target: Any, name: str, error: Exception, where: Callable[[Run], bool]) -> Callable[[Run], Any]:
    @contextmanager
    def fault(run: Run) -> Iterator[None]:
        if not where(run):
            yield
            return
        with mock.patch.object(target, name, side_effect=error) as called:
            yield
        assert called.called, "the fault never fired"

    return fault


def is_last(run: Run) -> bool:
    return run.rank == run.accelerator.num_processes - 1


def is_main(run: Run) -> bool:
    return run.rank == 0


# -- scenarios: each evaluates at `step`, one way or another ----------------------------------------------------------


def evaluated(fault: Callable[[Run], Any] = nothing, **changes: Any) -> Callable[[Run, Path, int], I2AMCallback]:
    def scenario(run: Run, folder: Path, step: int) -> I2AMCallback:
        callback = run.callback(folder, **changes)
        with fault(run):
            callback.on_step_end(step)
        return callback

    return scenario


def in_the_middle(run: Run, folder: Path, step: int) -> I2AMCallback:
    """Between backward and optimizer, which a healthy look must not disturb, nor a failing one."""
    callback = run.callback(folder)
    run.train(lambda: callback.on_step_end(step))
    with raised_in("unet.mid_block", 3)(run):
        run.train(lambda: callback.on_step_end(step + 1))
    return callback


def by_a_loss(run: Run, folder: Path, step: int) -> I2AMCallback:
    return evaluated(way=None, loss_fn=teacher_forced(run.pipeline))(run, folder, step)


def out_of_memory_by_a_loss(run: Run, folder: Path, step: int) -> I2AMCallback:
    """At the second evaluation of a run, whose batches draw their noise together."""
    callback = run.callback(folder, way=None, loss_fn=teacher_forced(run.pipeline), batch_size=2)
    callback.on_step_end(step)
    with raised_in("unet.down_blocks.1", 2, torch.OutOfMemoryError("planted"))(run):
        callback.on_step_end(step + 1)
    return callback


def factory_raises(run: Run, folder: Path, step: int) -> I2AMCallback:
    def build() -> Any:
        if is_last(run) and not whole:
            raise ValueError("planted in the factory")
        return run.pipeline

    whole: list[bool] = []
    callback = run.callback(folder, pipeline=build)
    try:
        callback.on_train_begin(step)
    except Exception as error:
        logging.getLogger("i2am_debug").warning("on_train_begin raised %s: %s", type(error).__name__, error)
    callback.on_step_end(step)
    whole.append(True)
    return callback


def before_a_forward(run: Run, folder: Path, step: int) -> I2AMCallback:
    callback = run.callback(folder)
    with broken(callback.monitor.evaluator, "observe", RuntimeError("planted"), is_last)(run):
        callback.on_step_end(step)
    return callback


def more_forwards(run: Run, folder: Path, step: int) -> I2AMCallback:
    loss_fn = teacher_forced(run.pipeline)

    def greedy(*given: Any, **named: Any) -> torch.Tensor:
        if is_last(run) and not whole:
            loss_fn(*given, **named)
        return loss_fn(*given, **named)

    whole: list[bool] = []
    callback = run.callback(folder, loss_fn=greedy, way=None)
    callback.on_step_end(step)
    whole.append(True)
    return callback


def trial_fails(run: Run, folder: Path, step: int) -> I2AMCallback:
    callback = run.callback(folder, way=None)
    with broken(ways, "check_teacher_forcing", CannotForce("planted: no truth here"), is_last)(run):
        callback.on_train_begin(step)
    return callback


def trial_fails_inside(run: Run, folder: Path, step: int) -> I2AMCallback:
    callback = run.callback(folder, way=None)
    with raised_in("unet.up_blocks.0", 2)(run):
        callback.on_train_begin(step)
    return callback


def begun_twice(run: Run, folder: Path, step: int) -> I2AMCallback:
    callback = run.callback(folder)
    callback.on_train_begin(step)
    callback.on_train_begin(step)
    return callback


def tracker_close_raises(run: Run, folder: Path, step: int) -> I2AMCallback:
    callback = run.callback(folder)
    callback.on_step_end(step)
    if is_main(run):
        callback.monitor.reporter._trackers.close = mock.Mock(side_effect=OSError("planted in close"))
    callback.on_train_end(step)
    return callback


def main_only(run: Run, folder: Path, step: int) -> I2AMCallback:
    callback = run.callback(folder)
    callback.monitor._processes._arrivals._patience = 1.0
    if is_main(run):
        callback.on_step_end(step)
    callback.monitor._processes._arrivals._patience = 60.0
    return callback


def main_only_by_budget(run: Run, folder: Path, step: int) -> I2AMCallback:
    callback = run.callback(folder, every_n_steps=None, budget=0.5)
    callback.monitor._processes._arrivals._patience = 1.0
    if is_main(run):
        for early in range(step + 100, step + 112):
            callback.on_step_end(early)
    callback.monitor._processes._arrivals._patience = 600.0
    return callback


def resumed(run: Run, folder: Path, step: int) -> I2AMCallback:
    """Saved by the main process alone, as scripts do, and loaded by all; where only the main process sees the file."""
    callback = run.callback(folder)
    callback.on_step_end(step)
    if is_main(run):
        run.accelerator.save_state(str(folder / "checkpoint"))
    run.accelerator.wait_for_everyone()
    callback.monitor.resume({})
    hidden = nothing(run) if is_main(run) else mock.patch.object(checkpoints, "read_state", side_effect=OSError)
    with hidden:
        run.accelerator.load_state(str(folder / "checkpoint"))
    assert callback.monitor._last_step == step
    callback.on_train_begin(step)
    return callback


SCENARIOS: dict[str, Callable[[Run, Path, int], I2AMCallback]] = {
    "healthy": evaluated(),
    "by a loss": by_a_loss,
    "in the middle": in_the_middle,
    "factory raises": factory_raises,
    "before a forward": before_a_forward,
    "inside at the first pair": evaluated(raised_in("unet.mid_block", 1)),
    "inside at the second pair": evaluated(raised_in("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2", 5)),
    "out of memory inside": evaluated(raised_in("unet.down_blocks.1", 2, torch.OutOfMemoryError("planted"))),
    "out of memory in a collective": evaluated(raised_in_a_collective),
    "out of memory with two pairs": evaluated(
        raised_in("unet.down_blocks.1", 4, torch.OutOfMemoryError("planted")), batch_size=2
    ),  # after two forwards of the trial
    "out of memory with two pairs, by a loss": out_of_memory_by_a_loss,
    "inside the encoder": evaluated(raised_in("reference_encoder.norm", 3)),
    "more forwards": more_forwards,
    "trial fails": trial_fails,
    "trial fails inside": trial_fails_inside,
    "main's write raises": evaluated(
        broken(RunStore, "write", OSError(28, "planted: no space"), is_main), synchronous=True
    ),
    "tracker's close raises": tracker_close_raises,
    "begun twice": begun_twice,
    "resumed": resumed,
    "main only": main_only,
    "main only by budget": main_only_by_budget,
}
NOT_FOR = {
    "out of memory in a collective": ("ddp", "plugin"),
    "more forwards": ("ddp",),
    "resumed": ("fsdp2", "plugin"),
}
"""Kinds of model that a scenario says nothing of."""
STEPS = {"in the middle": 2}  # trained inside of the scenario


class Told(logging.Handler):
    """What the log said since last asked."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def lines(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


def play(kind: str, folder: Path, names: list[str]) -> dict[str, Any]:
    """Scenario → of each process: what was logged, the evaluations, whether the weights are those of a run without callback."""
    names = [name for name in names if kind not in NOT_FOR.get(name, ())]
    expected, alone = [], Run(kind)
    for name in names:
        for _ in range(STEPS.get(name, 0) + 1):
            alone.train()
        expected.append(alone.state())
    run, told, found, step = Run(kind), Told(), {}, 0
    logging.getLogger("i2am_debug").addHandler(told)
    for name, weights in zip(names, expected, strict=True):
        print(f"{kind}: {name}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(SECONDS_A_SCENARIO, exit=True)
        step += 10
        callback = SCENARIOS[name](run, folder / kind / name.replace(" ", "_"), step)
        run.train()
        ours = run.state()
        same = ours.keys() == weights.keys() and all(torch.equal(ours[k], weights[k]) for k in weights)
        lines = told.lines()
        callback.monitor._last_step = None
        callback.on_step_end(step + 5)
        mine = {"log": lines, "log of the next": told.lines(), "same": same}
        mine["evaluations"] = [e.global_step for e in callback.history()]
        mine["way"] = getattr(callback.monitor.evaluator.chosen, "name", None)
        found[name] = gather_object([mine])
        faulthandler.cancel_dump_traceback_later()
    return found


def figures(folder: Path, kind: str, pairs: int) -> dict[str, Any]:
    """Of one evaluation of untrained weights: the same on however many processes."""
    with few_probes():
        return Run(kind).callback(folder, pairs=validation_pairs(pairs, seed=11)).evaluate(0).to_json()


if __name__ == "__main__":
    out, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    results: dict[str, Any] = {"played": {}, "figures": {}}
    for kind, names in asked.get("play", {}).items():
        with few_probes():
            results["played"][kind] = play(kind, out, list(SCENARIOS) if names == "all" else names)
    for kind, counts in asked.get("figures", {}).items():
        for count in counts:
            found = figures(out / f"figures_{kind}_{count}", kind, count)
            results["figures"].setdefault(kind, {})[count] = found
    if os.environ["RANK"] == "0":
        (out / "results.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)  # freeing DDP's modules at the end can hang in gloo's destructor, which is not what is tested here
