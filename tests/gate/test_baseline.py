"""Baselines: what is kept of an evaluation, when margins stay, and what a person is told."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from stored_runs import COPYING, COUNT, column, evaluation, generated, maps, pairs, sick, write_baseline, write_run

from i2am_debug.errors import StoreError
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined
from i2am_debug.gate.baseline import compare, describe, require_new, save_baseline, set_margins, update_baseline
from i2am_debug.store.evaluation_file import read_evaluation, read_figures
from i2am_debug.store.find_run import find_evaluation
from i2am_debug.store.run_store import RunStore

MARGINS: dict[str, float | str] = {"imacs_g": 0.03, "reference_gap": "12.5%"}


def names(path: Path) -> set[str]:
    with safe_open(path, framework="numpy") as file:
        return set(file.keys())


def bulky() -> dict[str, np.ndarray]:
    """All that an evaluation's file may hold."""
    rows = {f"{i}/rows/unified": np.zeros((64, 64), dtype=np.uint8) for i in range(COUNT)}
    levels = {f"{i}/r2g/by_layer/up": np.ones((4, 4), dtype=np.float16) for i in range(COUNT)}
    return {**maps(names=("r2g", "g2r", "g2r_region")), **generated(), **rows, **levels}


def a_run(folder: Path, *evaluations: Evaluation) -> RunStore:
    run = write_run(folder, evaluations, [bulky()] * len(evaluations), pictures=True)
    return RunStore(run)


# -- save -------------------------------------------------------------------------------------------------------------


def test_a_baseline_holds_the_evaluation_its_maps_and_its_pictures(tmp_path: Path) -> None:
    store = a_run(tmp_path / "run", evaluation(0), sick(100))
    path = tmp_path / "new" / "folder" / "b.safetensors"
    returned = save_baseline(store, find_evaluation(store, 100), path)
    found, arrays = read_evaluation(path)
    assert found == returned == sick(100)
    assert set(arrays) == {f"{i}/{name}" for i in range(COUNT) for name in ("r2g", "g2r")}
    kept = ("r2g/unified", "g2r/unified", "g2r_region/unified", "generated")
    pictures = ("reference", "target", "mask", "reference_mask")
    assert names(path) == {f"{i}/{name}" for i in range(COUNT) for name in (*kept, *pictures)}


def test_a_gap_that_is_nothing_is_warned_of_since_whatever_is_compared_fails(tmp_path: Path, caplog) -> None:
    gap = tuple(np.linspace(-0.1, 0.1, COUNT).tolist())
    store = a_run(tmp_path / "run", evaluation(0), evaluation(8, {"reference_gap": gap}))
    save_baseline(store, find_evaluation(store, 0), tmp_path / "good.safetensors")
    assert "gap-collapse" not in caplog.text
    save_baseline(store, find_evaluation(store, 8), tmp_path / "bad.safetensors")
    assert "its reference gap is not above 0" in caplog.text and "gap-collapse" in caplog.text


def test_a_baseline_keeps_the_maps_and_pictures_of_further_references(tmp_path: Path) -> None:
    one = evaluation(0, {"reference_2/imacs_g": column(0.3)})
    further = {name.replace("/", "/reference_2/", 1): a for name, a in bulky().items() if "generated" not in name}
    store = RunStore(write_run(tmp_path / "run", [one], [bulky() | further]))
    given = [replace(p, further_references=[p.target, p.reference]) for p in pairs(one.pairs)]
    store.write_pairs(one, given)
    path = tmp_path / "b.safetensors"
    save_baseline(store, find_evaluation(store, None), path)
    of_second = {"reference_2/r2g/unified", "reference_2/g2r/unified", "reference_2"}
    assert {name for name in names(path) if "reference_" in name and "mask" not in name} == {
        f"{i}/{name}" for i in range(COUNT) for name in of_second
    }
    before = names(path)
    set_margins(path, {"imacs_g": 0.1})
    assert names(path) == before


