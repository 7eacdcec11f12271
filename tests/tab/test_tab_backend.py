"""The tab's routes: what they answer on a good run, and that hostile names, requests and files get a sentence, not a fall."""

from __future__ import annotations

import gc
import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from safetensors.numpy import save_file
from stored_runs import column, evaluation, generated, healthy, maps, mark, pairs, sick, write_run
from tensorboard.backend import application
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from werkzeug.test import Client, TestResponse

import i2am_debug.tab.stored_arrays as stored_arrays
from i2am_debug.alerts.alert_state import AlertState
from i2am_debug.alerts.rules import Rules
from i2am_debug.figures.record import FORMAT
from i2am_debug.figures.values import Undefined
from i2am_debug.pairs.pair import ValidationPair
from i2am_debug.store.packing import pack_pictures
from i2am_debug.store.run_store import RunStore
from i2am_debug.tab import backend, index_file
from i2am_debug.tab.loader import Loader

ROUTE = "/data/plugin/i2am_debug/"
HOSTILE = [
    "a b",
    "nested/run",
    'it\'s "quoted"',
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "Ünïcødé 模型 🙂",
    "per%2e%2ecent&run=x#y?z=+1",
    "back\\slash",
    "..dots",
    "line\nbreak",
]


class Provider:
    """A data provider that lists these runs."""

    def __init__(self, *runs: str) -> None:
        self.runs = runs

    def list_tensors(self, _context: Any, *, experiment_id: str, plugin_name: str) -> dict[str, dict]:
        assert (experiment_id, plugin_name) == ("", "i2am_debug")
        return {run: {"i2am/evaluations": None} for run in self.runs}

    def list_plugins(self, _context: Any, *, experiment_id: str) -> list[str]:
        return ["i2am_debug"]


class Asker:
    """Asks a TensorBoard application that has our tab."""

    def __init__(self, context: base_plugin.TBContext, path_prefix: str = "") -> None:
        plugin = Loader().load(context)
        assert plugin is not None
        app = application.TensorBoardWSGI([plugin], path_prefix=path_prefix, data_provider=context.data_provider)
        self.client, self.prefix = Client(app), path_prefix

    def ask(
        self, route: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, **query: Any
    ) -> TestResponse:
        url = f"{self.prefix}{ROUTE}{route}" + (f"?{urlencode(query)}" if query else "")
        answer = self.client.open(url, method=method, headers={"Host": "localhost:6006", **(headers or {})})
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Type"]
        return answer

    def json(self, route: str, **query: Any) -> Any:
        answer = self.ask(route, **query)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.data, parse_constant=pytest.fail)

    def refusal(self, status: int, route: str, **query: Any) -> str:
        answer = self.ask(route, **query)
        assert answer.status_code == status, answer.data[:300]
        assert answer.content_type == "text/plain; charset=utf-8"
        assert "Traceback" not in answer.text and len(answer.text.splitlines()) == 1
        return answer.text


def asker(logdir: Path | str, *runs: str, **context: Any) -> Asker:
    given = {"logdir": str(logdir), "data_provider": Provider(*runs), "flags": SimpleNamespace(logdir_spec="")}
    return Asker(base_plugin.TBContext(**{**given, **context}))


def arrays(count: int = 2, *, seed: int = 0) -> dict[str, np.ndarray]:
    """All kinds of arrays of an evaluation whose generated grid is 2 by 3, its reference grid 2 by 2."""
    draw = np.random.default_rng(seed)
    found = {**maps(count, peak=1), **generated(count)}
    for i in range(count):
        found |= {
            f"{i}/r2g/by_head": draw.random((3, 4, 4)).astype(np.float16),
            f"{i}/g2r/by_time": draw.random((2, 1, 5)).astype(np.float16),
            f"{i}/r2g/by_layer/up": draw.random((4, 4)).astype(np.float16),
            f"{i}/r2g_centred/unified": draw.random((4, 4)).astype(np.float32),
            f"{i}/information": np.array([[i, 1, np.nan], [2, 3, 4]], dtype=np.float32),
            f"{i}/rows/unified": draw.integers(0, 255, (6, 4)).astype(np.uint8),
            f"{i}/rows/unified/scale": draw.random(6).astype(np.float32),
            f"{i}/rows/by_head": draw.integers(0, 255, (3, 6, 4)).astype(np.uint8),
            f"{i}/rows/by_head/scale": draw.random((3, 6)).astype(np.float32),
        }
    return found


GRIDS = {str(i): {"unified": [[2, 3], [2, 2]], "by_head": [[2, 3], [2, 2]]} for i in range(2)}


def make_run(folder: Path, *steps: int, count: int = 2) -> Path:
    """A run with everything the tab shows."""
    store = RunStore(folder)
    for step in steps:
        one = evaluation(step, count=count)
        store.write(one, arrays(count, seed=step), GRIDS)
        store.write_pairs(one, pairs(one.pairs))
    return folder


def own(run: Path) -> Path:
    return run / "plugins" / "i2am_debug"


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    make_run(tmp_path / "logs" / "run", 0, 8)
    return tmp_path / "logs"


# -- what the routes answer ------------------------------------------------------------------------------------------


def test_runs_say_how_many_evaluations_and_why_none(logdir: Path) -> None:
    (logdir / "empty").mkdir()
    newer = own(write_run(logdir / "newer", [evaluation()])) / "index.jsonl"
    newer.write_text(newer.read_text().replace('"format": 1', f'"format": {FORMAT + 1}'))
    odd = own(write_run(logdir / "odd", [evaluation()])) / "index.jsonl"
    odd.write_text('{"global_step": "three", "format": 1}\n')
    answer = asker(logdir, "run", "empty", "gone", "newer", "odd").json("runs")
    assert answer["logdir"] == "local"
    rows = {row.pop("name"): row for row in answer["runs"]}
    assert rows["run"] == {"evaluations": 2, "newest": 8, "alert": None, "problem": None}
    assert rows["empty"] == {"evaluations": 0, "newest": None, "alert": None, "problem": None}
    assert "gone" in rows["gone"]["problem"]
    assert rows["newer"]["problem"].startswith("index.jsonl was written by a newer i2am-debug (format 2,")
    assert "can't be read" in rows["odd"]["problem"]
    assert str(logdir) not in str(rows)


def test_runs_and_index_follow_a_run_that_is_being_written(logdir: Path) -> None:
    ask = asker(logdir, "run")
    index = own(logdir / "run") / "index.jsonl"
    tag = ask.ask("index", run="run").headers["ETag"]
    whole = index.read_text()
    index.write_text(whole + whole.splitlines()[0][:100])  # torn
    assert ask.json("index", run="run")["steps"] == [0, 8]
    assert ask.json("runs")["runs"][0]["newest"] == 8
    index.write_text(whole)
    make_run(logdir / "run", 16)
    answer = ask.ask("index", run="run", headers={"If-None-Match": tag})
    assert answer.status_code == 200 and json.loads(answer.data)["steps"] == [0, 8, 16]
    assert ask.json("runs")["runs"][0] == {
        "name": "run",
        "evaluations": 3,
        "newest": 16,
        "alert": None,
        "problem": None,
    }
    RunStore(logdir / "run").resume(8)
    assert ask.json("index", run="run")["steps"] == [0, 8]


