"""Evaluations on disk: what is written is read back, is small, survives crashes and resumed runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from i2am_debug.alerts.alert import Alert
from i2am_debug.alerts.judge import Finding
from i2am_debug.errors import StoreError
from i2am_debug.figures.estimates import Estimate
from i2am_debug.figures.record import FORMAT, Evaluation
from i2am_debug.figures.values import Figure, Undefined
from i2am_debug.pairs.pair import ValidationPair
from i2am_debug.store import evaluation_file
from i2am_debug.store import run_store as store_module
from i2am_debug.store.evaluation_file import read_arrays, read_evaluation, read_figures
from i2am_debug.store.find_run import find_store
from i2am_debug.store.packing import unpack_picture
from i2am_debug.store.run_store import RunStore

NO_MASK = Undefined("no reference mask")
FINGERPRINT = {"pairs": ["1f", "2e"], "seed": 0, "plan": {"layers": ["*"]}}
READERS = [read_figures, read_evaluation]


def evaluation(step: int, imacs: float = 0.25, **changes: Any) -> Evaluation:
    given = {
        "global_step": step,
        "pairs": ("shirt", "dress"),
        "figures": {"imacs_g": (imacs, 1 / 3), "imacs_r": (NO_MASK, 0.1), "reference_gap": (NO_MASK, NO_MASK)},
        "errors": {"imacs_g": (0.01, NO_MASK)},
        "layers": ("up",),
        "copying_layer": NO_MASK,
        "reference_lines": {"imacs_g": {"random": -0.9}},
        "fingerprint": FINGERPRINT,
        "heads": {"up": {3: 2.5}},
        "margins": {"imacs_r": 0.05, "loss": "12.5%"},
        "seconds": 1.5,
    }
    return Evaluation(**{**given, **changes})


def of_pairs(count: int, figures: dict[str, tuple[Figure, ...]]) -> Evaluation:
    hashes = [f"{i:012x}" for i in range(count)]
    names = tuple(f"pair {i}" for i in range(count))
    return evaluation(7, pairs=names, figures=figures, errors={}, fingerprint={"pairs": hashes})


DROP = Finding(
    rule="imacs_g drop",
    kind="drop",
    severity="critical",
    figure="imacs_g",
    fired=True,
    against="baseline, step 0",
    before=Estimate(mean=0.5, low=0.4, high=0.6, pairs=8),
    now=Estimate(mean=0.1, low=None, high=None, pairs=1),
    change=Estimate(mean=0.4, low=1 / 3, high=0.5, pairs=8),
    allowed=0.15,
    p=1 / 256,
    pairs=("dress", "shirt"),
    since=50,
)
UNDEFINED = Finding(
    rule="undefined",
    kind="undefined",
    severity="warning",
    figure="loss",
    fired=True,
    words="is undefined for 2 of 8 pairs that had it: the loss is not finite",
    pairs=("shirt",),
)


def alert(step: int, **changes: Any) -> Alert:
    given = {"global_step": step, "baseline_step": 0, "fine_at": None, "findings": (DROP, UNDEFINED)}
    return Alert(**{**given, **changes})


def picture(side: int, seed: int = 6) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side + 2, 3), dtype=np.uint8))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def steps(run: RunStore) -> list[int]:
    return [s.global_step for s in run.evaluations()]


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "run")


@pytest.fixture(scope="module")
def packed() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays as the callback writes them, some of them rows, and the rows' grids."""
    rng = np.random.default_rng(1)

    def numbers(shape: tuple[int, ...], kind: Any) -> np.ndarray:
        return (rng.random(shape) * 255).astype(kind)

    arrays = {
        "0/r2g/unified": numbers((8, 6), np.float32),
        "0/g2r/unified": numbers((4, 5), np.float32),
        "0/r2g_centred/unified": numbers((8, 6), np.float32),
        "0/r2g/by_time": numbers((5, 8, 6), np.float16),
        "0/r2g/by_layer/layer.0": numbers((8, 6), np.float16),
        "0/generated": numbers((99,), np.uint8),
        "0/rows/unified": numbers((48, 20), np.uint8),
        "0/rows/unified/scale": numbers((48,), np.float32),
        "0/rows/by_layer/layer.0": numbers((48, 20), np.uint8),
        "0/rows/by_layer/layer.0/scale": numbers((48,), np.float32),
        "1/r2g/unified": numbers((8, 6), np.float32),
    }
    return arrays, {"0": {"unified": [[8, 6], [4, 5]], "by_layer/layer.0": [[8, 6], [4, 5]]}}


