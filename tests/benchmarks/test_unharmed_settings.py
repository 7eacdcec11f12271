"""The search for settings that move a figure unnoticed: its short form finds none, and it finds those that are planted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from benchmarks.unharmed import setting_values, settings
from i2am_debug.capture.plan import CapturePlan
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.scores import IMACSSettings
from i2am_debug.pairs.pair import ValidationPair
from i2am_debug.settings import MonitorSettings


@pytest.fixture(scope="module")
def world() -> setting_values.World:
    return settings.new_world("inpainting", "loss_fn")


@pytest.fixture(scope="module")
def tried() -> list[settings.Tried]:
    return settings.try_worlds(long=False)


def test_no_setting_moves_a_figure_unnoticed(tried: list[settings.Tried]) -> None:
    found = settings.found_in(tried)
    assert found.harm == []
    assert found.counted["settings"] >= 60 and found.counted["moved a figure"] >= 30
    noticed = found.counted["an omission of it would be found"].split(", ")
    assert {"pairs", "regions", "seed", "size", "call", "loss_fn", "batch_size", "pipeline", "scheduler.shift"} <= set(
        noticed
    )
    assert {"imacs.penalty", "plan.seed", "plan.layer_weighting", "family.reference_grid"} <= set(noticed)


def without(omitted: str, evaluation: Evaluation) -> Evaluation:
    told = evaluation.fingerprint.items()
    return replace(
        evaluation, fingerprint={name: value for name, value in told if omitted not in (name, name.split(".")[0])}
    )


@pytest.mark.parametrize(
    ("omitted", "way", "setting"),
    [
        ("seed", "loss_fn", "seed"),
        ("loss_fn", "loss_fn", "loss_fn"),
        ("batch_size", "loss_fn", "batch_size"),
        ("pairs", "teacher_forcing", "pairs.reference"),
        ("family.reference_grid", "teacher_forcing", "family.reference_grid"),
        ("scheduler.num_train_timesteps", "teacher_forcing", "scheduler.num_train_timesteps"),
        ("imacs", "teacher_forcing", "imacs.threshold"),
    ],
)
def test_an_omission_from_the_fingerprint_is_found(
    tried: list[settings.Tried], omitted: str, way: str, setting: str
) -> None:
    where = f"inpainting, {way}"
    whole = [one for one in tried if (one.where, one.change.setting) == (where, setting)]
    assert whole and settings.silent(whole) == []
    lacking = [replace(one, base=without(omitted, one.base), found=without(omitted, one.found)) for one in whole]
    (harm,) = settings.silent(lacking)
    assert harm.startswith(f"{where}: {setting} ") and harm.endswith("unnoticed")


def test_a_name_that_evaluations_do_not_tell_is_found(
    world: setting_values.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Evaluator.fingerprint
    monkeypatch.setattr(
        Evaluator, "fingerprint", lambda *given: {k: v for k, v in whole(*given).items() if k != "seed"}
    )
    (harm,) = settings.silent(list(settings.try_all(world, values=1, only=["seed"])))
    assert harm.startswith("inpainting, loss_fn: seed ") and harm.endswith("unnoticed")


@pytest.mark.parametrize(
    ("of", "table"),
    [
        (MonitorSettings, {**setting_values._MONITOR, **setting_values._OF_PARTS}),
        (CapturePlan, setting_values._PLAN),
        (IMACSSettings, setting_values._IMACS),
        (ValidationPair, setting_values._PAIR),
    ],
)
def test_every_setting_has_values_to_try_and_none_that_is_gone(of: type, table: dict[str, Any]) -> None:
    assert setting_values.untried(of, table) == []
    assert [name for name in table if name not in of.__dataclass_fields__] == []


def test_a_setting_added_without_values_is_named(monkeypatch: pytest.MonkeyPatch, world: setting_values.World) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Longer(MonitorSettings):
        new_setting: int = 0

    monkeypatch.setattr(setting_values, "MonitorSettings", Longer)
    with pytest.raises(
        LookupError, match="MonitorSettings.new_setting has no values to try; add some to .*setting_values"
    ):
        list(setting_values.changes(world))


def test_a_familys_setting_that_is_not_in_the_fingerprint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.silent_families() == []
    monkeypatch.setattr(settings, "of_family", lambda family: {"family": family.name})
    assert "the family ldm_cross_attention: modules is not in the fingerprint" in settings.silent_families()