def test_the_index_has_a_column_a_figure(logdir: Path) -> None:
    write_run(
        logdir / "two",
        [
            evaluation(0, {"imacs_g": column(0.12345678)}),
            evaluation(5, {"drift/js_r2g": column(0.1), "imacs_g": (Undefined("no mask"),) * 10, "extra": column(1.0)}),
        ],
    )
    found = asker(logdir, "two").json("index", run="two")
    assert found["steps"] == [0, 5] and found["copying_layer"] == ["up", "up"]
    assert found["comparable"] == [evaluation().comparable_id] * 2
    assert found["baseline_step"] == 0 and found["alerts"] == [] and found["alerts_problem"] is None
    one = found["figures"]["imacs_g"]
    assert (
        one["mean"] == [pytest.approx(0.12345678, rel=1e-5), None] and one["low"][0] < one["mean"][0] < one["high"][0]
    )
    assert one["undefined"] == {"1": "no mask"} and one["low"][1] is None
    assert max(len(repr(v).lstrip("0.")) for v in (one["mean"][0], one["low"][0], one["high"][0])) <= 6
    assert found["figures"]["extra"]["undefined"] == {"0": "not recorded"}
    assert found["figures"]["copying_layer/imacs_r_hole"]["mean"] == [0.4, 0.4]
    assert not any(tag.startswith("layer/") for tag in found["figures"])
    layers = asker(logdir, "two").json("index", run="two", layers="imacs_r_hole")
    assert layers["figures"] == {"layer/up/imacs_r_hole": found["figures"]["copying_layer/imacs_r_hole"]}
    assert asker(logdir, "two").json("index", run="two", layers="hole")["figures"] == {}


def test_the_index_equals_what_the_store_reads(logdir: Path) -> None:
    history = [evaluation(0), *(sick(step) for step in (8, 16, 24, 32))]
    write_run(logdir / "sick", history)
    store = RunStore(logdir / "sick")
    watch = AlertState(Rules())
    raised = [watch.judge(history[0], history[: i + 1]) for i in range(1, 5)]
    for alert in filter(None, raised):
        store.write_alert(alert)
    store.resume(24)
    newest = raised[2] or raised[1] or raised[0]  # the one at step 32 was superseded
    assert newest is not None
    (listed,) = asker(logdir, "sick").json("runs")["runs"]
    assert listed["alert"] == {"step": store.alerts()[-1].global_step, "severity": store.alerts()[-1].severity}
    assert listed["alert"]["step"] == newest.global_step
    found = asker(logdir, "sick").json("index", run="sick")
    assert found["steps"] == [one.global_step for one in store.evaluations()] == [0, 8, 16, 24]
    for tag in healthy():
        if not tag.startswith("layer/"):
            for i, one in enumerate(store.evaluations()):
                mean = one.mean(tag)
                shown = found["figures"][tag]
                if isinstance(mean, Undefined):
                    assert (shown["mean"][i], shown["undefined"][str(i)]) == (None, mean.reason)
                else:
                    assert shown["mean"][i] == pytest.approx(mean, rel=1e-5) and str(i) not in shown["undefined"]
    assert [a["text"] for a in found["alerts"]] == [a.text for a in store.alerts()] != []


def test_an_evaluation_says_what_it_holds(logdir: Path) -> None:
    found = asker(logdir, "run").json("evaluation", run="run", step=8)
    assert found["step"] == 8 and found["layers"] == ["down", "up"] and found["copying_layer"] == "up"
    assert (found["heads"], found["times"]) == (3, 2)
    assert [pair["name"] for pair in found["pairs"]] == ["pair 0", "pair 1"]
    figures = found["pairs"][0]["figures"]
    assert figures["imacs_g"] == pytest.approx(0.285) and figures["layer/up/imacs_r_hole"] == pytest.approx(0.38)
    assert figures["branch_share"] == {"undefined": "not in this family"}
    assert found["maps"]["1"] == sorted(
        [
            *("g2r/by_time", "g2r/unified", "r2g/by_head", "r2g/by_layer/up", "r2g/unified", "r2g_centred/unified"),
            *("rows/by_head", "rows/unified"),
        ]
    )
    assert found["undefined"] == {}


def test_an_evaluation_says_why_maps_are_missing(logdir: Path) -> None:
    write_run(logdir / "thin", [evaluation()])
    assert "keep their rows" in asker(logdir, "thin").json("evaluation", run="thin", step=0)["undefined"]["rows"]
    one_token = evaluation(copying_layer=Undefined("one reference token"))
    write_run(logdir / "one", [one_token], [maps(names=("r2g",))])
    missing = asker(logdir, "one").json("evaluation", run="one", step=0)["undefined"]
    assert missing == {"g2r": "one reference token", "rows": "one reference token"}


