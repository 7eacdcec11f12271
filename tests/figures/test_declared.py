"""Every figure is declared once: what is said of it is true, and a figure of one's own is found wherever figures are."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import Run

from i2am_debug import Alert, CapturePlan, DeclaredFigure, Rule, Rules, Undefined, register_figure
from i2am_debug.alerts.alert_state import AlertState
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.errors import UndefinedFigure
from i2am_debug.figures import registry
from i2am_debug.figures.__main__ import as_markdown
from i2am_debug.figures.declaration import COPYING_LAYER, Need
from i2am_debug.figures.declared import FIGURES, PROBES
from i2am_debug.figures.pair_view import PairView
from i2am_debug.figures.sampling_error import Sampled
from i2am_debug.figures.scores import IMACSSettings
from i2am_debug.figures.scoring import figures_of, further_figures_of, left_out_of, score
from i2am_debug.gate.check import check
from i2am_debug.store.run_store import RunStore
from i2am_debug.tab import index_file

ROOT = Path(__file__).parents[2]
STORED = [figure for figure in FIGURES if figure.compute is not None]


@pytest.fixture(scope="module")
def full() -> PairView:
    """A pair that has everything a figure may need."""
    run_pairs = validation_pairs(2, seed=11)
    from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline
    from i2am_debug.demo.inpainting.training import teacher_forced
    from i2am_debug.evaluation.evaluator import Evaluator

    pipeline = load_tiny_pipeline()
    evaluator = Evaluator(pairs=run_pairs, plan=CapturePlan(sampler_steps=2), loss_fn=teacher_forced(pipeline))
    (observation,) = evaluator.observe(pipeline, [0])
    maps = observation.maps
    layers = dict.fromkeys(maps.layers, 0.5)
    maps = dataclasses.replace(
        maps,
        reference_mass=layers,
        reference_mass_inside=layers,
        branch_share=layers,
        **{f"_{name}": getattr(maps, f"_{name}") for name in ("g2r", "g2r_region", "r2g_object_mass")},
    )
    return PairView(
        observation=dataclasses.replace(observation, maps=maps, loss_map=np.ones((16, 16))),
        pair=dataclasses.replace(run_pairs[0], kept=~run_pairs[0].mask),
        reference=0,
        copying_layer=max(maps.layer_information, key=lambda layer: maps.layer_information[layer]),
        settings=IMACSSettings(),
        baseline={f"0/{name}": getattr(maps, name).unified for name in ("r2g", "g2r")},
    )


def without(view: PairView, need: Need) -> PairView:
    """The same without one thing."""
    observation, pair, maps = view.observation, view.pair, view.observation.maps

    def of_maps(**changes: Any) -> PairView:
        kept = {f"_{name}": getattr(maps, f"_{name}") for name in ("g2r", "g2r_region", "r2g_object_mass")}
        changed = dataclasses.replace(maps, **{**kept, **changes})
        return dataclasses.replace(view, observation=dataclasses.replace(observation, maps=changed))

    def of_observation(**changes: Any) -> PairView:
        return dataclasses.replace(view, observation=dataclasses.replace(observation, **changes))

    none = dict.fromkeys(("_g2r", "_g2r_region", "_r2g_object_mass"))
    one = "one reference token"
    match need:
        case Need.HOLE:
            return dataclasses.replace(view, pair=dataclasses.replace(pair, mask=None, kept=None))
        case Need.KEPT:
            return dataclasses.replace(view, pair=dataclasses.replace(pair, kept=None))
        case Need.OBJECT:
            return dataclasses.replace(
                of_maps(_r2g_object_mass=None), pair=dataclasses.replace(pair, reference_mask=None)
            )
        case Need.SEVERAL_TOKENS:
            return of_maps(**none, undefined_g2r=one, undefined_place=one)
        case Need.LOSS:
            none_at_all = Undefined("no loss_fn")
            return of_observation(loss=none_at_all, wrong_reference_loss=none_at_all, loss_map=None)
        case Need.SECOND_PAIR:
            return of_observation(wrong_reference_loss=Undefined("one pair"))
        case Need.BASELINE:
            return dataclasses.replace(view, baseline={})
        case Need.PROBES:
            return view  # they are tried later, once something fires
        case Need.JOINT_ATTENTION:
            return of_maps(reference_mass={}, reference_mass_inside={})
        case Need.DECOUPLED_ATTENTION:
            return of_maps(branch_share={})


def test_every_figure_has_a_value_where_nothing_is_missing(full: PairView) -> None:
    found = figures_of(full)
    undefined = {tag: value.reason for tag, value in found.items() if isinstance(value, Undefined)}
    assert set(undefined) == {probe.tag for probe in PROBES}
    assert set(undefined.values()) == {
        "probes are tried at the baseline and when something fires, with those of the first pairs that have what is changed"
    }
    for figure in STORED:
        if figure in PROBES:
            continue
        low, high = figure.range
        assert (low is None or found[figure.tag] >= low) and (high is None or found[figure.tag] <= high), figure.tag
    of_layers = {tag.rpartition("/")[2] for tag in found if tag.startswith("layer/")}
    assert of_layers == {figure.tag for figure in FIGURES if figure.compute_of_layer}
    whole = {"imacs_g", "imacs_r", "imacs_r_hole", "imacs_g_centred", "imacs_g_object_mass", "energy_r_hole"}
    of_layer = {f"layer/{full.copying_layer}/{tag}" for tag in ("imacs_r_hole", "attention_information")}
    assert set(left_out_of(full)) == {*whole, "attention_information", *of_layer}


@pytest.mark.parametrize("need", Need)
def test_what_a_figure_needs_is_what_it_says(full: PairView, need: Need) -> None:
    found = figures_of(without(full, need))
    undefined = {tag for tag in (f.tag for f in STORED) if isinstance(found[tag], Undefined)}
    lacking = {need, Need.PROBES} | ({Need.KEPT} if need is Need.HOLE else set())  # with neither: no kept region either
    assert undefined == {figure.tag for figure in STORED if lacking & set(figure.needs)}
    for layer_tag, value in found.items():
        if layer_tag.startswith("layer/"):
            declared = registry.declaration_of(layer_tag)
            assert declared is not None and isinstance(value, Undefined) == bool(lacking & set(declared.needs)), (
                layer_tag
            )


def test_a_further_reference_has_those_figures_that_need_no_mask_of_it(full: PairView) -> None:
    observation = dataclasses.replace(full.observation, further={1: full.observation.maps})
    found = further_figures_of(dataclasses.replace(full, observation=observation, reference=1, baseline={}), 1)
    assert set(found) == {figure.tag for figure in FIGURES if figure.of_further_references}
    assert not [f.tag for f in FIGURES if f.of_further_references and Need.OBJECT in f.needs]
    lost = {tag for tag, value in found.items() if isinstance(value, Undefined)}
    assert lost == {figure.tag for figure in FIGURES if Need.BASELINE in figure.needs}


def test_the_page_of_figures_is_the_declarations_own() -> None:
    assert (ROOT / "docs" / "figures.md").read_text(encoding="utf-8") == as_markdown(), (
        "make it anew: python -m i2am_debug.figures > docs/figures.md"
    )


def test_what_is_known_of_a_figure_stands_in_few_files() -> None:
    named = [
        path
        for folder in ("i2am_debug", "callbacks")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".js") and "demo" not in path.parts and "reference_gap" in path.read_text()
    ]
    assert len(named) <= 5, named


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tag": "two words"}, "two words.*expected letters"),
        ({"tag": "layer/x"}, "mean something else"),
        ({"tag": "reference_1/x"}, "mean something else"),
        ({"tag": "alert"}, "mean something else"),
        ({"worse": "sideways"}, "'sharpness'.*sideways.*expected 'down' or 'up'"),
        ({"margin": "lots"}, "figure 'sharpness': margin 'lots'"),
        ({"compute": None, "compute_of_layer": None}, "'sharpness' computes nothing"),
        ({"tag": "imacs_g"}, "figure 'imacs_g' already"),
    ],
)
def test_a_figure_that_can_not_be_is_refused(
    changes: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", [])
    with pytest.raises(ValueError, match=text):
        register_figure(DeclaredFigure(**{**SHARPNESS, **changes}))
    assert not registry.own_figures()


def test_what_is_no_declaration_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a DeclaredFigure, got a str"):
        register_figure("sharpness")  # type: ignore[arg-type]


# -- a figure of one's own -------------------------------------------------------------------------------------------


def blur(view: PairView) -> float:
    """Of the R2G map: the inverse of its peak. Rises when the map goes flat."""
    if view.pair.mask is None:
        raise UndefinedFigure("no hole to look into")
    return float(1 / view.maps.r2g.unified.max()) + OFFSET[0]


OFFSET = [0.0]  # what a training has done to the model, as far as this figure can see
SHARPNESS: dict[str, Any] = {
    "tag": "sharpness",
    "title": "blur of R2G",
    "meaning": "How flat the map is.",
    "unit": "tokens",
    "worse": "up",
    "margin": "10%",
    "compute": blur,
    "compute_of_layer": lambda view, layer: float(1 / view.maps.r2g.by_layer[layer].max()),
    "watched_as": "blur",
    "band": True,
    "in_log": True,
    "on_panel": True,
}


@pytest.fixture()
def own(monkeypatch: pytest.MonkeyPatch) -> DeclaredFigure:
    monkeypatch.setattr(registry, "_REGISTERED", [])
    figure = DeclaredFigure(**SHARPNESS)
    register_figure(figure)
    return figure


@pytest.fixture()
def watched(own: DeclaredFigure, tmp_path: Path) -> tuple[Path, list[Alert]]:
    """A run of two evaluations; at the second the figure is far worse."""
    alerts: list[Alert] = []
    run = Run(tmp_path)
    callback = run.callback(validation_pairs(8, seed=11), rules=Rules(), on_alert=alerts.append, panels=1)
    OFFSET[0] = 0.0
    callback.evaluate(0)
    OFFSET[0] = 1000.0
    callback.evaluate(10)
    run.accelerator.end_training()
    return tmp_path / "run", alerts


def test_a_figure_of_ones_own_is_found_wherever_figures_are(watched: tuple[Path, list[Alert]], caplog: Any) -> None:
    folder, alerts = watched
    # in the store
    first, second = RunStore(folder).evaluations()
    assert np.isfinite(second.values("sharpness")).all() and second.mean("sharpness") > 1000
    layer = first.evaluation.layers[0]
    assert np.isfinite(first.values(f"layer/{layer}/sharpness")).all()
    assert first.evaluation.declared["sharpness"].worse == "up"
    # in TensorBoard
    events = EventAccumulator(str(folder)).Reload()
    assert [point.step for point in events.Scalars("i2am/sharpness")] == [0, 10]
    assert events.Scalars("i2am/interval/sharpness/high") and events.Scalars(f"i2am/layer/{layer}/sharpness")
    layout = next(e.tensor_proto.string_val[0] for e in events.Tensors("custom_scalars__config__"))
    assert b"blur of R2G, tokens, 95 % interval" in layout
    # in a rule
    assert "blur-rise" in {finding.rule for alert in alerts for finding in alert.findings if finding.fired}
    # in the tab
    with open(RunStore(folder).index, "rb") as file:
        shown = index_file.timeline(file, "index.jsonl", None)
    assert shown["figures"]["sharpness"]["mean"][1] > 1000
    assert shown["declared"]["sharpness"]["title"] == "blur of R2G" and shown["declared"]["sharpness"]["of_layer"]
    with open(RunStore(folder).index, "rb") as file:
        assert f"layer/{layer}/sharpness" in index_file.timeline(file, "index.jsonl", "sharpness")["figures"]


def test_check_knows_it_where_nobody_registered_it(watched: tuple[Path, list[Alert]], tmp_path: Path) -> None:
    folder, _ = watched
    baseline = RunStore(folder).evaluations()[0].path
    rules, asked = Rules(rules=()).asking_for(max_drop={"sharpness": "10%"}, fail_under={})
    assert check(folder, baseline, rules=rules, asked_for=asked).status == "regression"
    command = ["-m", "i2am_debug.cli", "check", str(folder), "--baseline", str(baseline), "--max-drop", "sharpness=10%"]
    done = subprocess.run(
        [sys.executable, *command, "--json", str(tmp_path / "v.json")], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    findings = json.loads((tmp_path / "v.json").read_text())["findings"]
    (found,) = [f for f in findings if (f["figure"], f["kind"]) == ("sharpness", "drop")]
    assert found["fired"] and found["change"]["mean"] > 0, "its rise is the bad direction there too"


def test_its_own_reason_and_its_own_error_are_recorded(own: DeclaredFigure, full: PairView) -> None:
    assert figures_of(without(full, Need.HOLE))["sharpness"] == Undefined("no hole to look into")

    def broken(view: PairView) -> float:
        raise RuntimeError("half done")

    registry._REGISTERED[:] = [dataclasses.replace(own, compute=broken)]
    found = figures_of(full)
    assert found["sharpness"] == Undefined("its own function raised RuntimeError: half done")
    assert not isinstance(found["imacs_g"], Undefined)
    registry._REGISTERED[:] = [dataclasses.replace(own, compute=lambda view: "much", reference_lines=broken)]
    scored = score(
        [full.observation],
        [full.pair],
        settings=full.settings,
        sampled=lambda _: Sampled(steps=9),
        baseline=full.baseline,
    )
    assert scored.figures["sharpness"][0] == Undefined(
        "its own function raised ValueError: could not convert string to float: 'much'"
    )
    assert set(scored.reference_lines) == {"imacs_g", "imacs_r"}


def test_the_default_rules_take_it_in(own: DeclaredFigure) -> None:
    by_name = {rule.name: rule for rule in Rules().rules}
    assert by_name["blur-rise"] == Rule(name="blur-rise", kind="drop", figure="sharpness")
    assert by_name["blur-above-best"].higher_is_worse() and str(by_name["blur-rise"].margin_for({})) == "10%"
    assert AlertState(Rules()).rules.rules == Rules().rules


def test_a_tag_is_understood_whatever_it_is_of() -> None:
    information = registry.declaration_of("attention_information")
    assert information is not None
    assert registry.declaration_of("layer/up.1/blocks.0/attention_information") is information
    assert registry.declaration_of("reference_3/attention_information") is information
    copying = registry.declaration_of(COPYING_LAYER + "imacs_r_hole")
    assert copying is not None and copying.tag == COPYING_LAYER + "imacs_r_hole"
    assert registry.declaration_of("drift/js_r2g").worse == "up"  # type: ignore[union-attr]
    assert registry.declaration_of("reference_1/drift/js_r2g").worse == "up"  # type: ignore[union-attr]
    assert registry.declaration_of("unheard_of") is None and not registry.higher_is_worse("unheard_of")
    assert registry.default_margin("layer/up/attention_information") is None
    assert str(registry.default_margin("reference_1/attention_information")) == "10%"


def test_a_declaration_survives_its_stored_form() -> None:
    for figure in FIGURES:
        row = json.loads(json.dumps(figure.to_json()))
        again = DeclaredFigure.from_json(row)
        assert {**again.to_json(), "needs": row["needs"]} == row