# -- the index and the file ------------------------------------------------------------------------------------------


def test_what_was_written_is_read_back(run: RunStore, packed: Any) -> None:
    arrays, grids = packed
    path = run.write(evaluation(12), arrays, grids)
    assert path == run.folder / "step_00000012.safetensors"
    assert run.folder.parts[-2:] == ("plugins", "i2am_debug")

    (stored,) = run.evaluations()
    assert (stored.global_step, stored.path) == (12, path)
    assert stored.evaluation == evaluation(12) and stored.evaluation.seconds == 1.5
    assert stored.comparable_id == evaluation(12).comparable_id

    read, unified = read_evaluation(path)
    assert read == read_figures(path) == evaluation(12)
    assert set(unified) == {"0/r2g", "0/g2r", "1/r2g"}  # the companions are other maps
    for name, found in unified.items():
        np.testing.assert_array_equal(found, arrays[f"{name}/unified"])

    on_disk = load_file(path)
    assert on_disk.keys() == arrays.keys()
    for name, value in arrays.items():
        assert on_disk[name].dtype == value.dtype
        np.testing.assert_array_equal(on_disk[name], value)
    with safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["grids"]) == json.loads(json.dumps(grids))


def test_undefined_stays_undefined_with_its_reason(run: RunStore, packed: Any) -> None:
    path = run.write(evaluation(1), *packed)
    for read in (run.evaluations()[0].evaluation, read_evaluation(path)[0]):
        assert read.figures["imacs_r"] == (NO_MASK, 0.1)
        assert read.mean("reference_gap") == NO_MASK
        assert read.errors["imacs_g"] == (0.01, NO_MASK)
        assert read.copying_layer == NO_MASK
    (stored,) = run.evaluations()
    assert stored.copying_layer == stored.mean("reference_gap") == stored.estimate("reference_gap") == NO_MASK


def test_evaluations_come_by_step_and_alerts_as_written(run: RunStore) -> None:
    assert run.evaluations() == [] and run.alerts() == []
    for step in (200, 0, 100):
        run.write(evaluation(step), {}, {})
    run.write_alert(alert(100))
    run.write_alert(alert(200))
    assert steps(run) == [0, 100, 200]
    assert run.alerts() == [alert(100), alert(200)]


def test_a_step_evaluated_again_replaces_the_old_one(run: RunStore) -> None:
    run.write(evaluation(0, 0.125), {"0/r2g/unified": np.zeros((1, 1), np.float32)}, {})
    run.write(evaluation(5), {}, {})
    path = run.write(evaluation(0, 0.875), {"0/r2g/unified": np.ones((1, 1), np.float32)}, {})
    assert steps(run) == [0, 5]
    assert run.evaluations()[0].evaluation.figures["imacs_g"][0] == 0.875
    assert run.evaluations()[0].mean("imacs_g") == pytest.approx((0.875 + 1 / 3) / 2)
    read, unified = read_evaluation(path)
    assert read.figures["imacs_g"][0] == 0.875 and unified["0/r2g"].item() == 1


# -- what the index knows without the files --------------------------------------------------------------------------


def test_means_and_intervals_are_known_without_the_file(run: RunStore) -> None:
    values = np.random.default_rng(2).random(12).tolist()
    written = of_pairs(12, {"imacs_g": tuple(values), "loss": (NO_MASK,) * 3 + tuple(values[3:])})
    run.write(written, {}, {}).unlink()
    (stored,) = run.evaluations()
    assert stored.mean("imacs_g") == pytest.approx(math.fsum(values) / 12, rel=1e-12)
    assert stored.mean("loss") == pytest.approx(math.fsum(values[3:]) / 9, rel=1e-12)
    assert stored.mean("imacs_q") == written.mean("imacs_q") == Undefined("not recorded")
    for tag, pairs in (("imacs_g", 12), ("loss", 9)):
        known, true = stored.estimate(tag), written.estimate(tag)
        assert isinstance(known, Estimate) and isinstance(true, Estimate)
        assert known.pairs == pairs
        assert (known.low, known.high) == pytest.approx((true.low, true.high), rel=1e-5)


