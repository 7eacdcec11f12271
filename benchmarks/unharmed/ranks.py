"""One of several processes fails, or stays away: nobody waits for ever, training goes on as if nobody had looked.

Every scenario of `tests/rank_scenarios.py` on two and four processes, the model whole on each (DDP) or shared out (FSDP2). The
short form takes two, and of each way to fail the kind of model that makes it hardest.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rank_scenarios import NOT_FOR, SCENARIOS, figures
from rank_scenarios import __file__ as script
from several_processes import forked

from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined

from .found import Found

KINDS = ("ddp", "fsdp2", "plugin")  # the plugin last: it can't be turned off again in a process
# Whole models do no otherwise than sharded ones but in what touches the model, and that is the same for all of them.
_WHOLE = (
    *("healthy", "by a loss", "resumed", "factory raises", "inside at the second pair"),
    *("main's write raises", "main only"),
)
_LONG: Mapping[int, Mapping[str, Sequence[str]]] = {
    2: {
        "ddp": _WHOLE,
        "fsdp2": tuple(SCENARIOS),
        "plugin": ("healthy", "inside at the second pair", "more forwards"),
    },
    4: {"fsdp2": ("inside at the first pair", "before a forward", "trial fails inside", "main only")},
}
_SHORT: Mapping[int, Mapping[str, Sequence[str]]] = {
    2: {
        "ddp": ("resumed", "main's write raises"),
        "fsdp2": (
            *("factory raises", "inside the encoder", "out of memory in a collective"),
            *("out of memory with two pairs", "more forwards", "main only by budget"),
        ),
        "plugin": ("healthy", "inside at the second pair"),
    },
}
_PAIRS = {True: {2: (7,), 4: (3, 7)}, False: {2: (7,)}}  # long → processes → pairs: unequal shares, too few

_SKIPPED = r"the evaluation at step \d+ failed (while .+)?and is skipped; training goes on: (\w+: )?"
_AWAY = _SKIPPED + r"1 of \d processes have come in 1 s; call on_train_begin, .* on every process, not under `if"
_UNEQUAL = _SKIPPED + r"the processes do not run the same forwards \(process 0 has ended; process 1 begins FSDP"
_TOLD = {  # scenario → what the process that fails (or misses the others) says, and what one of the others
    "in the middle": (_SKIPPED + "planted", _SKIPPED + "another process failed: RuntimeError: planted"),
    "factory raises": (
        _SKIPPED + "planted in the",
        _SKIPPED + "another process failed: ValueError: planted in the factory",
    ),
    "before a forward": (_SKIPPED + "planted", _SKIPPED + "another process failed: RuntimeError: planted"),
    "inside at the first pair": (_SKIPPED + "planted", _SKIPPED + "another process failed: RuntimeError: planted"),
    "inside at the second pair": (_SKIPPED + "planted", _SKIPPED + "another process failed: RuntimeError: planted"),
    "inside the encoder": (_SKIPPED + "planted", _SKIPPED + "another process failed: RuntimeError: planted"),
    "out of memory inside": (_SKIPPED + "planted", _SKIPPED + "another process failed: OutOfMemoryError: planted"),
    "out of memory in a collective": (
        _SKIPPED + "planted",
        _SKIPPED + "another process failed: OutOfMemoryError: planted",
    ),
    "out of memory with two pairs": (
        "",
        r"looking at 2 pairs at once ran out of memory \(planted\).* it is 1 at once.* figures stay comparable",
    ),
    "out of memory with two pairs, by a loss": (
        "",
        r"looking at 2 pairs at once ran out of memory \(planted\).* it is 1 at once.* not comparable with those before",
    ),
    "more forwards": (_UNEQUAL, _UNEQUAL),
    "trial fails": ("", "every pair is sampled, which is slow: .*planted: no truth here"),
    "trial fails inside": ("", "every pair is sampled, which is slow: the teacher-forced call raised .*planted"),
    "main's write raises": ("", "not everything could be done: writing the evaluation: OSError: .*planted: no space"),
    "tracker's close raises": ("", "closing the trackers: OSError: planted in close; training goes on"),
    "main only": ("", _AWAY),
    "main only by budget": ("", _AWAY),
}
_EVALUATED = {  # after the first step of a scenario; none where it failed
    **{name: [0, 5] for name in ("healthy", "by a loss", "in the middle", "begun twice", "resumed")},
    "out of memory with two pairs": [0, 5],
    "out of memory with two pairs, by a loss": [0, 1, 5],
    **{name: [0, 5] for name in ("trial fails", "trial fails inside", "tracker's close raises")},
    "main only by budget": [],
}


def measure(*, long: bool) -> Found:
    """`Found` with a row a scenario, kind of model and number of processes, and one for each evaluation's figures."""
    plays = _LONG if long else _SHORT
    rows, harm = [], []
    with tempfile.TemporaryDirectory() as folder:
        alone = {
            pairs: Evaluation.from_json(figures(Path(folder) / f"alone_{pairs}", "ddp", pairs)) for pairs in (3, 7)
        }
        for processes, play in plays.items():
            found = _ran(processes, play, _PAIRS[long][processes], Path(folder) / str(processes))
            for kind, name, wrong in _judged(found, play, alone, processes):
                rows.append({"processes": processes, "model": kind, "scenario": name, "result": wrong or "no harm"})
                harm += [f"{processes} processes, {kind}, {name}: {wrong}"] if wrong else []
    return Found(rows=rows, harm=harm, counted={"cases": len(rows)})


