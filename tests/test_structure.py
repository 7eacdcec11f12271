"""The project's own rules: public names, the direction of imports, no torch at the front door, sizes of files."""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

import i2am_debug

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "i2am_debug"

PUBLIC = {
    "trace": "capture.trace",
    "AttributionMaps": "capture.maps",
    "Direction": "capture.maps",
    "imacs": "figures.scores",
    "IMACSSettings": "figures.scores",
    "js_distance": "figures.distances",
    "CapturePlan": "capture.plan",
    "ValidationPair": "pairs.pair",
    "ValidationPairs": "pairs.collection",
    "Evaluation": "figures.record",
    "Undefined": "figures.values",
    "DeclaredFigure": "figures.declaration",
    "register_figure": "figures.registry",
    "Alert": "alerts.alert",
    "Rule": "alerts.rule",
    "Rules": "alerts.rules",
    "IMACSRegression": "errors",
}
WITHOUT_TORCH = {name for name, home in PUBLIC.items() if home.split(".")[0] in ("pairs", "alerts", "errors")} | {
    *(
        "CapturePlan",
        "Evaluation",
        "Undefined",
        "DeclaredFigure",
        "register_figure",
        "js_distance",
        "AttributionMaps",
        "Direction",
    )
}

# From what knows nothing to what knows all, the way of the data: a room (a folder, or a module of the root) imports only
# from rooms above it. Inside a folder imports must not go in circles.
ROOMS = (
    "errors",
    "grids",
    "pairs",
    "families",
    "capture",
    "figures",
    "evaluation",
    "alerts",
    "store",
    "report",
    "guard",
    "settings",
    "loop",
    "run",
    "monitor",
    "gate",
    "doctor",
    "pytest_plugin",
    "tab",
    "callbacks",
    "demo",
    "cli",
    "__main__",
)
LAZY = ("", "callbacks")  # name what they hold and import it when it is first used
ROOT_MODULES, LONGEST, MEDIAN = 9, 400, 150


def library() -> dict[str, Path]:
    """Module name, without the package's → file, in the layout that is installed."""
    found = {}
    for folder, prefix in ((PACKAGE, ()), (ROOT / "callbacks", ("callbacks",))):
        for path in sorted(folder.rglob("*.py")):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


LIBRARY = library()


def imports(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, str, str | None]]:
    """(statement, module as written with its leading dots, imported name or None) of every import, lazy ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, "." * node.level + (node.module or ""), alias.name) for alias in node.names)


def own_imports(module: str, source: str, *, is_package: bool) -> set[str]:
    """The library's modules that `module` imports; a public name taken from the front door counts as its home."""
    found = set()
    for _, written, name in imports(ast.parse(source)):
        dots = len(written) - len(written.lstrip("."))
        if dots:
            package = ["i2am_debug", *module.split(".")] if module else ["i2am_debug"]
            up = dots - 1 if is_package else dots
            target = [*package[: len(package) - up], *filter(None, written[dots:].split("."))]
        else:
            target = written.split(".")
        if target[0] == "callbacks":
            target = ["i2am_debug", *target]
        if target[0] != "i2am_debug":
            continue
        base = ".".join(target[1:])
        if name is not None and f"{base}.{name}".lstrip(".") in LIBRARY:
            found.add(f"{base}.{name}".lstrip("."))
        elif base == "" and name in PUBLIC:
            found.add(PUBLIC[name])
        elif base:
            found.add("callbacks.accelerate_loop" if base == "callbacks" else base)
    return found


def room(module: str) -> str:
    return module.partition(".")[0]