def test_further_references_have_maps_rows_information_and_pictures(logdir: Path) -> None:
    """Pair 0 has references 1 and 12, of which 12 has one token; pair 1 has none."""
    first, last = (f"0/reference_{n}/" for n in (1, 12))
    given = arrays()
    more = {
        first + name.removeprefix("1/"): a for name, a in given.items() if name.startswith("1/") and "gen" not in name
    }
    more[f"{last}r2g/unified"] = given["0/r2g/unified"]
    more[f"{last}information"] = given["0/information"] + 5
    figures = {
        "reference_1/imacs_g": (0.5, Undefined("this pair has no reference 1")),
        "reference_12/attention_information": (
            Undefined("one reference token"),
            Undefined("this pair has no reference 12"),
        ),
    }
    one = evaluation(0, figures, count=2)
    grids = {"0": {**GRIDS["0"], "reference_1/unified": [[2, 3], [2, 2]]}, "1": GRIDS["1"]}
    store = RunStore(logdir / "several")
    store.write(one, given | more, grids)
    described = [
        ValidationPair(name=p.name, reference=p.reference, target=p.target, further_references=[p.target] * n)
        for p, n in zip(pairs(one.pairs), (12, 0), strict=True)
    ]
    store.write_pairs(one, described)
    ask = asker(logdir, "several")
    at = {"run": "several", "step": 0}
    found = ask.json("evaluation", **at)
    assert found["references"] == {"0": [0, 1, 12], "1": [0]} and found["reference_layers"] == {}
    assert {"reference_1/r2g/unified", "reference_1/rows/by_head", "reference_12/r2g/unified"} <= set(
        found["maps"]["0"]
    )
    assert (found["heads"], found["times"]) == (3, 2), "no reference's maps are counted twice"
    assert found["undefined"] == {"reference_12/g2r": "one reference token", "reference_12/rows": "one reference token"}
    assert found["pairs"][0]["figures"]["reference_1/imacs_g"] == 0.5
    answer = ask.ask("map", **at, pair=0, name="reference_1/r2g/by_head", index=1)
    expected = more[f"{first}r2g/by_head"][1].astype("<f4") / 16
    np.testing.assert_allclose(np.frombuffer(answer.data, "<f4"), expected.ravel(), rtol=1e-6)
    answer = ask.ask("rows", **at, pair=0, name="reference_1/unified")
    assert answer.data == b"".join(more[f"{first}rows/unified{end}"].tobytes() for end in ("/scale", ""))
    assert ask.json("information", **at, reference=1)["bits"] == [[1.0, 1.0, None], [2.0, 3.0, 4.0]]
    assert ask.json("information", **at, reference=12)["bits"] == [[5.0, 6.0, None], [7.0, 8.0, 9.0]]
    picture = ask.ask("picture", **at, pair=0, which="reference_12")
    assert (picture.status_code, picture.data) == (200, pack_pictures(described[0])["reference_12"].tobytes())
    assert "has no 0/reference_2/" in ask.refusal(404, "map", **at, pair=0, name="reference_2/r2g/unified")
    assert "no attention information" in ask.refusal(404, "information", **at, reference=2)
    for name in ("reference_0/r2g/unified", "reference_01/r2g/unified", "reference_1/reference_1/r2g/unified"):
        assert "not the name of a map" in ask.refusal(400, "map", **at, pair=0, name=name)
    assert "which must be one of" in ask.refusal(400, "picture", **at, pair=0, which="reference_0")


def test_a_further_reference_may_be_read_by_other_layers(logdir: Path) -> None:
    bits = {"0/information": [[1.0], [2.0]], "0/reference_1/information": [[3.0], [4.0]]}
    stored = {name: np.array(values, dtype=np.float32) for name, values in bits.items()}
    stored["0/reference_1/layers"] = np.frombuffer(b'["up", "mid"]', np.uint8)
    more = {**maps(1), **stored, "0/reference_1/r2g/unified": maps(1)["0/r2g/unified"]}
    RunStore(logdir / "other").write(evaluation(0, count=1), more, {})
    ask = asker(logdir, "other")
    assert ask.json("evaluation", run="other", step=0)["reference_layers"] == {"1": ["up", "mid"]}
    found = [ask.json("information", run="other", step=0, reference=n) for n in (0, 1)]
    assert [(one["layers"], one["bits"]) for one in found] == [
        (["down", "up"], [[1.0], [2.0]]),
        (["up", "mid"], [[3.0], [4.0]]),
    ]
    more["0/reference_1/layers"] = np.frombuffer(b"\xff{", np.uint8)
    RunStore(logdir / "other").write(evaluation(8, count=1), more, {})
    assert "can't be read" in ask.refusal(404, "information", run="other", step=8, reference=1)


def test_each_head_of_a_layer_has_its_map(logdir: Path) -> None:
    given = np.random.default_rng(3).random((2, 4, 4)).astype(np.float16)
    chosen = evaluation(16, count=2, heads={"up": {5: 1.0, 2: 3.0}})
    names = [f"{i}/r2g/by_layer_head/{layer}" for i in range(2) for layer in ("up", "by_head")]
    RunStore(logdir / "run").write(chosen, {**arrays(), **dict.fromkeys(names, given)}, GRIDS)
    ask = asker(logdir, "run")
    found = ask.json("evaluation", run="run", step=16)
    assert found["looked_at"] == {"up": [5, 2]}, "in the order of the maps"
    assert found["heads"] == 3, "a layer may have any name"
    RunStore(logdir / "run").write(evaluation(24, count=2), {**arrays(), **dict.fromkeys(names[:1], given)}, GRIDS)
    assert ask.json("evaluation", run="run", step=24)["looked_at"] == {"up": [0, 1]}, "all of this layer"
    assert ask.json("evaluation", run="run", step=8)["looked_at"] == {}
    assert {"r2g/by_layer_head/up", "r2g/by_layer_head/by_head"} <= set(found["maps"]["0"])
    at = {"run": "run", "step": 16, "pair": 1, "name": "r2g/by_layer_head/up"}
    shown = np.frombuffer(ask.ask("map", **at, index=1).data, "<f4")
    np.testing.assert_allclose(shown, given[1].astype("<f4").ravel() / 16, rtol=1e-6)
    assert "give index" in ask.refusal(400, "map", **at)
    assert "has 2 entries" in ask.refusal(400, "map", **at, index=2)


def test_the_copying_layer_is_the_one_that_was_watched(logdir: Path) -> None:
    """An evaluation's own may be another: the figures and the finest rows are the baseline's."""
    steps = ("up", None), ("down", "up"), (Undefined("the attention is not finite"), "up")
    store = RunStore(logdir / "watched")
    for step, (own_layer, watched) in enumerate(steps):
        figures = {f"layer/{la}/imacs_r_hole": (value + step,) * 2 for la, value in (("up", 10.0), ("down", 20.0))}
        store.write(evaluation(step, figures, count=2, copying_layer=own_layer, watched_layer=watched), arrays(), GRIDS)
    ask = asker(logdir, "watched")
    assert [ask.json("evaluation", run="watched", step=i)["copying_layer"] for i in range(3)] == ["up"] * 3
    index = ask.json("index", run="watched")
    assert index["copying_layer"] == ["up"] * 3
    assert index["figures"]["copying_layer/imacs_r_hole"]["mean"] == [10.0, 11.0, 12.0]
    # Of a run that names no watched layer at all, the first evaluation's is watched.
    unnamed = [evaluation(i, count=2, copying_layer=layer) for i, layer in enumerate(("up", "down"))]
    write_run(logdir / "unnamed", unnamed)
    index = asker(logdir, "unnamed").json("index", run="unnamed")
    assert index["copying_layer"] == ["up", "up"]
    assert "layer/up/imacs_r_hole" in ask.json("evaluation", run="watched", step=1)["pairs"][0]["figures"]


@pytest.mark.parametrize(
    ("name", "index"), [("r2g/unified", None), ("r2g/by_head", 2), ("g2r/by_time", 1), ("r2g/by_layer/up", None)]
)
def test_a_map_is_float32_row_by_row(logdir: Path, name: str, index: int | None) -> None:
    query = {} if index is None else {"index": index}
    answer = asker(logdir, "run").ask("map", run="run", step=8, pair=1, name=name, **query)
    expected = arrays(seed=8)[f"1/{name}"]
    expected = expected if index is None else expected[index]
    assert answer.headers["X-I2AM-Shape"] == ",".join(map(str, expected.shape))
    shown = expected.astype("<f4") if name == "r2g/unified" else expected.astype("<f4") / expected.size
    np.testing.assert_allclose(np.frombuffer(answer.data, "<f4").reshape(expected.shape), shown, rtol=1e-6)


