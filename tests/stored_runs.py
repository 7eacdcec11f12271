"""Small runs and baselines on disk, written as a training would write them, without a model. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined
from i2am_debug.pairs.pair import ValidationPair
from i2am_debug.store.evaluation_file import write_evaluation
from i2am_debug.store.run_store import RunStore

COUNT = 10
COPYING = "layer/up/imacs_r_hole"
Columns = Mapping[str, Sequence[Any]]


def column(level: float, *, spread: float = 0.05, count: int = COUNT) -> tuple[float, ...]:
    """Values around `level`, half of them above and half below, their mean exactly in the middle."""
    return tuple(float(level * (1 + spread * x)) for x in np.linspace(-1, 1, count))


def healthy(count: int = COUNT) -> dict[str, tuple[Any, ...]]:
    """The figures that the default rules look at, and a few more."""
    levels = {
        "imacs_g": 0.3,
        "imacs_g_centred": 0.4,
        "imacs_r": 0.25,
        COPYING: 0.4,
        "attention_information": 2.0,
        "reference_gap": 0.06,
        "loss": 0.02,
    }
    columns: dict[str, tuple[Any, ...]] = {tag: column(level, count=count) for tag, level in levels.items()}
    columns["branch_share"] = columns["reference_mass"] = (Undefined("not in this family"),) * count
    columns["drift/js_r2g"] = columns["drift/js_g2r"] = (Undefined("no baseline"),) * count
    return columns


def _at(step: int, columns: Columns) -> dict[str, tuple[Any, ...]]:
    """No two evaluations of a training are the same to the last bit."""
    changes = {tag: tuple(v * (1 + 1e-9 * step) for v in columns[tag]) for tag in ("loss", "attention_information")}
    return {**columns, **changes}


def evaluation(step: int = 0, changed: Columns | None = None, *, count: int = COUNT, **options: Any) -> Evaluation:
    """A healthy evaluation, but for the figures `changed`."""
    given: dict[str, Any] = {
        "global_step": step,
        "pairs": tuple(f"pair {i}" for i in range(count)),
        "figures": {
            **_at(step, healthy(count)),
            **{tag: tuple(values) for tag, values in (changed or {}).items()},
        },
        "errors": {},
        "layers": ("down", "up"),
        "copying_layer": "up",
        "reference_lines": {},
        "fingerprint": {"pairs": [f"{i:012x}" for i in range(count)], "seed": 0, "plan": {"heads": 64}},
    }
    return Evaluation(**{**given, **options})


def sick(step: int = 100, *, count: int = COUNT, **options: Any) -> Evaluation:
    """One whose reference gap has fallen to a tenth."""
    return evaluation(step, {"reference_gap": column(0.006, count=count)}, count=count, **options)


def maps(count: int = COUNT, *, peak: int = 0, names: Sequence[str] = ("r2g", "g2r")) -> dict[str, np.ndarray]:
    """Unified maps of 4 by 4 tokens, all of whose mass lies on one token."""
    one = np.zeros((4, 4), dtype=np.float32)
    one.flat[peak] = 1
    return {f"{i}/{name}/unified": one for i in range(count) for name in names}


def generated(count: int = COUNT) -> dict[str, np.ndarray]:
    """Generated pictures in their stored form."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 60, 60)).save(buffer, "PNG")
    return {f"{i}/generated": np.frombuffer(buffer.getvalue(), dtype=np.uint8) for i in range(count)}


def pairs(names: Iterable[str], *, masks: bool = True) -> list[ValidationPair]:
    """The pictures of validation pairs."""
    half = np.zeros((32, 32), dtype=bool)
    half[8:24, 8:24] = True
    of_masks: dict[str, Any] = {"mask": half, "reference_mask": half} if masks else {}
    picture = Image.new("RGB", (32, 32), (60, 120, 200))
    return [ValidationPair(name=name, reference=picture, target=picture, **of_masks) for name in names]


def write_run(
    folder: Path,
    evaluations: Sequence[Evaluation],
    arrays: Sequence[Mapping[str, np.ndarray]] | None = None,
    *,
    pictures: bool = False,
) -> Path:
    """A run's folder. `arrays`: of each evaluation; by default its maps, all alike."""
    store = RunStore(folder)
    for i, one in enumerate(evaluations):
        store.write(one, maps(len(one.pairs)) if arrays is None else arrays[i], {})
        if pictures:
            store.write_pairs(one, pairs(one.pairs))
    return folder


def write_baseline(path: Path, one: Evaluation, arrays: Mapping[str, np.ndarray] | None = None) -> Path:
    """A baseline's file."""
    write_evaluation(path, one, maps(len(one.pairs)) if arrays is None else arrays, {})
    return path


def mark(run: Path) -> Path:
    """The event file by which TensorBoard knows a run of ours."""
    from i2am_debug.callbacks.trackers import marker
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run))
    writer.add_event(Event(step=0, wall_time=1.0, summary=marker()))
    writer.close()
    return run