def _ran(processes: int, play: Mapping[str, Sequence[str]], pairs: Sequence[int], folder: Path) -> Any:
    """What the processes found. One start of them for many scenarios: it takes ten seconds."""
    folder.mkdir()
    of_one_kind = list(play) if len(play) == 1 else KINDS
    asked = {"play": {kind: list(names) for kind, names in play.items()}, "figures": dict.fromkeys(of_one_kind, pairs)}
    forked(processes, Path(script), folder, json.dumps(asked), seconds=600)
    return json.loads((folder / "results.json").read_text())


def _judged(
    found: Any, play: Mapping[str, Sequence[str]], alone: Mapping[int, Evaluation], processes: int
) -> Iterator[tuple[str, str, str]]:
    """(kind of model, case, what is wrong with it or nothing)."""
    for kind, names in play.items():
        for name in names:
            if kind not in NOT_FOR.get(name, ()):
                yield kind, name, "; ".join(of_scenario(name, found["played"][kind][name], processes))
    for kind, by_pairs in found["figures"].items():
        for pairs, figures_found in by_pairs.items():
            wrong = _other_figures(Evaluation.from_json(figures_found), alone[int(pairs)])
            yield kind, f"figures of {pairs} pairs", "; ".join(wrong)


def of_scenario(name: str, ranks: Sequence[Mapping[str, Any]], processes: int) -> Iterator[str]:
    """What went wrong in a scenario, from what each process found."""
    if len(ranks) != processes:
        yield f"{len(ranks)} processes have reported"
    if not all(rank["same"] for rank in ranks):
        yield "weights or random states are others than without us"
    if len({rank["way"] for rank in ranks}) != 1 or (name.startswith("trial") and ranks[0]["way"] != "sampling"):
        yield f"looked by {', '.join(str(rank['way']) for rank in ranks)}"
    failing, others = _TOLD.get(name, ("", ""))
    for rank, text in ((ranks[-1], failing), *((rank, others) for rank in ranks[: -1 if failing else 1])):
        lines = [line for line in rank["log"] if "too few to tell" not in line and "ALERT" not in line]
        if not (any(re.search(text, line, re.DOTALL) for line in lines) if text else not lines):
            yield f"told {lines}, expected {text!r}"
    if any("is skipped" in line for rank in ranks for line in rank["log of the next"]):
        yield "the next evaluation is skipped too"
    steps = ranks[0]["evaluations"]
    first = steps[0] // 10 * 10 if steps else 0
    if [step - first for step in steps] != _EVALUATED.get(name, [5]):
        yield f"evaluated at {steps}"


def _other_figures(ours: Evaluation, theirs: Evaluation) -> Iterator[str]:
    """In what an evaluation of several processes is not that of one."""
    if ours.pairs != theirs.pairs or ours.figures.keys() != theirs.figures.keys():
        yield f"{len(ours.pairs)} pairs and {len(ours.figures)} figures"
        return
    for tag, values in theirs.figures.items():
        for a, b in zip(values, ours.figures[tag], strict=True):
            undefined = isinstance(a, Undefined) or isinstance(b, Undefined)
            if (a != b) if undefined else not abs(float(a) - float(b)) <= 1e-6 * max(1.0, abs(float(a))):
                yield f"{tag} is {b}, of one process {a}"
                break