@pytest.mark.parametrize("index", [None, 2])
def test_rows_are_their_scale_and_their_values(logdir: Path, index: int | None) -> None:
    name, query = ("unified", {}) if index is None else ("by_head", {"index": index})
    answer = asker(logdir, "run").ask("rows", run="run", step=0, pair=0, name=name, **query)
    scale, values = (arrays()[f"0/rows/{name}{end}"] for end in ("/scale", ""))
    if index is not None:
        scale, values = scale[index], values[index]
    assert answer.headers["X-I2AM-Shape"] == "2,3,2,2"
    assert answer.data == scale.tobytes() + values.tobytes()


def test_information_is_the_mean_over_pairs(logdir: Path) -> None:
    found = asker(logdir, "run").json("information", run="run", step=0)
    assert found == {"layers": ["down", "up"], "heads": 3, "bits": [[0.5, 1.0, None], [2.0, 3.0, 4.0]]}


def test_pictures_come_as_they_are_stored(logdir: Path) -> None:
    ask = asker(logdir, "run")
    expected = {**pack_pictures(pairs(["x"])[0]), "generated": generated(1)["0/generated"]}
    for which, stored in expected.items():
        answer = ask.ask("picture", run="run", step=0, pair=1, which=which)
        assert (answer.status_code, answer.content_type) == (200, "image/png"), which
        assert answer.data == stored.tobytes()
    assert "no 7/mask" in ask.refusal(404, "picture", run="run", step=0, pair=7, which="mask")
    path = next(own(logdir / "run").glob("pairs_*"))
    save_file({"0/mask": expected["mask"]}, path, metadata={"format": str(FORMAT + 1)})
    assert "newer i2am-debug" in ask.refusal(404, "picture", run="run", step=0, pair=0, which="mask")
    path.unlink()
    assert "There is no pairs_" in ask.refusal(404, "picture", run="run", step=0, pair=0, which="mask")


# -- caching ---------------------------------------------------------------------------------------------------------

CACHED: list[tuple[str, dict[str, Any]]] = [
    ("index", {}),
    ("evaluation", {"step": 8}),
    ("map", {"step": 8, "pair": 0, "name": "r2g/unified"}),
    ("rows", {"step": 8, "pair": 0, "name": "unified"}),
    ("information", {"step": 8}),
    ("picture", {"step": 8, "pair": 0, "which": "generated"}),
    ("picture", {"step": 8, "pair": 0, "which": "target"}),
    ("regions", {"step": 8, "pair": 0}),
]


@pytest.mark.parametrize(("route", "query"), CACHED)
def test_what_has_not_changed_is_not_sent_again(logdir: Path, route: str, query: dict[str, Any]) -> None:
    ask = asker(logdir, "run")
    first = ask.ask(route, run="run", **query)
    assert first.status_code == 200 and first.headers["Cache-Control"] == "no-cache"
    tag = first.headers["ETag"]
    again = ask.ask(route, run="run", headers={"If-None-Match": tag}, **query)
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", tag)
    for path in own(logdir / "run").iterdir():
        os.utime(path, ns=(1, 1))
    assert ask.ask(route, run="run", headers={"If-None-Match": tag}, **query).status_code == 200


def test_an_alert_changes_the_index(logdir: Path) -> None:
    ask = asker(logdir, "run")
    tag = ask.ask("index", run="run").headers["ETag"]
    (own(logdir / "run") / "alerts.jsonl").write_text('{"none": "of ours"}\n')
    answer = ask.ask("index", run="run", headers={"If-None-Match": tag})
    found = json.loads(answer.data)
    assert answer.status_code == 200 and found["steps"] == [0, 8]
    assert found["alerts"] == [] and "alerts.jsonl has a line that can't be read" in found["alerts_problem"]


def test_runs_are_never_kept(logdir: Path) -> None:
    answer = asker(logdir, "run").ask("runs")
    assert answer.headers["Cache-Control"] == "no-cache" and "ETag" not in answer.headers


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_get_only(logdir: Path, method: str) -> None:
    for route in ("runs", "index", "static/index.js"):
        answer = asker(logdir, "run").ask(route, method=method)
        assert answer.status_code == 405 and answer.headers["Allow"] == "GET"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:6006", "127.0.0.1:1", "[::1]:6006", "[::1]", "localhost."])
def test_this_machine_may_ask(logdir: Path, host: str) -> None:
    assert asker(logdir, "run").ask("runs", headers={"Host": host}).status_code == 200
    assert asker(logdir, "run").ask("runs", headers={"Host": socket.gethostname()}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:6006", "localhost.evil.example", "localhost@evil.example"),
        *(
            "127.0.0.1.evil.example",
            "",
            ":6006",
            "local host",
            "localhost:6006:7",
            "[::1]evil",
            "[::2]",
            "x, localhost",
        ),
    ],
)
def test_a_foreign_host_gets_no_data(logdir: Path, host: str) -> None:
    """But the page, which says why: without it the frame would stay empty."""
    ask = asker(logdir, "run")
    for route in ("runs", "index", "evaluation", "map", "rows", "information", "picture"):
        answer = ask.ask(route, run="run", step=8, pair=0, name="unified", headers={"Host": host})
        assert answer.status_code == 403 and "I2AM_ALLOW_HOSTS" in answer.text
    assert ask.ask("static/index.js", headers={"Host": host}).status_code == 200


