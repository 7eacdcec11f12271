"""A pytest fixture that fails a test when a model uses its reference less than its baseline. Opt-in:

    pytest_plugins = ["i2am_debug.gate.pytest_plugin"]  # in conftest.py

    def test_the_model_still_uses_its_reference(i2am_regression):
        i2am_regression.check("runs/finetune", baseline="baseline.safetensors", max_drop={"imacs_g": 0.03})

It is no entry point, since those are loaded into every pytest run of an environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ..alerts.rules import Rules
from ..errors import I2AMError
from ..figures.record import Evaluation
from ..store.evaluation_file import read_figures, write_evaluation
from ..store.find_run import find_evaluation, find_store
from .baseline import save_baseline
from .check import Verdict, check
from .verdict_reports import as_text


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--i2am-baseline FILE` and `--i2am-regen`."""
    group = parser.getgroup("i2am", "I2AM regression")
    group.addoption("--i2am-baseline", metavar="FILE", help="the baseline of tests that name none")
    group.addoption("--i2am-regen", action="store_true", help="write the baselines anew; those tests fail, saying so")


@dataclass(frozen=True, kw_only=True)
class Regression:
    """What the fixture `i2am_regression` gives."""

    default_baseline: str | None
    regenerate: bool

    def check(
        self,
        target: str | Path | Evaluation,
        *,
        baseline: str | Path | None = None,
        max_drop: Mapping[str, float | str] | None = None,
        fail_under: Mapping[str, float] | None = None,
        rules: Rules | None = None,
        step: int | None = None,
    ) -> Verdict:
        """Passes if nothing is worse than allowed; fails the test otherwise, also where it can't be judged.

        Without a baseline file yet, or with `--i2am-regen`, writes one and fails, so that no run passes unjudged.

        Args:
            target: a run's folder, an evaluation's file, or an `Evaluation`, such as `I2AMCallback.evaluate` returns.
            baseline: default: `--i2am-baseline`.
            max_drop: figure → margin, 0.03 or "10%"; fail_under: figure → the least its mean may be.
            rules: default: `Rules()`.
        """
        given = baseline if baseline is not None else self.default_baseline
        if given is None:
            pytest.fail("i2am_regression.check needs baseline=, or pytest's option --i2am-baseline FILE", pytrace=False)
        path = Path(given)
        if self.regenerate or not path.exists():
            existed = path.exists()
            _write(target, path, step)
            done = "was written anew (--i2am-regen)" if existed else "did not exist and was written"
            pytest.fail(
                f"the baseline {path} {done}; look at it (i2am-debug baseline show {path}) and run again", False
            )
        own, asked_for = (rules or Rules()).asking_for(max_drop=max_drop or {}, fail_under=fail_under or {})
        try:
            verdict = check(target, path, rules=own, asked_for=asked_for, step=step)
        except ValueError as error:  # a misspelt figure, no such run
            pytest.fail(f"i2am_regression.check: {error}", pytrace=False)
        if verdict.exit_code:
            pytest.fail(as_text(verdict), pytrace=False)
        return verdict


@pytest.fixture
def i2am_regression(request: pytest.FixtureRequest) -> Regression:
    """Compares a run or an evaluation with a stored baseline: `i2am_regression.check(...)`."""
    option = request.config.getoption
    return Regression(default_baseline=option("--i2am-baseline"), regenerate=option("--i2am-regen"))


def _write(target: str | Path | Evaluation, path: Path, step: int | None) -> None:
    if isinstance(target, Evaluation):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_evaluation(path, replace(target, margins={}), {}, {})
    elif Path(target).is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        read_figures(target)  # raises for what is no evaluation
        path.write_bytes(Path(target).read_bytes())
    else:
        try:
            store = find_store(target)
            save_baseline(store, find_evaluation(store, step), path)
        except I2AMError:
            raise
        except ValueError as error:
            pytest.fail(f"i2am_regression.check: {error}", pytrace=False)
