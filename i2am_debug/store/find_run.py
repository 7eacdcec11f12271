"""Which run, and which of its evaluations, a person means."""

from __future__ import annotations

from pathlib import Path

from .files import PLUGIN_NAME
from .run_store import RunStore, Stored


def find_store(folder: str | Path) -> RunStore:
    """The run in a folder: the run's own, its plugin folder, or one with a single run somewhere below.

    Raises:
        ValueError: no such folder, one that may not be read, no run in it, or several; names them.
    """
    try:
        return _found(Path(folder))
    except OSError as error:
        raise ValueError(f"{str(folder)[:300]} can't be searched for a run: {error.strerror}") from None


def _found(folder: Path) -> RunStore:
    if not folder.exists():
        raise ValueError(f"there is no run and no evaluation at {folder}")
    real = folder.resolve()
    if real.name == PLUGIN_NAME and (real / "index.jsonl").is_file():
        return RunStore(real.parent.parent)
    if real.name == "plugins" and RunStore(real.parent).index.is_file():
        return RunStore(real.parent)
    if RunStore(folder).index.is_file():
        return RunStore(folder)
    runs = sorted(index.parent.parent.parent for index in folder.rglob(f"plugins/{PLUGIN_NAME}/index.jsonl"))
    if not runs:
        raise ValueError(f"{folder} holds no run: there is no plugins/{PLUGIN_NAME}/index.jsonl in or below it")
    if len(runs) > 1:
        listed = ", ".join(map(str, runs[:8])) + (f", … ({len(runs)} in all)" if len(runs) > 8 else "")
        raise ValueError(f"{folder} holds several runs; say which: {listed}")
    return RunStore(runs[0])


def find_evaluation(store: RunStore, step: int | None) -> Stored:
    """The run's evaluation at a step, by default the last one.

    Raises:
        ValueError: the run has no evaluation, or none at this step; names those it has.
    """
    return find_evaluations(store, step)[-1]


def find_evaluations(store: RunStore, step: int | None) -> list[Stored]:
    """The run's evaluations up to one at a step, by default up to the last one.

    Raises:
        ValueError: as `find_evaluation`.
    """
    everything = store.evaluations()
    if not everything:
        raise ValueError(f"{store.folder} holds no evaluation yet")
    steps = [s.global_step for s in everything]
    if step is None:
        return everything
    if step in steps:
        return everything[: steps.index(step) + 1]
    listed = ", ".join(map(str, steps if len(steps) <= 8 else [*steps[:4], "…", *steps[-4:]]))
    raise ValueError(f"{store.folder} has no evaluation at step {step}; it has {listed}")