def test_a_baseline_is_much_smaller_than_its_evaluation(tmp_path: Path) -> None:
    store = a_run(tmp_path / "run", evaluation(0))
    save_baseline(store, find_evaluation(store, None), tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").stat().st_size < (store.folder / "step_00000000.safetensors").stat().st_size / 2


def test_without_pictures_there_is_a_baseline_all_the_same(tmp_path: Path) -> None:
    store = RunStore(write_run(tmp_path / "run", [evaluation(0)], [{}]))
    save_baseline(store, find_evaluation(store, None), tmp_path / "b.safetensors")
    assert read_figures(tmp_path / "b.safetensors") == evaluation(0)
    assert names(tmp_path / "b.safetensors") == set()


def test_a_new_baseline_has_no_margins_of_the_run(tmp_path: Path) -> None:
    store = a_run(tmp_path / "run", evaluation(0, margins=MARGINS))
    assert save_baseline(store, find_evaluation(store, None), tmp_path / "b.safetensors").margins == {}


def test_an_evaluation_whose_file_is_gone_leaves_no_baseline(tmp_path: Path) -> None:
    store = a_run(tmp_path / "run", evaluation(0))
    found = find_evaluation(store, None)
    found.path.unlink()
    with pytest.raises(StoreError, match="no evaluation at .*step_00000000"):
        save_baseline(store, found, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_file_is_not_written_over(tmp_path: Path) -> None:
    path = write_baseline(tmp_path / "b.safetensors", evaluation())
    with pytest.raises(StoreError, match=f"exists; .*i2am-debug baseline update {path} RUN"):
        require_new(path)
    require_new(tmp_path / "another.safetensors")


# -- update -----------------------------------------------------------------------------------------------------------


def test_an_update_keeps_the_margins_of_a_comparable_one(tmp_path: Path) -> None:
    path = write_baseline(tmp_path / "b.safetensors", evaluation(margins=MARGINS))
    store = a_run(tmp_path / "run", sick(100))
    old, new = update_baseline(path, store, find_evaluation(store, None))
    assert (old.global_step, new.global_step) == (0, 100)
    assert read_figures(path) == new == replace(sick(100), margins=MARGINS)
    assert new.margins == old.margins == MARGINS


def test_an_update_drops_the_margins_of_one_that_is_not_comparable(tmp_path: Path) -> None:
    path = write_baseline(tmp_path / "b.safetensors", evaluation(margins=MARGINS))
    store = a_run(tmp_path / "run", sick(100, fingerprint={"seed": 5}))
    old, new = update_baseline(path, store, find_evaluation(store, None))
    assert new.margins == read_figures(path).margins == {}
    told = compare(old, new)
    assert (
        "not comparable with the old one, they differ in pairs, plan.heads, seed; calibrated margins are dropped"
        in told
    )


def test_an_update_needs_a_baseline_and_says_how_to_make_one(tmp_path: Path) -> None:
    store = a_run(tmp_path / "run", evaluation())
    with pytest.raises(StoreError, match="baseline save"):
        update_baseline(tmp_path / "none.safetensors", store, find_evaluation(store, None))
    assert not (tmp_path / "none.safetensors").exists()


def test_an_update_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_baseline(tmp_path / "b.safetensors", evaluation(margins=MARGINS))
    store = a_run(tmp_path / "run", evaluation(100))
    found = find_evaluation(store, None)
    found.path.write_bytes(b"broken")
    before = path.read_bytes()
    with pytest.raises(StoreError):
        update_baseline(path, store, found)
    assert path.read_bytes() == before


# -- margins ----------------------------------------------------------------------------------------------------------


def test_margins_take_the_place_of_those_before_and_nothing_else_changes(tmp_path: Path) -> None:
    store = a_run(tmp_path / "run", evaluation())
    path = tmp_path / "b.safetensors"
    save_baseline(store, find_evaluation(store, None), path)
    kept = names(path)
    set_margins(path, {"loss": "50%"})
    set_margins(path, dict(MARGINS))
    assert read_figures(path) == evaluation(margins=MARGINS)
    assert read_figures(path).margins == MARGINS
    assert names(path) == kept


def test_margins_stored_in_a_runs_own_evaluation_lose_nothing_of_it(tmp_path: Path) -> None:
    # `check --baseline` takes any evaluation's file, so someone will calibrate one.
    store = a_run(tmp_path / "run", evaluation())
    path = store.folder / "step_00000000.safetensors"
    with contextlib.suppress(StoreError, ValueError):  # refusing is as good
        set_margins(path, dict(MARGINS))
    assert names(path) == set(bulky())


def test_margins_need_a_baseline(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="none.safetensors"):
        set_margins(tmp_path / "none.safetensors", dict(MARGINS))


# -- what a person is told --------------------------------------------------------------------------------------------


def line_of(told: str, tag: str) -> str:
    (line,) = (line.strip() for line in told.splitlines() if line.strip().split()[:1] == [tag])
    return " ".join(line.split())


def test_a_description_says_what_it_is_of() -> None:
    given = {"family": "unet", "way": "loss_fn", "seed": 3, "scheduler": "DDIMScheduler", "version": "0.1.0"}
    told = describe(evaluation(50, fingerprint=given))
    assert told.startswith(f"step 50, {COUNT} pairs: pair 0, pair 1, ")
    for words in ("family unet, by loss_fn, 2 layers", "copying layer up", "seed 3, scheduler DDIMScheduler", "0.1.0"):
        assert words in told


def test_a_description_has_the_mean_of_every_figure_and_why_some_have_none() -> None:
    told = describe(evaluation())
    assert line_of(told, "imacs_g").startswith("imacs_g 0.300 [")
    assert line_of(told, COPYING).startswith(f"{COPYING} 0.400 [")
    assert "undefined: not in this family: branch_share, reference_mass" in told
    assert "undefined: no baseline: drift/js_r2g, drift/js_g2r" in told


def test_a_description_has_other_layers_when_asked() -> None:
    one = evaluation(0, {"layer/down/imacs_r_hole": column(0.1)})
    assert "layer/down" not in describe(one)
    assert line_of(describe(one, layers=True), "layer/down/imacs_r_hole").split()[1] == "0.100"


def test_a_description_has_the_margins_or_how_to_get_them() -> None:
    assert "calibrated margins: imacs_g 0.03, reference_gap 12.5%" in describe(evaluation(margins=MARGINS))
    assert "not calibrated (i2am-debug calibrate RUN … --baseline FILE)" in describe(evaluation())


@pytest.mark.parametrize(
    "one",
    [
        evaluation(copying_layer=Undefined("no layer has information")),
        evaluation(fingerprint={}),
        evaluation(count=1),
        replace(evaluation(), figures={}),
        replace(evaluation(), figures={"imacs_g": (Undefined("gone"),) * COUNT}),
    ],
)
def test_a_poor_baseline_can_be_described(one: Evaluation) -> None:
    assert describe(one).startswith(f"step 0, {len(one.pairs)} pairs")


def test_a_comparison_has_the_figures_before_and_after() -> None:
    told = compare(evaluation(0), sick(100))
    assert told.startswith("step 0 → step 100\n")
    before, _, after = line_of(told, "reference_gap:").partition(" → ")
    assert before.split()[1] == "0.0600" and after.split()[0] == "0.00600"
    assert "reference_mass" not in told and "not comparable" not in told