def wrong_imports(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Imports that go up, or to oneself; those inside a folder are looked at by `circles`."""
    order = {name: i for i, name in enumerate(ROOMS)}
    return [
        f"{module} imports {other}"
        for other in sorted(own_imports(module, source, is_package=is_package))
        if other == module or (room(other) != room(module) and order[room(other)] > order[room(module)])
    ]


def circles(inside: Mapping[str, set[str]]) -> list[str]:
    """The modules of a circle, module → what it imports; none where there is no circle."""
    try:
        tuple(TopologicalSorter(inside).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def external_imports(path: Path) -> set[str]:
    return {written.split(".")[0] for _, written, _ in imports(ast.parse(path.read_text())) if written[0] != "."}


def length(path: Path) -> int:
    return len(path.read_text().splitlines())


def top_level_names(path: Path) -> set[str]:
    body = ast.parse(path.read_text()).body
    names = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return names | {t.id for n in body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}


# -- public names ----------------------------------------------------------------------------------------------------


def test_the_public_names_are_these() -> None:
    assert i2am_debug.__all__ == ["__version__", *PUBLIC]
    assert dir(i2am_debug) == sorted(i2am_debug.__all__)


@pytest.mark.parametrize(("name", "home"), PUBLIC.items())
def test_a_public_name_comes_from_its_home(name: str, home: str) -> None:
    assert i2am_debug._HOME[name] == home
    assert name in top_level_names(LIBRARY[home])
    if name in WITHOUT_TORCH:
        module = importlib.import_module(f"i2am_debug.{home}")
        assert getattr(i2am_debug, name) is getattr(module, name)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(LIBRARY[""].read_text())
    shown = {name: written.lstrip(".") for _, written, name in imports(tree) if written[0] == "."}
    assert shown == PUBLIC


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'imax'; it has __version__, trace, .*Rules"):
        i2am_debug.imax  # noqa: B018


def test_callbacks_cannot_be_imported_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "callbacks", raising=False)
    with pytest.raises(ImportError, match=r"i2am_debug\.callbacks.*from i2am_debug\.callbacks import I2AMCallback"):
        importlib.import_module("callbacks")
    assert "callbacks" not in sys.modules


# -- the direction of imports ----------------------------------------------------------------------------------------


def test_every_module_lies_in_a_room() -> None:
    assert {room(module) for module in LIBRARY if module} == set(ROOMS)
    assert len(set(ROOMS)) == len(ROOMS)


@pytest.mark.parametrize("module", [module for module in LIBRARY if module])
def test_imports_go_from_later_to_earlier_rooms(module: str) -> None:
    path = LIBRARY[module]
    assert wrong_imports(module, path.read_text(), is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize("folder", sorted({room(module) for module in LIBRARY if "." in module}))
def test_imports_inside_a_folder_make_no_circle(folder: str) -> None:
    inside = {}
    for module, path in LIBRARY.items():
        if room(module) == folder:
            found = own_imports(module, without_type_checking(path), is_package=path.name == "__init__.py")
            inside[module] = {other for other in found if room(other) == folder}
    assert circles(inside) == []


def test_a_circle_would_be_seen() -> None:
    assert circles({"store.a": {"store.b"}, "store.b": {"store.a"}, "store.c": set()})
    assert not circles({"store.a": {"store.b"}, "store.b": set(), "store.c": {"store.a", "store.b"}})


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("capture.maps", "from ..figures.scores import imacs", "figures.scores"),
        ("capture.maps", "def f():\n    from ..report import render", "report.render"),
        ("capture.maps", "import i2am_debug.store.packing as s", "store.packing"),
        ("capture.maps", "from i2am_debug import imacs", "figures.scores"),
        ("store.files", "from i2am_debug.callbacks import I2AMCallback", "callbacks.accelerate_loop"),
        ("store.files", "import callbacks.trackers", "callbacks.trackers"),
        ("alerts.judge", "from ..store.run_store import RunStore", "store.run_store"),
        ("families.family", "from ..capture.maps import Direction", "capture.maps"),
        ("pairs.pair", "from ..demo.inpainting.model import new_unet", "demo.inpainting.model"),
        ("errors", "from .errors import I2AMError", "errors"),
    ],
)
def test_a_wrong_import_would_be_seen(module: str, source: str, wrong: str) -> None:
    assert wrong_imports(module, source) == [f"{module} imports {wrong}"]


def without_type_checking(path: Path) -> str:
    """The source without what only type checkers read."""
    tree = ast.parse(path.read_text())
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    return ast.unparse(tree)


def test_front_doors_import_nothing_of_the_library_at_run_time() -> None:
    for name in LAZY:
        assert own_imports(name, without_type_checking(LIBRARY[name]), is_package=True) == set(), name


@pytest.mark.parametrize("loop", ["accelerate_loop", "lightning_loop", "plain_loop", "trainer_loop"])
def test_a_callback_is_thin(loop: str) -> None:
    path = LIBRARY[f"callbacks.{loop}"]
    assert len(own_imports(f"callbacks.{loop}", path.read_text(), is_package=False)) <= 7


def test_only_the_demo_and_the_command_line_know_the_callbacks() -> None:
    users = {
        module
        for module, path in LIBRARY.items()
        if any(
            other.startswith("callbacks")
            for other in own_imports(module, path.read_text(), is_package=path.name == "__init__.py")
        )
    }
    assert {u for u in users if not u.startswith("callbacks")} == {"demo.finetune", "cli"}


def test_only_the_product_has_a_softmax() -> None:
    """In powers of two; attribution brings them to other normalisers."""
    users = set()
    for module, path in LIBRARY.items():
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name.lower() in ("softmax", "log_softmax", "logsumexp", "exp2"):
                users.add(module)
    assert users == {"capture.product", "capture.attention"}


def test_only_drawing_imports_matplotlib() -> None:
    assert {m for m, path in LIBRARY.items() if "matplotlib" in external_imports(path)} == {
        "report.render",
        "report.lettering",
    }


# -- no torch --------------------------------------------------------------------------------------------------------

HEAVY = ("torch", "diffusers", "accelerate")
LIGHT = tuple(
    f"i2am_debug.{module}"
    for module in (
        *("cli", "pytest_plugin", "pairs.collection", "capture.plan", "capture.maps", "figures.record"),
        *("alerts.alert", "store.run_store", "store.packing", "store.find_run", "gate.check", "gate.baseline"),
        *("gate.calibration", "gate.worst_pairs", "gate.verdict_reports", "gate.commands", "tab.backend", "tab.loader"),
        *("doctor.commands", "doctor.findings", "doctor.cards"),
    )
)


def heavy_modules_after(code: str, *paths: Path) -> list[str]:
    """Which of `HEAVY` a fresh interpreter has loaded after the code, with `paths` before all others."""
    program = f"import sys\nsys.path[:0] = {list(map(str, paths))!r}\n{code}\n"
    program += f"import json\nprint()\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_front_door_and_help_import_no_torch() -> None:
    code = "import i2am_debug, " + ", ".join(LIGHT)
    code += "\ntry:\n    i2am_debug.cli.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0"
    code += "\nelse:\n    raise AssertionError('--help did not exit')"
    assert heavy_modules_after(code) == []


def test_an_import_of_torch_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "outer.py").write_text("import inner")
    (tmp_path / "inner.py").write_text("def load():\n    import torch\nload()")
    assert heavy_modules_after("import outer", tmp_path) == ["torch"]


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", LIBRARY)
def test_a_file_is_one_idea(module: str) -> None:
    assert length(LIBRARY[module]) <= LONGEST


def test_most_files_are_short_and_few_stand_at_the_root() -> None:
    assert median(length(path) for path in LIBRARY.values()) <= MEDIAN
    assert len(list(PACKAGE.glob("*.py"))) <= ROOT_MODULES


@pytest.mark.parametrize("module", LIBRARY)
def test_a_file_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(ast.parse(LIBRARY[module].read_text()))


def test_there_is_no_file_for_whatever_is_left_over() -> None:
    assert not {path.name for path in LIBRARY.values()} & {"utils.py", "util.py", "base.py", "helpers.py", "common.py"}


def asserts_something(source: str) -> bool:
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Attribute) and node.attr in ("raises", "warns"))
        for node in ast.walk(ast.parse(source))
    )


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("test_*.py")), ids=lambda path: path.name)
def test_a_test_file_asserts_something(path: Path) -> None:
    assert asserts_something(path.read_text())


def test_a_test_file_without_an_assertion_would_be_seen() -> None:
    assert not asserts_something("def test_it():\n    '''assert True'''\n    print('assert')")


def test_the_version_is_written_the_same_twice() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert config["metadata"]["version"] == i2am_debug.__version__


def test_every_package_is_shipped() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = {name for name, path in LIBRARY.items() if path.name == "__init__.py"}
    assert set(config["options"]["packages"].split()) == {f"i2am_debug.{p}".rstrip(".") for p in packages}
