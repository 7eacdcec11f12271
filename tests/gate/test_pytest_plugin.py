"""The fixture `i2am_regression`, as a project that uses it would see it."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored_runs import column, evaluation, sick, write_baseline, write_run

from i2am_debug.store.evaluation_file import read_figures


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder with a healthy run, a sick one, and a baseline."""
    write_run(pytester.path / "healthy", [evaluation(0), evaluation(100)])
    write_run(pytester.path / "sick", [evaluation(0), sick(100)])
    write_baseline(pytester.path / "b.safetensors", evaluation(0))
    return pytester


def run(project: pytest.Pytester, call: str, *options: str) -> pytest.RunResult:
    project.makepyfile(f"def test_it(i2am_regression):\n    i2am_regression.check({call})\n")
    return project.runpytest_inprocess("-p", "i2am_debug.pytest_plugin", "-p", "no:cacheprovider", *options)


def test_a_healthy_run_passes(project: pytest.Pytester) -> None:
    run(project, "'healthy', baseline='b.safetensors'").assert_outcomes(passed=1)


def test_a_sick_run_fails_with_the_verdict_and_no_traceback(project: pytest.Pytester) -> None:
    result = run(project, "'sick', baseline='b.safetensors'")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["regression: step 100 against step 0: worse than allowed: reference_gap", "*FAILED*gap-drop"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_the_baseline_may_be_an_option(project: pytest.Pytester) -> None:
    run(project, "'sick'", "--i2am-baseline", "b.safetensors").assert_outcomes(failed=1)
    run(project, "'healthy'", "--i2am-baseline", "b.safetensors").assert_outcomes(passed=1)


def test_without_any_baseline_the_cure_is_named(project: pytest.Pytester) -> None:
    result = run(project, "'healthy'")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*needs baseline=, or pytest's option --i2am-baseline FILE*"])


@pytest.mark.parametrize("target", ["'healthy'", "'healthy/plugins/i2am_debug/step_00000100.safetensors'"])
def test_the_first_run_writes_the_baseline_and_fails(project: pytest.Pytester, target: str) -> None:
    result = run(project, f"{target}, baseline='new/own.safetensors'")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the baseline new/own.safetensors did not exist and was written*"])
    assert read_figures(project.path / "new/own.safetensors") == evaluation(100)
    run(project, f"{target}, baseline='new/own.safetensors'").assert_outcomes(passed=1)


def test_an_evaluation_in_memory_is_judged_and_kept(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        from i2am_debug.store.evaluation_file import read_figures
        def test_it(i2am_regression):
            seen = read_figures('sick/plugins/i2am_debug/step_00000100.safetensors')
            i2am_regression.check(seen, baseline='memory.safetensors')
        """
    )
    options = ("-p", "i2am_debug.pytest_plugin", "-p", "no:cacheprovider")
    project.runpytest_subprocess(*options).assert_outcomes(failed=1)
    assert read_figures(project.path / "memory.safetensors") == sick(100)
    project.runpytest_subprocess(*options).assert_outcomes(passed=1)  # no worse than itself


def test_regenerating_writes_the_baseline_anew_and_fails(project: pytest.Pytester) -> None:
    result = run(project, "'sick', baseline='b.safetensors'", "--i2am-regen")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the baseline b.safetensors was written anew (--i2am-regen)*"])
    assert read_figures(project.path / "b.safetensors") == sick(100)
    run(project, "'sick', baseline='b.safetensors'").assert_outcomes(passed=1)


def test_what_can_not_be_judged_fails(project: pytest.Pytester) -> None:
    write_run(project.path / "few", [evaluation(0, count=4)])
    write_baseline(project.path / "few.safetensors", evaluation(0, count=4))
    result = run(project, "'few', baseline='few.safetensors'")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["not comparable:*4 pairs, at least 8 are needed*"])


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ("max_drop={'imacs_g': 0.2}", {"passed": 1}),
        ("max_drop={'imacs_g': '5%'}", {"failed": 1}),
        ("fail_under={'imacs_g': 0.1}", {"passed": 1}),
        ("fail_under={'imacs_g': 0.28}", {"failed": 1}),
        ("step=0, max_drop={'imacs_g': '5%'}", {"passed": 1}),
    ],
)
def test_limits_of_the_call(project: pytest.Pytester, settings: str, outcome: dict[str, int]) -> None:
    write_run(project.path / "lower", [evaluation(0), evaluation(100, {"imacs_g": column(0.27)})])  # from 0.3
    run(project, f"'lower', baseline='b.safetensors', {settings}").assert_outcomes(**outcome)


def test_a_misspelt_figure_and_a_missing_run_are_named(project: pytest.Pytester) -> None:
    result = run(project, "'healthy', baseline='b.safetensors', max_drop={'imacs_q': 0.1}")
    result.stdout.fnmatch_lines(["*there is no figure 'imacs_q'; did you mean imacs_*"])
    result = run(project, "'none', baseline='other.safetensors'")
    result.stdout.fnmatch_lines(["*there is no run and no evaluation at none*"])
    assert not (project.path / "other.safetensors").exists()


def test_the_plugin_is_not_loaded_unasked(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("--fixtures", "-p", "no:cacheprovider")
    result.stdout.no_fnmatch_line("*i2am_regression*")


def test_the_fixture_brings_no_torch(project: pytest.Pytester) -> None:
    project.makepyfile(
        "import sys\ndef test_it(i2am_regression):\n    i2am_regression.check('healthy', baseline='b.safetensors')\n"
        "    assert 'torch' not in sys.modules\n"
    )
    project.runpytest_subprocess("-p", "i2am_debug.pytest_plugin", "-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_conftest_way_works_too(project: pytest.Pytester) -> None:
    Path(project.path / "conftest.py").write_text('pytest_plugins = ["i2am_debug.pytest_plugin"]\n')
    project.makepyfile(
        "def test_it(i2am_regression):\n    i2am_regression.check('healthy', baseline='b.safetensors')\n"
    )
    project.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