def test_other_hosts_can_be_allowed(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = asker(logdir, "run")

    def status(host: str) -> int:
        return ask.ask("runs", headers={"Host": host}).status_code

    monkeypatch.setenv("I2AM_ALLOW_HOSTS", "lab.example, Other:6006,")
    assert [status(h) for h in ("lab.example:80", "other", "third", "")] == [200, 200, 403, 403]
    monkeypatch.setenv("I2AM_ALLOW_HOSTS", "*")
    assert status("anything.example") == 200


@pytest.mark.parametrize("run", HOSTILE)
def test_a_run_may_have_any_name(tmp_path: Path, run: str) -> None:
    make_run(tmp_path / run, 8)
    ask = asker(tmp_path, run)
    assert ask.json("runs")["runs"] == [{"name": run, "evaluations": 1, "newest": 8, "alert": None, "problem": None}]
    assert ask.json("index", run=run)["steps"] == [8]
    for route, query in CACHED[1:]:
        assert ask.ask(route, run=run, **query).status_code == 200


@pytest.mark.parametrize(
    "run", ["", ".", "..", "../run", "run/", "run/../run", "/etc", "run\0", "RUN", "%72un", "x" * 5000]
)
def test_only_listed_runs_are_read(logdir: Path, run: str) -> None:
    for route, query in CACHED:
        answer = asker(logdir, "run").ask(route, run=run, **query)
        assert answer.status_code in (400, 404) and str(logdir) not in answer.text


@pytest.mark.parametrize("run", ["..", "../secret", "/etc", "a\0b", "x" * 5000, "loop"])
def test_a_listed_name_that_leads_elsewhere_is_refused(logdir: Path, run: str) -> None:
    make_run(logdir.parent / "secret", 8)
    (logdir / "loop").symlink_to(logdir / "loop")
    make_run(logdir.parent, 8)
    ask = asker(logdir, run)
    assert ask.json("runs")["runs"][0]["problem"]
    for route, query in CACHED:
        answer = ask.ask(route, run=run, **query)
        assert answer.status_code in (400, 403, 404) and "secret/" not in answer.text


@pytest.mark.parametrize("step", ["", "-1", "8.0", "1e1", "0x8", "８", "8 ", "9" * 13, "9" * 5000, "../../x", "8;"])
def test_a_step_must_be_an_integer(logdir: Path, step: str) -> None:
    for route, query in CACHED[1:]:
        text = asker(logdir, "run").refusal(400, route, run="run", **{**query, "step": step})
        assert text.startswith("The parameter step")


@pytest.mark.parametrize(
    ("route", "query", "status", "words"),
    [
        ("map", {"pair": 0}, 400, "name is missing"),
        ("map", {"pair": "x", "name": "r2g/unified"}, 400, "pair must be an integer"),
        ("map", {"pair": 2, "name": "r2g/unified"}, 404, "has no 2/r2g/unified"),
        ("map", {"pair": 0, "name": "rows/unified"}, 400, "not the name of a map"),
        ("map", {"pair": 0, "name": "information"}, 400, "not the name of a map"),
        ("map", {"pair": 0, "name": "r2g/unified", "index": 0}, 400, "index is for"),
        ("map", {"pair": 0, "name": "r2g/by_head"}, 400, "give index"),
        ("map", {"pair": 0, "name": "r2g/by_head", "index": 3}, 400, "has 3 entries"),
        ("map", {"pair": 0, "name": "r2g/by_layer/up\n", "index": ""}, 400, "index must be an integer"),
        ("map", {"pair": 0, "name": "r2g/by_layer/nowhere"}, 404, "has no"),
        ("rows", {"pair": 0, "name": "unified/scale"}, 400, "not the name of rows"),
        ("rows", {"pair": 0, "name": "by_layer/up/scale"}, 400, "not the name of rows"),
        ("rows", {"pair": 0, "name": "../unified"}, 400, "not the name of rows"),
        ("rows", {"pair": 0, "name": "by_head", "index": 9}, 400, "has 3 entries"),
        ("picture", {"pair": 0, "which": "../../index"}, 400, "which must be one of"),
        ("picture", {"pair": 0}, 400, "which is missing"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(
    logdir: Path, route: str, query: dict[str, Any], status: int, words: str
) -> None:
    assert words in asker(logdir, "run").refusal(status, route, run="run", step=8, **query)


def test_static_files_are_a_flat_folder_of_two_types(
    logdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = tmp_path / "static"
    (static / "deep").mkdir(parents=True)
    for name in ("index.js", "style.css", "page.html", "deep/x.js", ".hidden.js"):
        (static / name).write_text("x = 1;")
    (tmp_path / "outside.js").write_text("secret")
    monkeypatch.setattr(backend, "STATIC", static)
    ask = asker(logdir, "run")
    first = ask.ask("static/index.js")
    assert (first.content_type, first.data) == ("text/javascript; charset=utf-8", b"x = 1;")
    assert ask.ask("static/index.js", headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    assert ask.ask("static/style.css").content_type == "text/css; charset=utf-8"
    for name in (
        *("page.html", "deep/x.js", "deep%2fx.js", ".hidden.js", "../outside.js", "..%2foutside.js", "nowhere.js", ""),
        *(
            f"{tmp_path}/outside.js",
            "%2f" + f"{tmp_path}/outside.js"[1:],
            "index.js%00",
            "index.js%0a",
            "..%5coutside.js",
        ),
    ):
        assert ask.ask(f"static/{name}").status_code == 404, name


# -- files -----------------------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


META = {"__metadata__": {"format": "1"}}
MAP = "0/r2g/unified"
BROKEN_FILES = {
    "empty": (b"", "cut off"),
    "seven bytes": (b"1234567", "cut off"),
    "header longer than the file": (safetensors({}, length=500), "its header claims 500"),
    "header of 2^63 bytes": (safetensors({}, length=2**63), "at most"),
    "header just above the limit": (safetensors({}, length=2**24 + 1), "at most"),
    "header not JSON": (safetensors(b"{'a'"), "no JSON"),
    "header not UTF-8": (safetensors(b'{"\xff": 1}'), "no JSON"),
    "header nested deep": (safetensors(b"[" * 100_000), "no JSON"),
    "a huge number": (safetensors(b'{"a": {"shape": [' + b"9" * 5000 + b"]}}"), "no JSON"),
    "header a list": (safetensors([1]), "no object"),
    "metadata of numbers": (safetensors({"__metadata__": {"format": 1}}), "not all texts"),
    "metadata a list": (safetensors({"__metadata__": []}), "not all texts"),
    "entry a number": (safetensors({**META, MAP: 3}), "no object"),
    "unknown dtype": (safetensors({**META, MAP: entry([1], 0, 4, "F4")}, b"1234"), "unknown dtype"),
    "dtype a list": (safetensors({**META, MAP: entry([1], 0, 4, ["F32"])}, b"1234"), "unknown dtype"),
    "a dimension below 0": (safetensors({**META, MAP: entry([-1, -1], 0, 4)}, b"1234"), "no proper shape"),
    "a dimension of text": (safetensors({**META, MAP: entry(["1"], 0, 4)}, b"1234"), "no proper shape"),
    "a true dimension": (safetensors({**META, MAP: entry([True], 0, 4)}, b"1234"), "no proper shape"),
    "many dimensions": (safetensors({**META, MAP: entry([1] * 1000, 0, 4)}, b"1234"), "no proper shape"),
    "a huge shape": (safetensors({**META, MAP: entry([2**40, 2**40], 0, 4)}, b"1234"), "not as long"),
    "a huge shape and offsets": (safetensors({**META, MAP: entry([2**40], 0, 2**42)}, b"1234"), "cut off"),
    "a shape that wraps to 4 bytes": (safetensors({**META, MAP: entry([2**62 + 1], 0, 4)}, b"1234"), "not as long"),
    "offsets backwards": (safetensors({**META, MAP: entry([1], 4, 0)}, b"1234"), "no proper offsets"),
    "offsets below 0": (safetensors({**META, MAP: entry([1], -4, 0)}, b"1234"), "no proper offsets"),
    "one offset": (
        safetensors({**META, MAP: {"dtype": "F32", "shape": [1], "data_offsets": [0]}}),
        "no proper offsets",
    ),
    "no offsets": (safetensors({**META, MAP: {"dtype": "F32", "shape": [1]}}), "no proper offsets"),
    "overlap": (
        safetensors({**META, MAP: entry([1, 2], 0, 8), "x": entry([1], 4, 8), "y": entry([1], 8, 12)}, b"123456789012"),
        "overlaps",
    ),
    "twice the same bytes": (safetensors({**META, MAP: entry([1], 0, 4), "x": entry([1], 0, 4)}, b"1234"), "overlaps"),
    "a gap": (safetensors({**META, MAP: entry([1], 4, 8)}, b"12345678"), "gap"),
    "data cut off": (safetensors({**META, MAP: entry([1, 2], 0, 8)}, b"1234567"), "cut off"),
    "more data than told of": (safetensors({**META, MAP: entry([1, 1], 0, 4)}, b"123456789"), "header tells of"),
    "no metadata": (safetensors({MAP: entry([1, 1], 0, 4)}, b"1234"), "not one of i2am-debug"),
    "another format": (safetensors({"__metadata__": {"format": "pt"}}), "not one of i2am-debug"),
    "format ²": (safetensors({"__metadata__": {"format": "²"}}), "not one of i2am-debug"),
    "newer": (safetensors({"__metadata__": {"format": str(FORMAT + 1)}}), "written by a newer i2am-debug"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_file_gets_one_sentence(logdir: Path, case: str) -> None:
    content, words = BROKEN_FILES[case]
    (own(logdir / "run") / "step_00000008.safetensors").write_bytes(content)
    ask = asker(logdir, "run")
    for route, query in CACHED[1:]:
        text = ask.refusal(404, route, run="run", **query)
        assert text.startswith("step_00000008.safetensors") and words in text, text
    assert ask.ask("evaluation", run="run", step=0).status_code == 200


def test_the_check_of_headers_does_not_refuse_what_safetensors_writes(logdir: Path) -> None:
    path = own(logdir / "run") / "step_00000008.safetensors"
    written = {MAP: np.ones((1, 3), np.float32), "none": np.zeros((0, 3), np.int64), "single": np.array(1, np.uint16)}
    save_file(written, path, metadata={"format": "1"})
    assert asker(logdir, "run").ask("map", run="run", step=8, pair=0, name="r2g/unified").status_code == 200


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((4, 4)), "dtype F64, expected F16 or F32"),
        (np.ones((4, 4), np.uint8), "dtype U8"),
        (np.ones(4, np.float32), "its shape is 4"),
        (np.ones(1, np.float32), "its shape is 1"),
        (np.ones((2, 2, 2), np.float32), "2×2×2"),
        (np.ones((0, 4), np.float32), "0×4"),
        (np.ones((513, 512), np.float32), "more than the 1048576"),
    ],
)
def test_an_array_of_another_form_is_no_map(logdir: Path, array: np.ndarray, words: str) -> None:
    write_run(logdir / "odd", [evaluation()], [{MAP: array}])
    ask = asker(logdir, "odd")
    assert words in ask.refusal(404, "map", run="odd", step=0, pair=0, name="r2g/unified")
    if "more than" not in words and "0×4" not in words:
        assert ask.json("evaluation", run="odd", step=0)["maps"]["0"] == []


@pytest.mark.parametrize(
    ("change", "grids", "words"),
    [
        ({}, {}, "on which grids"),
        ({}, {"0": {"unified": [[2, 2], [2, 2]]}}, "does not fit its grids"),
        ({}, {"0": {"unified": [[2, 3], [2, 3]]}}, "does not fit its grids"),
        ({}, {"0": {"unified": [[2, 3], [2, True]]}}, "on which grids"),
        ({}, {"0": {"unified": [[-2, -3], [2, 2]]}}, "on which grids"),
        ({}, {"0": {"unified": [[2, 3]]}}, "on which grids"),
        ({}, {"0": ["unified"]}, "on which grids"),
        ({}, ["0"], "on which grids"),
        ({"0/rows/unified": np.ones((6, 4), np.float32)}, GRIDS, "dtype F32, expected U8"),
        ({"0/rows/unified": np.ones((1025, 1024), np.uint8)}, GRIDS, "more than the 1048576"),
        ({"0/rows/unified/scale": np.ones(5, np.float32)}, GRIDS, "does not fit its grids"),
        ({"0/rows/unified/scale": np.ones(6, np.float16)}, GRIDS, "dtype F16, expected F32"),
    ],
)
def test_rows_must_fit_their_grids(logdir: Path, change: dict[str, Any], grids: Any, words: str) -> None:
    RunStore(logdir / "odd").write(evaluation(count=2), {**arrays(), **change}, grids)
    ask = asker(logdir, "odd")
    assert words in ask.refusal(404, "rows", run="odd", step=0, pair=0, name="unified")
    assert ask.ask("evaluation", run="odd", step=0).status_code == 200


@pytest.mark.parametrize("content", [b"<svg onload=alert(1)>", b"<html><script>", b"", b"GIF89a", b"RIFFxxxxWEBP"])
def test_a_picture_is_png_or_jpeg(logdir: Path, content: bytes) -> None:
    write_run(logdir / "odd", [evaluation()], [{"0/generated": np.frombuffer(content, np.uint8)}])
    text = asker(logdir, "odd").refusal(422, "picture", run="odd", step=0, pair=0, which="generated")
    assert "neither PNG nor JPEG" in text


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", '{"pairs": 3}', "[" * 100_000),
        json.dumps({**evaluation().to_json(), "figures": {"x": [1]}}),
        json.dumps({**evaluation().to_json(), "pairs": [1] * 10}),
        json.dumps({**evaluation().to_json(), "layers": 3}),
    ],
)
def test_an_evaluation_of_another_form_gets_one_sentence(logdir: Path, text: str) -> None:
    path = own(logdir / "run") / "step_00000008.safetensors"
    save_file(arrays(), path, metadata={"format": "1", "evaluation": text})
    ask = asker(logdir, "run")
    for route in ("evaluation", "information"):
        assert "can't be read" in ask.refusal(404, route, run="run", step=8)
    assert "can't be read" in ask.refusal(404, "picture", run="run", step=8, pair=0, which="mask")


def test_reference_lines_are_numbers_or_not_there(logdir: Path) -> None:
    lines = {"imacs_g": {"blob": 0.1234567, "random": float("nan"), "perfect": None}}
    text = json.dumps({**evaluation().to_json(), "reference_lines": lines})
    save_file(arrays(), own(logdir / "run") / "step_00000008.safetensors", metadata={"format": "1", "evaluation": text})
    found = asker(logdir, "run").json("evaluation", run="run", step=8)
    assert found["reference_lines"] == {"imacs_g": {"blob": 0.123457}}


def test_figures_that_are_not_finite_become_undefined(logdir: Path) -> None:
    text = json.dumps(evaluation(0, {"imacs_g": (float("nan"), float("inf"), 10**400, *column(1)[3:])}).to_json())
    path = own(logdir / "run") / "step_00000008.safetensors"
    save_file(arrays(), path, metadata={"format": "1", "evaluation": text})
    figures = [p["figures"]["imacs_g"] for p in asker(logdir, "run").json("evaluation", run="run", step=8)["pairs"]]
    assert figures[:3] == [{"undefined": "not a finite number"}] * 3 and isinstance(figures[3], float)


DEEP = json.loads("[" * 400 + "]" * 400)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"global_step": DEEP}, "global_step is"),
        ({"reference_lines": DEEP}, "reference_lines is"),
        ({"reference_lines": {"imacs_g": {"blob": "x"}}}, "reference_lines/imacs_g/blob is"),
        ({"figures": {"imacs_g": ["x"] * len(evaluation().pairs)}}, "figures/imacs_g/0 is"),
        ({"figures": {"imacs_g": [0.5]}}, "has 1 values for"),
        ({"layers": [1]}, "layers/0 is 1; expected a text"),
    ],
)
def test_an_evaluation_of_another_form_is_refused(logdir: Path, changed: dict, why: str) -> None:
    text = json.dumps({**evaluation().to_json(), **changed})
    save_file(arrays(), own(logdir / "run") / "step_00000008.safetensors", metadata={"format": "1", "evaluation": text})
    told = asker(logdir, "run").refusal(404, "evaluation", run="run", step=8)
    assert "holds an evaluation that can't be read" in told and why in told