def test_one_pair_has_a_mean_and_no_interval(run: RunStore) -> None:
    run.write(evaluation(1), {}, {})
    (stored,) = run.evaluations()
    assert stored.estimate("imacs_r") == Estimate(mean=0.1, low=None, high=None, pairs=1)
    assert stored.means.keys() == evaluation(1).figures.keys()


@pytest.mark.parametrize(
    "ask",
    [
        lambda stored: stored.evaluation,
        lambda stored: stored.values("imacs_g"),
        lambda stored: stored.reasons("imacs_r"),
    ],
    ids=["evaluation", "values", "reasons"],
)
def test_a_lost_file_is_named_when_figures_of_pairs_are_asked_for(run: RunStore, ask: Callable) -> None:
    path = run.write(evaluation(1), {}, {})
    path.unlink()
    (stored,) = run.evaluations()
    with pytest.raises(StoreError, match="no evaluation at") as caught:
        ask(stored)
    assert str(path) in str(caught.value)


def test_values_and_reasons_are_those_of_the_written_evaluation(run: RunStore) -> None:
    run.write(evaluation(1), {}, {})
    (stored,) = run.evaluations()
    assert stored.values("imacs_g").tolist() == [0.25, 1 / 3]
    np.testing.assert_array_equal(stored.values("imacs_r"), [math.nan, 0.1])
    assert stored.values("reference_gap").shape == stored.values("imacs_q").shape == (2,)
    assert np.isnan([stored.values("reference_gap"), stored.values("imacs_q")]).all()
    assert stored.reasons("imacs_r") == ("no reference mask",)
    assert stored.reasons("imacs_g") == () and stored.reasons("imacs_q") == ("not recorded",)


def test_figures_of_pairs_are_read_once(run: RunStore) -> None:
    path = run.write(evaluation(1), {}, {})
    (stored,) = run.evaluations()
    first = stored.evaluation
    path.unlink()
    assert stored.evaluation is first and stored.values("imacs_g").tolist() == [0.25, 1 / 3]


@pytest.mark.parametrize("value", [0.25, NO_MASK])
def test_a_line_of_the_index_does_not_grow_with_the_pairs(run: RunStore, value: Figure) -> None:
    lengths = []
    for count in (2, 200):
        run.write(of_pairs(count, {f"layer/{i}/imacs_r": (value,) * count for i in range(50)}), {}, {})
        lengths.append(len(run.index.read_bytes().splitlines()[-1]))
    more_digits = 0 if value is NO_MASK else 50 * len("00")  # how many pairs have a value
    assert lengths[1] == lengths[0] + more_digits


def test_a_figure_takes_less_than_eighty_bytes_of_the_index(run: RunStore) -> None:
    values = np.random.default_rng(3).standard_normal((50, 16)) * 1e-5  # floats in full take 23 bytes each
    run.write(of_pairs(16, {f"layer/{i}/imacs_r": tuple(v.tolist()) for i, v in enumerate(values)}), {}, {})
    assert len(run.index.read_bytes()) < 50 * 80 + 300


def test_only_evaluations_that_share_what_figures_depend_on_share_an_id(run: RunStore) -> None:
    run.write(evaluation(0), {}, {})
    run.write(evaluation(1, 0.875), {}, {})
    run.write(evaluation(2, fingerprint={**FINGERPRINT, "seed": 1}), {}, {})
    ids = [stored.comparable_id for stored in run.evaluations()]
    assert ids[0] == ids[1] != ids[2]


