"""The commands in `examples/ci/`, run as the services run them, but for the installation."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from stored_runs import evaluation, maps, sick, write_baseline, write_run

from i2am_debug.alerts.rules import Rules

EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    write_baseline(tmp_path / "baseline.safetensors", evaluation(0))
    return tmp_path


def commands(name: str) -> list[str]:
    """Each command of the job, without those that install."""
    tree: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    if name.startswith("github"):
        found = [step["run"] for step in tree["jobs"]["i2am"]["steps"] if "run" in step]
    else:
        found = tree["reference-regression"]["script"]
    kept = [command for command in found if not command.startswith("pip install")]
    assert len(kept) == len(found) - 1, "the job installs once"
    return kept


def job(name: str, folder: Path) -> tuple[int, str]:
    """Runs the job's commands until one fails; exit code and output."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    told = ""
    for command in commands(name):
        done = subprocess.run(
            ["bash", "-e", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
        )
        told += done.stdout + done.stderr
        if done.returncode:
            return done.returncode, told
    return 0, told


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_a_job_passes_fails_and_refuses_as_it_must(name: str, checkout: Path) -> None:
    write_run(checkout / "runs/finetune", [evaluation(0), evaluation(100)])
    assert job(name, checkout)[0] == 0
    shutil.rmtree(checkout / "runs")
    write_run(checkout / "runs/finetune", [evaluation(0), sick(100)], [maps(), maps(peak=5)], pictures=True)
    code, told = job(name, checkout)
    assert code == 1 and "reference_gap" in told
    assert (checkout / "i2am.xml").is_file() and (checkout / "i2am.md").is_file()
    assert list((checkout / "i2am-pictures").glob("*.png"))
    (checkout / "baseline.safetensors").unlink()
    assert job(name, checkout)[0] == 3


def test_the_github_job_writes_its_summary_and_an_annotation(checkout: Path) -> None:
    write_run(checkout / "runs/finetune", [evaluation(0), sick(100)])
    told = job("github-actions.yml", checkout)[1]
    assert any(line.startswith("::error title=I2AM regression::") for line in told.splitlines())
    assert (checkout / "summary.md").read_text().startswith("## I2AM: regression")


def test_what_the_jobs_keep_is_what_they_write(checkout: Path) -> None:
    github = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())
    gitlab = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())["reference-regression"]
    kept = github["jobs"]["i2am"]["steps"][-1]["with"]["path"].split()
    assert set(kept) == {*gitlab["artifacts"]["paths"], gitlab["artifacts"]["reports"]["junit"]}
    assert all(path in " ".join(commands(name)) for path in kept for name in ("github-actions.yml", "gitlab-ci.yml"))


def test_the_example_rules_are_read_and_act(checkout: Path) -> None:
    rules = {rule.name: rule for rule in Rules.from_toml(EXAMPLES / "i2am.toml").rules}
    assert rules["gap-drop"].severity == "critical" and rules["gap-drop"].kind == "drop"
    assert not {"loss-rise", "loss-above-best"} & rules.keys() and rules["information-floor"].limit == 1


def test_the_example_test_is_the_same_gate(checkout: Path) -> None:
    write_run(checkout / "runs/finetune", [evaluation(0), sick(100)])
    command = [sys.executable, "-m", "pytest", "-p", "i2am_debug.pytest_plugin", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(
        [
            *command,
            str(EXAMPLES / "test_reference.py"),
            "--rootdir",
            str(checkout),
            "--i2am-baseline",
            "baseline.safetensors",
        ],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "worse than allowed: reference_gap" in done.stdout


def test_the_versions_that_are_tried_are_those_that_are_allowed() -> None:
    config = configparser.ConfigParser()
    config.read(EXAMPLES.parents[1] / "setup.cfg", encoding="utf-8")
    jobs = yaml.safe_load((EXAMPLES / "versions.yml").read_text(encoding="utf-8"))["jobs"]
    classified = re.findall(r"Python :: (3\.\d+)", config["metadata"]["classifiers"])
    assert jobs["newest"]["strategy"]["matrix"]["python"] == classified
    assert f">={jobs['oldest']['steps'][1]['with']['python-version']}" == config["options"]["python_requires"]
    lines = (EXAMPLES / "oldest.txt").read_text(encoding="utf-8").splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    asked = dict(re.findall(r"^([\w-]+)>=([\d.]+)(?:;.*)?$", config["options"]["install_requires"], re.MULTILINE))
    others = ("peft", "transformers", "tomli")  # not needed by all, or with an old Python only
    assert len(asked) >= 10
    for name, oldest in asked.items():
        if name not in others:
            assert tried[name] in (oldest, f"{oldest}.*", f"{oldest}.0"), name
