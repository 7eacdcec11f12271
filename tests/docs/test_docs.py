"""README and docs: short where they sell, linked, and true: their commands run, their Python is Python that the package has."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing_pipeline import before_and_after, kontext_with_text_encoders
from PIL import Image

import i2am_debug
from i2am_debug import cli
from i2am_debug.settings import MonitorSettings
from i2am_debug.store.run_store import RunStore

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
OLD_RUN = ROOT / "tests" / "fixtures" / "written_by_0.1.0"
MOST_WORDS = 1200

# What a test can't run, and what is looked at instead.
ONLY_LOOKED_AT = {
    "make": "installs or takes minutes: its target exists",
    "tensorboard": "a server: the tab's tests start it",
    ".venv/bin/tensorboard": "the same",
    ".venv/bin/pytest": "the tests themselves",
    ".venv/bin/coverage": "the tests themselves",
    "pip": "installs",
    "python": "a module of this repository: it exists, its tests run it",
}


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of this language, "" for those without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for named, text in found if named == language]


def commands(path: Path) -> Iterator[list[str]]:
    """Every command in the blocks without a language that begin with one."""
    for block in blocks(path, ""):
        lines = [line.partition(" #")[0].strip() for line in block.splitlines() if line.strip()]
        if shlex.split(lines[0])[0] in (*ONLY_LOOKED_AT, "i2am-debug"):
            yield from map(shlex.split, lines)


COMMANDS = [(path, command) for path in PAGES for command in commands(path)]
PYTHON = [(path, block) for path in PAGES for block in blocks(path, "python")]


def names_of(cases: list[tuple[Path, Any]]) -> list[str]:
    return [f"{path.name} {number}" for number, (path, _) in enumerate(cases)]


# -- text ------------------------------------------------------------------------------------------------------------


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(path: Path) -> Iterator[tuple[Path, str]]:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            yield (path.parent / file).resolve() if file else path, anchor


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_and_picture_is_there(path: Path) -> None:
    for target, anchor in links(path):
        assert target.exists(), f"{path.name} names {target}"
        assert not anchor or anchor in anchors(target), f"{path.name} names {target.name}#{anchor}"


def test_every_page_is_reached_from_the_front_page() -> None:
    reached = {target for target, _ in links(ROOT / "README.md")}
    assert not set(PAGES[1:]) - reached


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the documented commands name."""
    from i2am_debug.demo.inpainting.pairs import validation_pairs
    from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline

    folder = tmp_path_factory.mktemp("docs")
    for name in ("good", "new", "healthy_1", "healthy_2"):
        shutil.copytree(OLD_RUN / "run", folder / "runs" / name)
    (folder / "runs" / "good" / "plugins" / "i2am_debug" / "alerts.jsonl").unlink()
    for healthy in ("healthy_1", "healthy_2"):  # the same evaluation several times is a run that does not move
        store = RunStore(folder / "runs" / healthy)
        first = store.evaluations()[0].evaluation
        store.alerts_file.unlink()
        store.index.unlink()
        for step in range(4):
            store.write(replace(first, global_step=step), {}, {})
    shutil.copy(OLD_RUN / "baseline.safetensors", folder)
    shutil.copy(ROOT / "examples" / "ci" / "i2am.toml", folder)
    pipeline = load_tiny_pipeline()
    pipeline.save_pretrained(folder / "PIPELINE_FOLDER")
    pair = validation_pairs(1, seed=7)[0]
    for name, picture in (("R", pair.reference), ("I", pair.target), ("M", pair.mask_image)):
        picture.save(folder / f"{name}.png")
    kontext_with_text_encoders().save_pretrained(folder / "KONTEXT_FOLDER")
    for name, picture in zip(("before", "after"), before_and_after(), strict=True):
        picture.save(folder / f"{name}.png")
    write_pairs(folder / "val")
    (folder / "train.py").write_text(
        "from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline as make_pipeline\n"
    )
    return folder


def write_pairs(folder: Path) -> None:
    """Pairs of the demo's, with everything that a pair may have."""
    from i2am_debug.demo.inpainting.pairs import validation_pairs

    folder.mkdir()
    rows = []
    for number, pair in enumerate(validation_pairs(8, seed=7)):
        named = {
            "file_name": pair.target,
            "reference_file_name": pair.reference,
            "mask_file_name": pair.mask_image,
            "reference_mask_file_name": Image.fromarray(np.uint8(pair.reference_mask) * 255),
        }
        for key, picture in named.items():
            picture.save(folder / f"{key}_{number}.png")
        rows.append({key: f"{key}_{number}.png" for key in named})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=names_of(COMMANDS))