# -- crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "torn",
    [
        b'{"file": "step_00000',
        b'{"file": "step_\xc3',
        b"{",
        b'{"format": 1, "pairs": ["a',
        b"\0" * 64,  # what some file systems leave after a power cut
        b"not JSON at all",
        b"[]",
        b"null",
        b"17",
    ],
)
def test_a_torn_last_line_is_skipped_and_the_next_one_is_whole(run: RunStore, torn: bytes) -> None:
    run.write(evaluation(1), {}, {})
    run.write_alert(alert(1))
    for file in (run.index, run.alerts_file):
        file.write_bytes(file.read_bytes() + torn)
    assert steps(run) == [1] and run.alerts() == [alert(1)]

    run.write(evaluation(2), {}, {})
    run.write_alert(alert(2))
    assert steps(run) == [1, 2] and run.alerts() == [alert(1), alert(2)]
    for file in (run.index, run.alerts_file):
        lines = file.read_bytes().split(b"\n")
        assert lines[1] == torn and len(lines) == 4 and lines[3] == b""


class _PowerCut(BaseException):
    """Nothing that `except Exception` sees, as KeyboardInterrupt."""


@pytest.mark.parametrize("function", ["save_file", "replace", "fsync"])
@pytest.mark.parametrize("again", [False, True])
def test_a_failed_write_leaves_everything_as_it_was(
    run: RunStore, packed: Any, monkeypatch: pytest.MonkeyPatch, function: str, again: bool
) -> None:
    run.write(evaluation(1), *packed)
    before = contents(run.folder)
    failed = []

    def fail(*args: Any, **kwargs: Any) -> None:
        if function == "save_file":
            Path(args[1]).write_bytes(b"half")
        failed.append(function)
        raise _PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(evaluation_file if function == "save_file" else os, function, fail)
        with pytest.raises(_PowerCut):
            run.write(evaluation(1 if again else 2, 0.875), *packed)
    assert failed
    assert contents(run.folder) == before


def test_a_line_without_its_end_counts_when_it_is_whole(run: RunStore) -> None:
    run.write(evaluation(1), {}, {})
    run.index.write_bytes(run.index.read_bytes().rstrip(b"\n"))
    assert steps(run) == [1]
    run.write(evaluation(2), {}, {})
    assert steps(run) == [1, 2]


def test_a_file_without_its_line_is_no_evaluation_yet(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write(evaluation(1), {}, {})

    def cut(*_: Any) -> None:
        raise _PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "append_line", cut)
        with pytest.raises(_PowerCut):
            run.write(evaluation(2), {}, {})
    assert steps(run) == [1]
    run.write(evaluation(2), {}, {})
    assert steps(run) == [1, 2]


