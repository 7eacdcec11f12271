"""What a run is told is checked when it is told."""

from __future__ import annotations

import pytest

from i2am_debug.demo.demo_model import demo_model
from i2am_debug.evaluation.spacing import Budget, EveryNSteps
from i2am_debug.settings import MonitorSettings


@pytest.fixture(scope="module")
def pairs():
    return demo_model("inpainting").validation_pairs()[:1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"every_n_steps=None: expected a whole number of at least 1, or budget= in its place"),
        ({"every_n_steps": 0}, "every_n_steps=0: expected a whole number"),
        ({"every_n_steps": 5, "budget": 0.02}, "every_n_steps= and budget= say the same in two ways; give one of them"),
        ({"budget": 2}, r"budget=2: expected a share of the run's time between 0 and 1"),
        ({"budget": "2%"}, r"budget='2%': expected a share"),
        (
            {"every_n_steps": 1, "way": "teacherforcing"},
            r"way='teacherforcing': expected 'loss_fn', 'teacher_forcing', 'sampling' or None",
        ),
        ({"every_n_steps": 1, "way": "loss_fn"}, 'way="loss_fn" needs a loss_fn='),
        ({"every_n_steps": 1, "size": (256,)}, r"size=\(256,\): expected \(width, height\) in pixels"),
        ({"every_n_steps": 1, "size": 256}, "size=256: expected"),
        ({"every_n_steps": 1, "size": (256, 0)}, "size="),
        ({"every_n_steps": 1, "kept_threshold": 3}, "kept_threshold=3: expected a number between 0 and 1"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(pairs, settings, words):
    with pytest.raises(ValueError, match=words):
        MonitorSettings(pairs=pairs, **settings)


def test_the_spacing_is_what_was_asked_for(pairs):
    assert isinstance(MonitorSettings(pairs=pairs, budget=0.02).spacing(), Budget)
    assert isinstance(MonitorSettings(pairs=pairs, every_n_steps=3).spacing(), EveryNSteps)
    with pytest.raises(TypeError, match="no setting 'buget'; did you mean 'budget'"):
        MonitorSettings.of("I2AMCallback", pairs=pairs, buget=0.02)