def test_a_command_does_what_it_says(
    path: Path, command: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = command
    if program == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text(), arguments
    elif program == "python":
        assert arguments[0] == "-m" and (ROOT / Path(*arguments[1].split("."))).with_suffix(".py").exists(), arguments
    elif program == "i2am-debug":
        monkeypatch.chdir(here)
        monkeypatch.delitem(sys.modules, "train", raising=False)
        monkeypatch.syspath_prepend(str(here))
        if arguments[:2] == ["baseline", "save"]:
            Path(arguments[arguments.index("-o") + 1]).unlink()
        code = cli.main([*arguments, *(["--steps", "2"] if arguments[0] == "explain" else [])])
        # The run's newest evaluation is a bad one: judging it fails, unless asked not to, or for the one before the fault.
        fails = arguments[0] == "check" and not {"--exit-zero", "--step"} & set(arguments)
        assert code == fails, capsys.readouterr()
    else:
        assert program in ONLY_LOOKED_AT


def test_commands_were_found() -> None:
    assert len([command for _, command in COMMANDS if command[0] == "i2am-debug"]) >= 9
    assert set(ONLY_LOOKED_AT) >= {command[0] for _, command in COMMANDS} - {"i2am-debug"}


def test_every_command_of_the_command_line_is_documented() -> None:
    parser = cli._parser()
    (sub,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    missing = [name for name in sub.choices if f"i2am-debug {name}" not in text and f"make {name}" not in text]
    assert missing == []


# -- Python ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "source"), PYTHON, ids=names_of(PYTHON))
def test_python_names_what_there_is(path: Path, source: str) -> None:
    """Every import is there, and every call of an imported name takes the arguments it is given."""
    known: dict[str, Any] = {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            known.update({alias.asname or alias.name: getattr(module, alias.name) for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
            called = known[node.func.id]
            given = {keyword.arg for keyword in node.keywords if keyword.arg}
            if node.func.id == "I2AMCallback":
                own = set(inspect.signature(called).parameters) | set(MonitorSettings.__dataclass_fields__)
                assert given <= own, given - own
            else:
                inspect.signature(called).bind_partial(**dict.fromkeys(given))
    for name in re.findall(r"from i2am_debug import (.*)", source):
        assert set(re.findall(r"\w+", name)) <= set(i2am_debug.__all__)


def test_the_look_at_one_picture_runs_as_it_stands(tiny_pipeline: Any) -> None:
    from i2am_debug.demo.inpainting.pairs import validation_pairs

    (source,) = blocks(ROOT / "docs" / "one-picture.md", "python")
    pair = validation_pairs(1, seed=7)[0]

    def pipeline(**call: Any) -> Any:
        return tiny_pipeline(**call, num_inference_steps=2)

    given = {"picture": pair.target, "hole": pair.mask_image, "reference": pair.reference}
    source = source.replace("image = pipeline(", "image = call(").replace("# picture, hole", "# picture and hole")
    names: dict[str, Any] = {**given, "pipeline": tiny_pipeline, "call": pipeline}
    exec(compile(source, "one-picture.md", "exec"), names)
    assert isinstance(names["image"], Image.Image) and names["maps"].g2r.unified.sum() == pytest.approx(1, abs=1e-4)
    assert np.isfinite(list(names["maps"].layer_information.values())).all()


def test_the_figure_of_ones_own_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    from i2am_debug.figures import registry

    monkeypatch.setattr(registry, "_REGISTERED", [])
    (source,) = blocks(ROOT / "docs" / "figures.md", "python")
    exec(compile(source, "figures.md", "exec"), {})
    assert [figure.tag for figure in registry.own_figures()] == ["on_the_face"]


@pytest.mark.parametrize("page", ["README.md", "docs/training-loops.md"])
def test_the_lines_in_a_loop_run_as_they_stand(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loader of two steps, and every evaluation cut short: what is called, and in which order, is what is tested."""
    from training import Run

    from i2am_debug.demo.inpainting.pairs import validation_pairs
    from i2am_debug.demo.inpainting.training import teacher_forced

    run = Run(tmp_path)
    monkeypatch.setattr(i2am_debug.ValidationPairs, "from_folder", classmethod(lambda *_: validation_pairs(2, seed=7)))
    names: dict[str, Any] = {
        "accelerator": run.accelerator,
        "make_pipeline": lambda: run.pipeline,
        "loss_fn": teacher_forced(run.pipeline),
        "loader": [0, 1],
        "global_step": 0,
    }
    source = next(block for block in blocks(ROOT / page, "python") if "on_train_end" in block)
    with contextlib.suppress(SystemExit):
        exec(compile(source, page, "exec"), names)
    assert [one.global_step for one in names["callback"].history()] == [0]
    run.accelerator.end_training()


def test_rules_of_ones_own_are_read_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(block for block in blocks(ROOT / "docs" / "alerts.md", "python") if "with_rule" in block)
    shutil.copy(ROOT / "examples" / "ci" / "i2am.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(source.partition("callback = ")[0], names)
    assert "floor" in {rule.name for rule in names["rules"].rules}