def test_a_file_is_whole_before_its_line_is_written(
    run: RunStore, packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    append = store_module.append_line
    monkeypatch.setattr(
        store_module,
        "append_line",
        lambda path, row: (seen.append(read_evaluation(run.folder / row["file"])[0]), append(path, row)),
    )
    run.write(evaluation(3), *packed)
    assert seen == [evaluation(3)] and steps(run) == [3]


def test_others_may_read_what_was_written(run: RunStore) -> None:
    assert run.write(evaluation(3), {}, {}).stat().st_mode & 0o777 == 0o644


# -- resumed runs ----------------------------------------------------------------------------------------------------


def test_what_came_after_the_resumed_step_is_superseded(run: RunStore) -> None:
    for step in (0, 100, 200, 300):
        run.write(evaluation(step), {}, {})
    for step in (100, 300):
        run.write_alert(alert(step))
    run.resume(100)
    assert steps(run) == [0, 100]
    assert run.alerts() == [alert(100)]

    run.write(evaluation(200, 0.875), {}, {})
    run.write_alert(alert(200))
    assert steps(run) == [0, 100, 200]
    assert run.evaluations()[2].evaluation.figures["imacs_g"][0] == 0.875
    assert run.alerts() == [alert(100), alert(200)]


def test_resuming_twice(run: RunStore) -> None:
    for step in (0, 100, 200):
        run.write(evaluation(step), {}, {})
    run.resume(100)
    run.write(evaluation(150), {}, {})
    run.resume(0)
    run.write(evaluation(50), {}, {})
    assert steps(run) == [0, 50]


def test_no_marker_when_nothing_is_later(run: RunStore) -> None:
    run.resume(0)
    assert not run.folder.exists()
    run.write(evaluation(0), {}, {})
    run.write(evaluation(100), {}, {})
    run.write_alert(alert(50))
    before = contents(run.folder)
    run.resume(100)
    assert contents(run.folder) == before
    run.resume(70)  # later than the alert, earlier than an evaluation
    after = contents(run.folder)
    assert after["alerts.jsonl"] == before["alerts.jsonl"]
    assert after["index.jsonl"] == before["index.jsonl"] + b'{"resumed_at": 70}\n'


# -- files that can't be used ----------------------------------------------------------------------------------------


NEWER = rf"newer.*\(format {FORMAT + 1}, .* up to {FORMAT}\).*pip install -U i2am-debug"


def test_a_newer_index_is_refused(run: RunStore) -> None:
    run.write(evaluation(1), {}, {})
    run.write_alert(alert(1))
    for file, read in ((run.index, run.evaluations), (run.alerts_file, run.alerts)):
        row = json.loads(file.read_text())
        file.write_text(json.dumps({**row, "format": FORMAT + 1}) + "\n")
        with pytest.raises(StoreError, match=NEWER) as caught:
            read()
        assert str(file) in str(caught.value)


@pytest.mark.parametrize("read", READERS)
def test_a_newer_file_is_refused(tmp_path: Path, read: Callable) -> None:
    path = tmp_path / "step_00000001.safetensors"
    save_file({"x": np.zeros(1)}, path, metadata={"format": str(FORMAT + 1), "evaluation": "of another form"})
    with pytest.raises(StoreError, match=NEWER) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_is_named(tmp_path: Path, read: Callable) -> None:
    with pytest.raises(
        StoreError, match=r"no evaluation at .*missing\.st; expected a step_….*plugins/i2am_debug folder"
    ):
        read(tmp_path / "missing.st")
    with pytest.raises(StoreError, match="no evaluation at"):
        read(str(tmp_path))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("read", READERS)
def test_other_safetensors_are_no_evaluation(tmp_path: Path, metadata: dict | None, read: Callable) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(
        StoreError, match=r"model\.safetensors is a safetensors file, but not an evaluation of i2am-debug"
    ):
        read(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_broken_file_is_named(run: RunStore, packed: Any, kept: int) -> None:
    path = run.write(evaluation(1), *packed)
    path.write_bytes(path.read_bytes()[:kept])
    for read in (*READERS, lambda file: read_arrays(file, ["0/r2g/unified"])):
        with pytest.raises(StoreError, match=r"step_00000001\.safetensors can't be read: ."):
            read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": "{"},
        {"evaluation": "[]"},
        {"evaluation": "null"},
        {"evaluation": "{}"},
        {"evaluation": "[" * 100_000},
        {"figures": [1, 2]},
        {"heads": ["up"]},
        {"pairs": None},
        {"format": "of spring 2026"},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
def test_a_file_with_an_evaluation_of_another_form_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "step_00000001.safetensors"
    text = json.dumps({**evaluation(1).to_json(), **changes})
    metadata = {"format": changes.get("format", str(FORMAT)), "evaluation": changes.get("evaluation", text)}
    save_file({"x": np.zeros(1)}, path, metadata=metadata)
    for read in READERS:
        with pytest.raises(StoreError) as caught:
            read(path)
        assert str(path) in str(caught.value)


# What a line says that is JSON but not ours: of an older or a later version, edited by hand, or made to do harm.
HOSTILE: list[dict[str, Any]] = [
    {"global_step": None},
    {"global_step": "7"},
    {"file": 3},
    {"format": "x"},
    {"format": None},
    {"means": None},
    {"means": ["imacs_g"]},
    {"means": {"imacs_g": None}},
    {"means": {"imacs_g": [0.5]}},
    {"means": {"imacs_g": {"why": "?"}}},
]


def hostile_lines(row: dict[str, Any], changes: list[dict[str, Any]]) -> list[Any]:
    """Without each of its keys, with each of the changes, and a few lines more."""
    read = [
        key for key in row if key not in ("format", "seconds", "severity", "text", "watched_layer")
    ]  # those may be missing
    return [
        *(pytest.param({k: v for k, v in row.items() if k != key}, id=f"without {key}") for key in read),
        *(pytest.param({**row, **change}, id=json.dumps(change)[:80]) for change in changes),
        *(
            pytest.param(line, id=f"only {json.dumps(line)}")
            for line in ({}, {"resumed_at": "yesterday"}, {"resumed_at": None})
        ),
    ]


def index_row() -> dict[str, Any]:
    return store_module._index_line(evaluation(7), Path("step_00000007.safetensors"))


@pytest.mark.parametrize("line", hostile_lines(index_row(), HOSTILE))
def test_a_line_of_the_index_that_is_not_ours_is_refused_and_the_file_named(run: RunStore, line: dict) -> None:
    run.write(evaluation(1), {}, {})
    run.index.write_text(run.index.read_text() + json.dumps(line) + "\n")
    with pytest.raises(StoreError) as caught:
        run.evaluations()
    assert str(run.index) in str(caught.value)


@pytest.mark.parametrize(
    "line",
    hostile_lines(
        {key: value for key, value in alert(7).to_json().items() if key != "diagnosis"},  # which older ones have not
        [
            {"diagnosis": 3},
            {"diagnosis": {"global_step": 7, "likelihoods": [], "changes": {}}},
            {"findings": None},
            {"findings": [1]},
            {"findings": [{"rule": "x"}]},
            {"findings": [{"of a later version": 1, **DROP.to_json()}]},
            {"findings": [{"now": {"mean": 1.0}} | {k: v for k, v in DROP.to_json().items() if k != "now"}]},
            {"global_step": "7"},
            {"format": "x"},
        ],
    ),
)
def test_an_alert_that_is_not_ours_is_refused_and_the_file_named(run: RunStore, line: dict) -> None:
    run.write_alert(alert(1))
    run.alerts_file.write_text(run.alerts_file.read_text() + json.dumps(line) + "\n")
    with pytest.raises(StoreError) as caught:
        run.alerts()
    assert str(run.alerts_file) in str(caught.value)


def test_a_line_of_brackets_is_skipped_or_refused(run: RunStore) -> None:
    run.write(evaluation(1), {}, {})
    run.index.write_bytes(run.index.read_bytes() + b"[" * 100_000 + b"\n")
    try:
        assert steps(run) == [1]
    except StoreError as error:
        assert str(run.index) in str(error)


@pytest.mark.parametrize("file", ["/etc/passwd", "../../../elsewhere.safetensors"])
def test_a_line_can_not_lead_out_of_the_folder(run: RunStore, file: str) -> None:
    run.write(evaluation(1), {}, {})
    run.index.write_text(json.dumps({**index_row(), "file": file}) + "\n")
    try:
        found = run.evaluations()
    except StoreError:
        return
    assert all(stored.path.resolve().parent == run.folder.resolve() for stored in found)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["undefined", "imacs_g", "mean"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking would take a minute; the small cases are above
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(line=st.fixed_dictionaries({}, optional={key: JSON_VALUES for key in (*index_row(), "resumed_at")}))
def test_whatever_a_line_says_the_index_is_read_or_refused(run: RunStore, line: dict[str, Any]) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    mine = json.dumps(index_row())
    run.index.write_text(f"{mine}\n{json.dumps({**index_row(), **line})}\n{json.dumps(line)}\n")
    try:
        run.evaluations()
    except StoreError as error:
        assert str(run.index) in str(error)


# -- arrays, pairs and panels ----------------------------------------------------------------------------------------


def test_only_the_arrays_asked_for_are_read(run: RunStore, packed: Any) -> None:
    path = run.write(evaluation(1), *packed)
    found = read_arrays(path, (name for name in ("0/r2g/unified", "0/generated", "9/unknown")))
    assert found.keys() == {"0/r2g/unified", "0/generated"}
    for name, value in found.items():
        assert value.dtype == packed[0][name].dtype
        np.testing.assert_array_equal(value, packed[0][name])


def test_there_are_no_arrays_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_arrays(tmp_path / "missing.safetensors", ["0/r2g/unified"]) == {}
    assert read_arrays(str(tmp_path), ["0/r2g/unified"]) == {}


def mask(side: int) -> np.ndarray:
    return np.random.default_rng(side).random((side, side + 2)) < 0.5


def pairs() -> list[ValidationPair]:
    return [
        ValidationPair(name="shirt", reference=picture(20), target=picture(30), mask=mask(30), reference_mask=mask(20)),
        ValidationPair(name="dress", reference=picture(40, seed=7), target=picture(9)),
    ]


def test_pictures_of_the_pairs_are_read_back_pixel_by_pixel(run: RunStore) -> None:
    path = run.write_pairs(evaluation(0), pairs())
    assert path == run.pairs_file(evaluation(0)) and path.parent == run.folder
    names = [f"{i}/{name}" for i in range(2) for name in ("reference", "target", "mask", "reference_mask")]
    found = {name: unpack_picture(stored) for name, stored in read_arrays(path, names).items()}
    shirt, dress = pairs()
    expected = {
        "0/reference": shirt.reference,
        "0/target": shirt.target,
        "0/mask": shirt.mask * np.uint8(255),
        "0/reference_mask": shirt.reference_mask * np.uint8(255),
        "1/reference": dress.reference,
        "1/target": dress.target,
    }
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        assert found[name].mode == ("L" if "mask" in name else "RGB")
        np.testing.assert_array_equal(np.array(found[name]), np.array(truth))


def test_pictures_are_written_once_for_all_evaluations_of_the_same_pairs(run: RunStore) -> None:
    path = run.write_pairs(evaluation(0), pairs())
    before = path.stat()

    def never() -> Iterator[ValidationPair]:
        raise AssertionError("the pairs were read again")
        yield

    assert run.write_pairs(evaluation(100, 0.875, fingerprint={**FINGERPRINT, "seed": 5}), never()) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert RunStore(run.folder.parents[1]).write_pairs(evaluation(200), never()) == path  # resumed


@pytest.mark.parametrize("hashes", [["2e", "1f"], ["1f"], ["1f", "2e", "3d"], ["1f2e"]])
def test_other_pairs_have_another_file(run: RunStore, hashes: list[str]) -> None:
    other = evaluation(100, fingerprint={**FINGERPRINT, "pairs": hashes})
    first, second = run.write_pairs(evaluation(0), pairs()), run.write_pairs(other, pairs()[::-1])
    assert first != second
    assert read_arrays(first, ["0/mask"]) and not read_arrays(second, ["0/mask"])


def test_a_pair_that_fails_leaves_no_file_and_can_be_tried_again(run: RunStore) -> None:
    def broken() -> Iterator[ValidationPair]:
        yield pairs()[0]
        raise OSError("a network folder that went away")

    with pytest.raises(OSError, match="went away"):
        run.write_pairs(evaluation(0), broken())
    assert contents(run.folder) == {}
    assert run.write_pairs(evaluation(0), pairs()).is_file()


def test_pictures_of_pairs_are_no_evaluation(run: RunStore) -> None:
    path = run.write_pairs(evaluation(0), pairs())
    assert run.evaluations() == []
    with pytest.raises(StoreError, match=r"pairs_.*\.safetensors is a safetensors file, but not an evaluation"):
        read_figures(path)


def test_a_panel_is_found_by_its_path_relative_to_the_plugin_folder(run: RunStore) -> None:
    drawn = {(100, 0): picture(8), (100, 12): picture(9), (200, 0): picture(10), (100, 100): picture(11)}
    found = {key: run.write_panel(*key, panel) for key, panel in drawn.items()}
    assert len(set(found.values())) == 4
    for key, relative in found.items():
        assert not Path(relative).is_absolute() and "\\" not in relative and ".." not in relative
        np.testing.assert_array_equal(np.array(Image.open(run.folder / relative)), np.array(drawn[key]))
    assert found[100, 12] == "alerts/step_00000100/pair_12.png"


def test_an_alert_is_read_back_with_its_findings_and_panels(run: RunStore) -> None:
    panels = {"dress": run.write_panel(100, 1, picture(8)), "shirt": run.write_panel(100, 0, picture(9))}
    written = [
        alert(100, fine_at=50, panels=panels),
        alert(200, findings=(replace(UNDEFINED, fired=False, unjudged="one pair"),)),
        alert(300, findings=(replace(DROP, p=None, since=None, pairs=(), before=None, now=None, change=None),)),
    ]
    for one in written:
        run.write_alert(one)
    read = run.alerts()
    assert read == written
    assert [a.text for a in read] == [a.text for a in written]
    assert read[0].findings[0].before == Estimate(mean=0.5, low=0.4, high=0.6, pairs=8)
    assert all((run.folder / file).is_file() for file in read[0].panels.values())


def test_a_line_of_alerts_says_how_severe_it_is_and_why_without_this_package(run: RunStore) -> None:
    run.write_alert(alert(100))
    row = json.loads(run.alerts_file.read_text(), parse_constant=pytest.fail)
    assert (row["format"], row["global_step"], row["severity"]) == (FORMAT, 100, "critical")
    assert row["text"] == alert(100).text
    assert row["findings"][1]["words"] == UNDEFINED.words


def test_an_alert_of_a_step_that_is_evaluated_again_replaces_the_old_one(run: RunStore) -> None:
    for fine_at in (10, 20):
        run.write_alert(alert(100, fine_at=fine_at))
    assert run.alerts() == [alert(100, fine_at=20)]


# -- thinning --------------------------------------------------------------------------------------------------------


def test_dropping_rows_drops_nothing_else_and_only_of_that_evaluation(run: RunStore, packed: Any) -> None:
    paths = {step: run.write(evaluation(step), *packed) for step in (0, 100, 200)}
    before, listed = contents(run.folder), run.evaluations()
    rows = {name for name in packed[0] if name.startswith("0/rows/")}
    assert len(rows) == 4  # two, each with its scales

    run.drop_rows(100)
    assert run.evaluations() == listed
    for name, content in contents(run.folder).items():
        assert (content != before[name]) == (name == paths[100].name)
    arrays = load_file(paths[100])
    assert arrays.keys() == packed[0].keys() - rows
    for name, value in arrays.items():
        assert value.dtype == packed[0][name].dtype
        np.testing.assert_array_equal(value, packed[0][name])
    assert read_evaluation(paths[100])[0] == evaluation(100)

    again = contents(run.folder)
    run.drop_rows(100)
    assert contents(run.folder) == again


def test_dropping_rows_skips_a_lost_file_and_names_a_broken_one(run: RunStore, packed: Any) -> None:
    path = run.write(evaluation(0), *packed)
    run.drop_rows(7)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(StoreError) as caught:
        run.drop_rows(0)
    assert str(path) in str(caught.value)


def test_what_killed_writes_left_is_removed(run: RunStore, packed: Any) -> None:
    run.write(evaluation(0), *packed)
    (run.folder / "alerts/step_00000000").mkdir(parents=True)
    before = contents(run.folder)
    for torn in ("step_00000005.safetensorsabc.tmp", "alerts/step_00000000/pair_00.pngxyz.tmp"):
        (run.folder / torn).write_bytes(b"half")
    run.tidy()
    assert contents(run.folder) == before


# -- what a training goes on with ------------------------------------------------------------------------------------


def test_a_training_goes_on_whatever_stands_in_the_index(run: RunStore, packed: Any) -> None:
    run.write(evaluation(0), *packed)
    with open(run.index, "a", encoding="utf-8") as file:
        file.write('{"format": 1, "global_step": "x"}\n{"format": 99}\n[1]\n{"resumed_at": null}\n')
    run.write(evaluation(100), *packed)
    assert [one.global_step for one in run.readable_evaluations()] == [0, 100]
    with pytest.raises(StoreError):
        run.evaluations()
    run.resume(50)
    assert [one.global_step for one in run.readable_evaluations()] == [0]


@pytest.mark.parametrize("given", ["a" * 5000, "nul\0"])
def test_a_name_that_no_folder_can_have_is_no_run(given: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be searched for a run: File name too long|there is no run"):
        find_store(tmp_path / given)


def test_a_file_that_may_not_be_read_is_named(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an unprivileged user; root may read anything."""
    run.write(evaluation(1), {}, {})

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    for read in (run.evaluations, lambda: read_figures(run.folder / "step_00000001.safetensors")):
        with pytest.raises(StoreError, match="can't be read: Permission denied"):
            read()
