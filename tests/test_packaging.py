"""What is built from this checkout, installed where the checkout is not to be seen: it is whole, and runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "i2am_debug", "callbacks")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, f'build_{sys.argv[1]}')(sys.argv[2])"
FOUND = """
import importlib.metadata, json, i2am_debug, i2am_debug.callbacks
from tensorboard.plugins import base_plugin
plugins = importlib.metadata.entry_points(group="tensorboard_plugins")
(plugin,) = [one for one in plugins if one.name == "i2am_debug"]
context = base_plugin.TBContext(logdir=".", multiplexer=None)
backend = plugin.load()().load(context)
told = {"file": i2am_debug.__file__, "callbacks": i2am_debug.callbacks.__file__, "tab": type(backend).__name__}
print(json.dumps({**told, "version": importlib.metadata.version("i2am-debug")}))
"""
LOOK = """
from i2am_debug import CapturePlan
from i2am_debug.callbacks import I2AMPlainCallback
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline
pipeline, quick = load_tiny_pipeline(), dict(plan=CapturePlan(sampler_steps=1), panels=1, pictures=0, every_n_steps=1)
callback = I2AMPlainCallback(pipeline.unet, pipeline=pipeline, pairs=validation_pairs(1, seed=1), logdir="run", **quick)
callback.on_train_begin(0)
callback.on_train_end(0)
"""


def built(what: str, tree: Path, into: Path) -> Path:
    """Builds a wheel or an sdist as a build front end does, with the setuptools that is installed."""
    into.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", BUILD, what, str(into)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = [path for path in into.iterdir() if path.suffix == {"wheel": ".whl", "sdist": ".gz"}[what]]
    return result


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in BUILT_FROM:
        source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(source, folder)
    return built("sdist", folder, folder / "dist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as where there is no wheel."""
    folder = tmp_path_factory.mktemp("from_sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return built("wheel", tree, folder / "dist")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with the wheel alone, but for the dependencies that lie in ours: not our own editable install, since
    Python reads no .pth file in a folder that another one names."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", "-q"]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site,) = (folder / "lib").glob("python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(ours) + "\n")
    yield folder


def ran(environment: Path, *command: str) -> str:
    """What a program of the environment says, run where nothing of the checkout lies."""
    without = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    program = [str(environment / "bin" / command[0]), *command[1:]]
    done = subprocess.run(program, capture_output=True, text=True, cwd=environment, env=without, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(tree: Path, prefix: str) -> set[str]:
    """All that belongs to the package, by the names that it has in a wheel."""
    kept = (p for p in tree.rglob("*") if p.is_file() and p.suffix in (".py", ".typed", ".safetensors", ".json"))
    return {f"{prefix}/{path.relative_to(tree)}" for path in kept if "__pycache__" not in path.parts}


def test_a_wheel_built_from_the_sdist_is_whole(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    static = {f"i2am_debug/tab/static/{path.name}" for path in (ROOT / "i2am_debug/tab/static").iterdir()}
    expected = files(ROOT / "i2am_debug", "i2am_debug") | files(ROOT / "callbacks", "i2am_debug/callbacks") | static
    assert inside >= expected, sorted(expected - inside)
    others = {name.split("/")[0] for name in inside}
    assert others == {"i2am_debug", "i2am_debug-0.1.0.dist-info"}, "nothing else is laid beside other packages"


def test_it_is_found_and_brings_its_tab(environment: Path) -> None:
    told = json.loads(ran(environment, "python", "-c", FOUND))
    assert Path(told["file"]).is_relative_to(environment) and Path(told["callbacks"]).is_relative_to(environment)
    assert told["tab"] == "Backend" and told["version"] == "0.1.0"
    assert "usage: i2am-debug" in ran(environment, "i2am-debug", "--help")


def test_it_looks_at_the_models_that_it_ships(environment: Path) -> None:
    ran(environment, "python", "-c", LOOK)
    assert list((environment / "run").rglob("step_00000000.safetensors"))
    assert list((environment / "run/i2am_pictures").glob("events.out.tfevents.*")), "and draws"