INDEX_LINE = {"format": 1, "global_step": 1, "file": "x", "copying_layer": None, "comparable_id": "a", "means": {}}


@pytest.mark.parametrize(
    "line",
    [
        {**INDEX_LINE, "global_step": 1.5},
        {**INDEX_LINE, "global_step": True},
        {**INDEX_LINE, "global_step": None},
        {**INDEX_LINE, "means": [1]},
        {**INDEX_LINE, "means": {"a": "b"}},
        {**INDEX_LINE, "means": {"a": {"b": 1}}},
        {**INDEX_LINE, "format": "1"},
        {"global_step": 3},
        {"resumed_at": "x"},
    ],
)
def test_an_index_line_of_another_form_gets_one_sentence(logdir: Path, line: dict[str, Any]) -> None:
    with open(own(logdir / "run") / "index.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    assert "has a line that can't be read" in asker(logdir, "run").refusal(404, "index", run="run")
    assert asker(logdir, "run").ask("runs").status_code == 200


def test_an_index_is_bounded(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = own(logdir / "run") / "index.jsonl"
    whole = index.read_bytes()
    index.write_bytes(whole + b"x" * (index_file.LINE_BYTES + 1))
    assert "longer than the 4 MiB" in asker(logdir, "run").refusal(404, "index", run="run")
    with open(index, "wb") as file:
        file.truncate(index_file.FILE_BYTES + 1)  # sparse
    assert "larger than the 256 MiB" in asker(logdir, "run").refusal(404, "index", run="run")
    index.write_bytes(whole)
    monkeypatch.setattr(index_file, "CELLS", 3)
    assert "more than the tab shows" in asker(logdir, "run").refusal(404, "index", run="run")


def test_numbers_in_an_index_may_be_anything(logdir: Path) -> None:
    means = {"a": [float("nan"), None, "x", 3], "b": [10**400, [], {}, 1], "c": [True, -1e-300, 1.23456789, 2]}
    (own(logdir / "run") / "index.jsonl").write_text(json.dumps({**INDEX_LINE, "means": means}) + "\n")
    figures = asker(logdir, "run").json("index", run="run")["figures"]
    assert figures["a"] == {"mean": [None], "low": [None], "high": [None], "undefined": {"0": "not a finite number"}}
    assert (figures["b"]["mean"], figures["c"]["mean"], figures["c"]["high"]) == ([None], [None], [1.23457])


@pytest.mark.parametrize("what", ["step_00000008.safetensors", "index.jsonl", "alerts.jsonl", "pairs", "folder", "run"])
def test_a_link_out_of_the_logdir_is_refused(logdir: Path, what: str) -> None:
    outside = make_run(logdir.parent / "outside", 0, 8)
    (own(outside) / "alerts.jsonl").write_text("")
    name = next(own(outside).glob("pairs_*")).name if what == "pairs" else what
    inside, target = {
        "folder": (own(logdir / "run"), own(outside)),
        "run": (logdir / "run", outside),
    }.get(what, (own(logdir / "run") / name, own(outside) / name))
    if inside.is_dir():
        inside.rename(logdir / "away")
    else:
        inside.unlink(missing_ok=True)
    inside.symlink_to(target)
    ask = asker(logdir, "run")
    asked = {
        "step_00000008.safetensors": CACHED[1:],
        "index.jsonl": CACHED[:1],
        "alerts.jsonl": CACHED[:1],
        "pairs": CACHED[-1:],
    }.get(what, CACHED)
    for route, query in asked:
        text = ask.refusal(403, route, run="run", **query)
        assert "leads out of the logdir" in text and "outside" not in text


def test_a_link_within_the_logdir_and_a_linked_logdir_are_fine(logdir: Path) -> None:
    (logdir / "link").symlink_to(logdir / "run")
    (logdir.parent / "there").symlink_to(logdir)
    for folder in (logdir, logdir.parent / "there"):
        assert asker(folder, "link").json("index", run="link")["steps"] == [0, 8]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(logdir: Path) -> None:
    path = own(logdir / "run") / "step_00000008.safetensors"
    path.unlink()
    os.mkfifo(path)
    assert "not a plain file" in asker(logdir, "run").refusal(404, "evaluation", run="run", step=8)


def test_a_run_that_is_deleted_meanwhile(logdir: Path) -> None:
    ask = asker(logdir, "run")
    assert ask.ask("map", run="run", step=8, pair=0, name="r2g/unified").status_code == 200
    (logdir / "run").rename(logdir / "trash")
    for route, query in CACHED:
        assert "was it deleted?" in ask.refusal(404, route, run="run", **query)
    assert "was it deleted?" in ask.json("runs")["runs"][0]["problem"]


def test_a_file_that_is_replaced_is_read_anew(logdir: Path) -> None:
    ask = asker(logdir, "run")
    before = ask.ask("map", run="run", step=8, pair=0, name="r2g/by_layer/up").data
    RunStore(logdir / "run").write(evaluation(8, count=2), arrays(seed=99), GRIDS)
    assert ask.ask("map", run="run", step=8, pair=0, name="r2g/by_layer/up").data != before


def test_a_file_that_is_written_over_is_read_anew(logdir: Path) -> None:
    ask = asker(logdir, "run")
    assert ask.ask("map", run="run", step=8, pair=0, name="r2g/unified").status_code == 200
    (own(logdir / "run") / "step_00000008.safetensors").write_bytes(safetensors(META))  # the same inode
    assert "has no" in ask.refusal(404, "map", run="run", step=8, pair=0, name="r2g/unified")


def test_a_failure_of_our_own_is_a_sentence_too(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "timeline", lambda *_: 1 / 0)
    answer = asker(logdir, "run").ask("index", run="run")
    assert answer.status_code == 500 and answer.text == "The tab failed at this; TensorBoard's log says where."


# -- in TensorBoard --------------------------------------------------------------------------------------------------


def loaded(**folders: Path | None) -> Any:
    """A multiplexer as `--load_fast false` has it; group name → folder."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    for name, path in folders.items():
        multiplexer.AddRunsFromDirectory(str(path), name if name != "_" else None)
    multiplexer.Reload()
    return multiplexer


def test_without_the_data_server(logdir: Path) -> None:
    mark(logdir / "run")
    mark(make_run(logdir, 4))
    multiplexer = loaded(_=logdir)
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    ask = asker(logdir, data_provider=provider, multiplexer=multiplexer)
    assert [(r["name"], r["evaluations"]) for r in ask.json("runs")["runs"]] == [(".", 1), ("run", 2)]
    assert ask.json("index", run=".")["steps"] == [4]


def test_with_a_logdir_spec(logdir: Path) -> None:
    mark(logdir / "run")
    other = mark(make_run(logdir.parent / "other", 4))
    outside = mark(make_run(logdir.parent / "outside", 4))
    multiplexer = loaded(one=logdir, two=other)
    multiplexer.AddRun(str(outside), "two/linked")
    spec = SimpleNamespace(logdir_spec=f"one:{logdir},two:{other},gs://bucket/x,far:gs://bucket/y")
    given = {"data_provider": data_provider.MultiplexerDataProvider(multiplexer, ""), "multiplexer": multiplexer}
    ask = asker("", flags=spec, **given)
    multiplexer.Reload()
    runs = {row["name"]: row for row in ask.json("runs")["runs"]}
    assert {name: row["evaluations"] for name, row in runs.items()} == {"one/run": 2, "two/.": 1, "two/linked": 0}
    assert "leads out" in runs["two/linked"]["problem"]
    assert ask.json("index", run="two/.")["steps"] == [4]
    assert ask.ask("map", run="one/run", step=8, pair=0, name="r2g/unified").status_code == 200


@pytest.mark.parametrize("where", ["gs://bucket/logs", ""])
def test_a_remote_logdir_is_told(where: str) -> None:
    ask = asker(where, "run", flags=None)
    answer = ask.json("runs")
    assert answer["logdir"] == "remote" and "local" in answer["runs"][0]["problem"]
    assert "local" in ask.refusal(404, "index", run="run")


def test_without_a_data_provider_there_are_no_runs(logdir: Path) -> None:
    assert asker(logdir, data_provider=None).json("runs") == {"logdir": "local", "runs": []}


def test_a_path_prefix_changes_nothing(logdir: Path) -> None:
    context = base_plugin.TBContext(logdir=str(logdir), data_provider=Provider("run"))
    ask = Asker(context, "/static/x")
    assert ask.json("index", run="run")["steps"] == [0, 8]
    assert ask.ask("static/nowhere.js").status_code == 404


def test_tensorboard_shows_it(logdir: Path) -> None:
    listing = json.loads(asker(logdir, "run").client.get("/data/plugins_listing").data)["i2am_debug"]
    assert listing["enabled"] and listing["tab_name"] == "I2AM" and not listing["disable_reload"]
    assert listing["loading_mechanism"]["module_path"] == f"{ROUTE}static/index.js"


def in_a_fresh_python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    program = f"import sys\nsys.path[:0] = {list(map(str, paths))!r}\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


LOAD = """
    from i2am_debug.tab.loader import Loader
    ours = [m for m in sys.modules if m.startswith(("i2am_debug.", "numpy", "safetensors", "PIL"))]
    assert set(ours) == {"i2am_debug.tab", "i2am_debug.tab.loader"}, ours
    from tensorboard.plugins.base_plugin import TBContext
    print(Loader().load(TBContext(logdir="/nowhere")))
    print([m for m in ("torch", "diffusers", "accelerate", "matplotlib") if m in sys.modules])
"""


def test_the_tab_imports_no_torch() -> None:
    done = in_a_fresh_python(LOAD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<i2am_debug.tab.backend.Backend") and done.stdout.endswith("[]\n")


@pytest.mark.parametrize("module", ["safetensors", "numpy", "PIL"])
@pytest.mark.parametrize("fault", ["raise ImportError('gone')", "raise OSError('libx.so')", "x = 1"])
def test_a_broken_dependency_makes_the_tab_absent(tmp_path: Path, module: str, fault: str) -> None:
    (tmp_path / f"{module}.py").write_text(fault)
    done = in_a_fresh_python(LOAD, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("None\n") and "TensorBoard goes on without the I2AM tab" in done.stderr


def test_a_context_of_another_form_makes_the_tab_absent(caplog: pytest.LogCaptureFixture) -> None:
    assert Loader().load(object()) is None
    assert "without the I2AM tab" in caplog.text


# -- what it takes ---------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_evaluations_opened(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_arrays, "_KEPT_BYTES", 20_000)
    make_run(logdir / "long", *range(120))
    ask = asker(logdir, "long")

    def open_all() -> int:
        for step in range(120):
            assert ask.ask("evaluation", run="long", step=step).status_code == 200
            assert ask.ask("map", run="long", step=step, pair=0, name="r2g/unified").status_code == 200
            assert ask.ask("picture", run="long", step=step, pair=0, which="target").status_code == 200
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first, second = open_all(), open_all()
    finally:
        tracemalloc.stop()
    assert second - first < 200_000
    kept = stored_arrays._headers._kept.values()
    assert sum(size for _, size in kept) <= 20_000


def test_no_file_stays_open(logdir: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc here")
    ask = asker(logdir, "run")
    (own(logdir / "run") / "step_00000009.safetensors").write_bytes(b"x")
    (own(logdir / "run") / "step_00000010.safetensors").write_bytes(BROKEN_FILES["newer"][0])
    before = len(list(folder.iterdir()))
    with warnings.catch_warnings(record=True) as unclosed:
        warnings.simplefilter("always", ResourceWarning)
        for route, query in CACHED:
            for step in (8, 9, 10, 11):
                ask.ask(route, run="run", **{**query, "step": step})
        gc.collect()
    assert len(list(folder.iterdir())) == before
    assert [w for w in unclosed if "unclosed file" in str(w.message)] == []
