"""`i2am-debug check · baseline · calibrate` as a CI job or a tired person calls them: exit codes, files, texts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from stored_runs import COUNT, column, evaluation, generated, maps, pairs, sick, write_baseline, write_run

from i2am_debug import cli
from i2am_debug.alerts.alert import Alert
from i2am_debug.alerts.judge import Finding
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined
from i2am_debug.gate.baseline import save_baseline
from i2am_debug.gate.exit_codes import ExitCode
from i2am_debug.store.evaluation_file import read_figures
from i2am_debug.store.find_run import find_evaluation
from i2am_debug.store.run_store import RunStore

ROOT = Path(__file__).parents[2]
NAN = Undefined("not a finite number")
OK, FAILED, USAGE, NOT_COMPARABLE = ExitCode.OK, ExitCode.FAILED, ExitCode.USAGE, ExitCode.NOT_COMPARABLE
PASS, REGRESSION, LOST, OTHER, FEW = "healthy", "sick", "lost", "other", "few"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    """A folder with a baseline, and runs that pass, have regressed, and can't be compared."""
    folder = tmp_path_factory.mktemp("made")
    write_baseline(folder / "b.safetensors", evaluation())
    ends: dict[str, Evaluation] = {
        PASS: evaluation(100),
        REGRESSION: sick(100),
        LOST: evaluation(100, {"reference_gap": (NAN,) * COUNT}),
        OTHER: evaluation(100, fingerprint={"seed": 9}),
        FEW: evaluation(100, count=3),
    }
    for name, end in ends.items():
        write_run(folder / name, [evaluation(0), end])
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: Any) -> Path:
    """A copy of it, in which the commands are called."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: Any) -> Run:
    def call(*words: Any) -> tuple[int, str, str]:
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as ended:
            code = int(str(ended.code))
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def check(run: Run, target: str = PASS, *words: Any) -> tuple[int, str, str]:
    return run("check", target, "--baseline", "b.safetensors", *words)


# -- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "code"), [(PASS, OK), (REGRESSION, FAILED), (LOST, NOT_COMPARABLE), (OTHER, NOT_COMPARABLE)]
)
def test_check_ends_with_its_verdict(run: Run, target: str, code: ExitCode) -> None:
    ended, out, err = check(run, target)
    assert (ended, err) == (code, "")
    assert out.startswith({OK: "pass: ", FAILED: "regression: ", NOT_COMPARABLE: "not comparable: "}[code])


@pytest.mark.parametrize(
    ("target", "code"), [(PASS, OK), (REGRESSION, OK), (LOST, NOT_COMPARABLE), (OTHER, NOT_COMPARABLE), ("none", USAGE)]
)
def test_exit_zero_turns_a_regression_into_zero_and_nothing_else(run: Run, target: str, code: ExitCode) -> None:
    assert check(run, target, "--exit-zero")[0] == code


def test_exit_zero_still_shows_the_regression(run: Run) -> None:
    ended, out, _ = check(run, REGRESSION, "--exit-zero", "--json", "v.json")
    assert ended == OK and out.startswith("regression: ")
    assert json.loads(Path("v.json").read_text())["exit_code"] == FAILED


def test_the_same_exit_codes_leave_a_real_process(here: Path) -> None:
    program = [sys.executable, "-m", "i2am_debug.cli", "check"]
    for target, baseline, code in (
        (REGRESSION, "b.safetensors", 1),
        (PASS, "none.safetensors", 3),
        ("none", "b.safetensors", 2),
    ):
        done = subprocess.run(
            [*program, target, "--baseline", baseline],
            capture_output=True,
            text=True,
            cwd=here,
            env={"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == code and "Traceback" not in done.stderr


def test_a_terminal_without_unicode_does_not_make_a_pass_or_a_traceback(here: Path) -> None:
    program = [
        sys.executable,
        "-m",
        "i2am_debug.cli",
        "check",
        REGRESSION,
        "--baseline",
        "b.safetensors",
        "--exit-zero",
    ]
    env = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(program, capture_output=True, text=True, cwd=here, env=env)
    assert "UnicodeEncodeError" not in done.stderr and done.returncode == 0


def test_no_baseline_is_not_comparable_and_never_zero(run: Run) -> None:
    ended, out, _ = run("check", PASS, "--baseline", "none.safetensors", "--exit-zero")
    assert ended == NOT_COMPARABLE
    assert "there is no baseline none.safetensors; make one with: i2am-debug baseline save RUN -o none" in out


def test_another_fingerprint_is_told_in_what(run: Run) -> None:
    assert "seed (9, was 0)" in check(run, OTHER)[1]


def test_too_few_pairs_are_told(run: Run, here: Path) -> None:
    write_baseline(here / "few.safetensors", evaluation(count=3))
    ended, out, _ = run("check", FEW, "--baseline", "few.safetensors", "--exit-zero")
    assert ended == NOT_COMPARABLE and "3 pairs, at least 8 are needed" in out


@pytest.mark.parametrize("what", ["target", "baseline"])
def test_a_broken_file_is_not_comparable_and_no_traceback(run: Run, here: Path, what: str) -> None:
    (here / "broken.safetensors").write_bytes(b"broken")
    words = {"target": ("broken.safetensors", "b.safetensors"), "baseline": (PASS, "broken.safetensors")}[what]
    ended, out, err = run("check", words[0], "--baseline", words[1])
    assert ended == NOT_COMPARABLE and "broken.safetensors can't be read" in out + err


def test_a_broken_line_of_the_index_is_no_regression(run: Run, here: Path) -> None:
    with open(here / PASS / "plugins/i2am_debug/index.jsonl", "a") as file:
        file.write('{"global_step": 200}\n')
    assert check(run)[0] not in (OK, FAILED)


@pytest.mark.parametrize("target", [REGRESSION, f"{REGRESSION}/plugins/i2am_debug", "parent"])
def test_a_run_is_given_in_several_ways(run: Run, here: Path, target: str) -> None:
    write_run(here / "parent" / "deep" / "run", [evaluation(0), sick(100)])
    assert check(run, target)[0] == FAILED


def test_a_folder_with_several_runs_lists_them(run: Run) -> None:
    ended, _, err = check(run, ".")
    assert ended == USAGE
    assert all(name in err for name in (PASS, REGRESSION, LOST, OTHER))


def test_a_folder_without_a_run_says_what_it_looked_for(run: Run, here: Path) -> None:
    (here / "empty").mkdir()
    ended, _, err = check(run, "empty")
    assert ended == USAGE and "empty holds no run: there is no plugins/i2am_debug/index.jsonl in or below it" in err


# -- what is wrong on the command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--fail-under", "imacs_r"], "expected FIGURE=VALUE, as in imacs_r=0.2, got 'imacs_r'"),
        (["--fail-under", "imacs_r=abc"], "imacs_r=abc: not a number"),
        (["--fail-under", "imacs_r=nan"], "imacs_r"),
        (["--fail-under", "imacs_q=0.2"], "no figure 'imacs_q'; did you mean"),
        (["--max-drop", "=0.2"], "expected FIGURE=VALUE"),
        (["--max-drop", "imacs_g=-1"], "margin '-1': expected a number above 0, as in 0.03 or \"10%\""),
        (["--max-drop", "imacs_g=inf"], "expected a number above 0"),
        (["--max-drop", "*=10%"], "name one figure"),
        (["--alpha", "0"], "alpha=0.0: expected a number between 0 and 1"),
        (["--alpha", "x"], "--alpha"),
        (["--min-pairs", "1"], "min_pairs=1: expected a whole number of at least 2"),
        (["--fail-on", "fatal"], "invalid choice: 'fatal'"),
        (["--step", "7"], "no evaluation at step 7; it has 0, 100"),
        (["--rules", "none.toml"], "the rules none.toml can't be read: No such file"),
        (["--json", "none/v.json"], "--json: there is no folder none"),
        (["--junit-xml", "none/v.xml"], "--junit-xml: there is no folder none"),
        (["--markdown", "none/v.md"], "--markdown: there is no folder none"),
        (["--pictures", "b.safetensors"], "--pictures: b.safetensors is a file; a folder is needed"),
        (["--github"], "$GITHUB_STEP_SUMMARY is not set"),
    ],
)
def test_wrong_words_are_usage_errors_that_name_the_cure(run: Run, words: list[str], text: str) -> None:
    ended, out, err = check(run, PASS, *words)
    assert (ended, out) == (USAGE, "") and text in err


@pytest.mark.parametrize("option", ["--json", "--junit-xml", "--markdown"])
def test_a_folder_in_a_files_place_is_a_usage_error(run: Run, here: Path, option: str) -> None:
    (here / "folder").mkdir()
    ended, _, err = check(run, PASS, option, "folder")
    assert ended == USAGE and f"{option}: folder" in err


def test_pictures_below_a_file_are_a_usage_error(run: Run) -> None:
    assert check(run, REGRESSION, "--pictures", "b.safetensors/below")[0] == USAGE


def test_a_summary_that_cannot_be_written_is_a_usage_error(run: Run, monkeypatch: Any) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "none/summary.md")
    assert check(run, PASS, "--github")[0] == USAGE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "tool = 3",
        "i2am = 3",
        "[i2am.rules]\nalhpa = 0.1",
        '[i2am.rules]\nalpha = "x"',
        "[i2am.rules.gap-drop]\nmargn = 0.1",
        '[i2am.rules.undefined]\nlimit = "half"',
        "[i2am.rules.mine]\nmargin = 0.1",
        '[i2am.rules.mine]\nkind = "drop"\nfigure = "imacsg"\nmargin = 0.1',
    ],
)
def test_wrong_rules_are_usage_errors_that_name_the_file(run: Run, here: Path, text: str) -> None:
    (here / "rules.toml").write_text(text)
    ended, _, err = check(run, PASS, "--rules", "rules.toml")
    assert ended == USAGE and ("rules.toml" in err or "'mine'" in err)


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--fail-under", "imacs_r=0.2"], OK),  # it is 0.25
        (["--fail-under", "imacs_r=0.3"], FAILED),
        (["--fail-under", "imacs_r = 0.3"], FAILED),
        (["--fail-under", "imacs_r=0.2", "--fail-under", "imacs_g=0.4"], FAILED),
        (["--fail-under", "reference_mass=0.2"], NOT_COMPARABLE),
        (["--max-drop", "imacs_g=0.03"], FAILED),  # it fell from 0.3 to 0.255
        (["--max-drop", "imacs_g=0.05"], OK),
        (["--max-drop", "imacs_g=10%"], FAILED),
        (["--max-drop", "imacs_g=20%"], OK),
        (["--max-drop", "reference_mass=20%"], NOT_COMPARABLE),
        (["--min-pairs", "10"], OK),
        (["--min-pairs", "11"], NOT_COMPARABLE),
        (["--step", "0", "--max-drop", "imacs_g=0.03"], OK),
    ],
)
def test_options_decide(run: Run, here: Path, words: list[str], code: ExitCode) -> None:
    write_run(here / "fallen", [evaluation(0), evaluation(100, {"imacs_g": column(0.255)})])
    assert check(run, "fallen", *words)[0] == code


@pytest.mark.parametrize("twice", [("0.3", "0.2"), ("0.2", "0.3")])
def test_of_two_floors_on_one_figure_none_is_forgotten(run: Run, twice: tuple[str, str]) -> None:
    words = [word for value in twice for word in ("--fail-under", f"imacs_r={value}")]
    assert check(run, PASS, *words)[0] in (FAILED, USAGE)


def test_max_drop_takes_the_place_of_the_default_drop_rule(run: Run) -> None:
    assert check(run, REGRESSION, "--max-drop", "reference_gap=99%")[0] == OK


def test_alpha_is_how_sure_it_must_be(run: Run, here: Path) -> None:
    falls = [0.2] * 8 + [-0.2] * 2  # p = 56 / 1024: so many of the sign patterns have at most two of ten the other way
    write_run(
        here / "torn",
        [evaluation(0), evaluation(9, {"imacs_g": [x - f for x, f in zip(column(0.3), falls, strict=True)]})],
    )
    words = ["--max-drop", "imacs_g=0.1"]
    assert check(run, "torn", *words, "--alpha", "0.06")[0] == FAILED
    assert check(run, "torn", *words, "--alpha", "0.05")[0] == OK


def test_fail_on_is_the_least_that_fails(run: Run) -> None:
    assert check(run, REGRESSION, "--fail-on", "warning")[0] == FAILED
    Path("mild.toml").write_text("[i2am.rules.gap-halved]\nenabled = false\n")
    ended, out, _ = check(run, REGRESSION, "--fail-on", "critical", "--rules", "mild.toml")
    assert ended == OK and "less severe than critical" in out and re.search(r"^ *warning +reference_gap", out, re.M)


def test_rules_of_a_file_are_used(run: Run, here: Path) -> None:
    (here / "pyproject.toml").write_text(
        "[tool.i2am.rules.gap-drop]\nenabled = false\n[tool.i2am.rules.gap-halved]\nenabled = false\n"
        "[tool.i2am.rules]\nalpha = 0.01\n"
    )
    assert check(run, REGRESSION, "--rules", "pyproject.toml")[0] == OK
    (here / "i2am.toml").write_text('[i2am.rules.mine]\nkind = "ceiling"\nfigure = "loss"\nlimit = 0.01\n')
    ended, out, _ = check(run, PASS, "--rules", "i2am.toml")
    assert ended == FAILED and "mine" in out


def test_options_of_the_command_line_override_the_files(run: Run, here: Path) -> None:
    (here / "i2am.toml").write_text("[i2am.rules]\nmin_pairs = 11\n")
    assert check(run, PASS, "--rules", "i2am.toml")[0] == NOT_COMPARABLE
    assert check(run, PASS, "--rules", "i2am.toml", "--min-pairs", "10")[0] == OK


# -- files ------------------------------------------------------------------------------------------------------------


def test_every_report_is_written(run: Run) -> None:
    words = ["--json", "v.json", "--junit-xml", "v.xml", "--markdown", "v.md"]
    assert check(run, REGRESSION, *words)[0] == FAILED
    tree = json.loads(Path("v.json").read_text(encoding="utf-8"))
    root = ElementTree.parse("v.xml").getroot()
    assert tree["status"] == "regression" and root.find(".//failure") is not None
    assert len(root.findall("testsuite[@name='i2am rules']/testcase")) == len(tree["findings"])
    assert len(root.findall("testsuite[@name='i2am pairs']/testcase")) == COUNT
    assert "| **FAILED** | `reference_gap` |" in Path("v.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("why", ["no baseline", "broken target", "evaluation gone"])
def test_reports_are_written_where_nothing_could_be_compared(run: Run, here: Path, why: str) -> None:
    baseline, target = "none.safetensors" if why == "no baseline" else "b.safetensors", PASS
    if why == "broken target":
        target = "broken.safetensors"
        (here / target).write_bytes(b"broken")
    elif why == "evaluation gone":
        (here / PASS / "plugins/i2am_debug/step_00000100.safetensors").unlink()
    Path("v.json").write_text('{"status": "pass"}')  # of the job before: must not be taken for this one's
    words = ["--json", "v.json", "--junit-xml", "v.xml", "--markdown", "v.md"]
    assert run("check", target, "--baseline", baseline, *words)[0] == NOT_COMPARABLE
    assert json.loads(Path("v.json").read_text())["status"] == "not comparable"
    assert ElementTree.parse("v.xml").getroot().find(".//error") is not None
    assert "not comparable" in Path("v.md").read_text()


def test_github_gets_a_summary_and_an_error_line(run: Run, here: Path, monkeypatch: Any) -> None:
    summary = here / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    _, out, _ = check(run, REGRESSION, "--github")
    (line,) = (line for line in out.splitlines() if line.startswith("::"))
    assert line.startswith("::error title=I2AM regression::regression: step 100 against step 0") and "%0A" in line
    assert summary.read_text().startswith("before\n## I2AM: regression\n")
    assert "::" not in check(run, PASS, "--github")[1]
    assert "## I2AM: pass" in summary.read_text()


def test_a_pairs_name_cannot_speak_to_github(run: Run, here: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "summary.md"))
    names = tuple(f"{i}\n::error::injected\r::warning::injected" for i in range(COUNT))
    write_baseline(here / "b.safetensors", evaluation(pairs=names))
    write_run(here / "hostile", [evaluation(0, pairs=names), sick(100, pairs=names)])
    _, out, _ = check(run, "hostile", "--github")
    lines = [line for line in re.split(r"[\r\n]+", out) if line.lstrip().startswith("::")]
    assert len(lines) == 1 and lines[0].startswith("::error title=I2AM regression::")


# -- pictures ---------------------------------------------------------------------------------------------------------


def opened(folder: str) -> list[str]:
    """Every file in the folder, opened."""
    for path in Path(folder).iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 200
    return sorted(path.name for path in Path(folder).iterdir())


def full_run(folder: Path, rows: Sequence[Evaluation], arrays: dict[str, np.ndarray], **options: Any) -> Path:
    return write_run(folder, rows, [arrays] * len(rows), **options)


def test_pictures_are_of_the_worst_four_pairs(run: Run, here: Path) -> None:
    gaps = [0.001 * (i % 5) for i in range(COUNT)]  # pairs 4 and 9 keep most
    fallen = evaluation(100, {"reference_gap": gaps})
    rows = [evaluation(0, {"reference_gap": (0.06,) * COUNT}), fallen]
    full_run(here / "run", rows, {**maps(), **generated()}, pictures=True)
    write_baseline(here / "b.safetensors", rows[0])
    _, out, _ = check(run, "run", "--pictures", "p/deep", "--markdown", "v.md")
    assert opened("p/deep") == [f"pair_{i:02d}.png" for i in (0, 1, 5, 6)]
    links = re.findall(r"\]\((p/deep/pair_\d\d\.png)\)", Path("v.md").read_text())
    assert sorted(links) == [f"p/deep/pair_{i:02d}.png" for i in (0, 1, 5, 6)]
    assert all(link in out for link in links)


@pytest.mark.parametrize(
    "missing", ["nothing", "pictures", "masks", "generated", "g2r", "maps", "the baseline's maps", "all"]
)
def test_pictures_are_drawn_from_what_there_is(run: Run, here: Path, missing: str) -> None:
    kept: dict[str, np.ndarray] = {}
    if missing not in ("maps", "all"):
        kept.update(maps(names=("r2g",) if missing == "g2r" else ("r2g", "g2r")))
    if missing not in ("generated", "all"):
        kept.update(generated())
    folder = full_run(here / "run", [evaluation(0), sick(100)], kept)
    if missing not in ("pictures", "all"):
        RunStore(folder).write_pairs(sick(), pairs(sick().pairs, masks=missing != "masks"))
    write_baseline(here / "b.safetensors", evaluation(), {} if missing in ("the baseline's maps", "all") else kept)
    assert check(run, "run", "--pictures", "p")[0] == FAILED
    assert len(opened("p")) == 4


def test_a_baselines_own_pictures_are_drawn_where_the_run_has_none(run: Run, here: Path) -> None:
    store = RunStore(full_run(here / "first", [evaluation(0)], {**maps(), **generated()}, pictures=True))
    (here / "b.safetensors").unlink()
    save_baseline(store, find_evaluation(store, None), here / "b.safetensors")
    with_pictures = check(run, REGRESSION, "--pictures", "p")
    assert with_pictures[0] == FAILED and opened("p")
    colours = {pixel for _, pixel in Image.open(next(Path("p").iterdir())).convert("RGB").getcolors(1 << 20) or []}
    assert (60, 120, 200) in colours  # of the reference


def test_a_pass_draws_no_pictures(run: Run) -> None:
    ended, out, _ = check(run, PASS, "--pictures", "p")
    assert ended == OK and not Path("p").exists() and ".png" not in out


@pytest.mark.parametrize("name", ["a|b\nc", "<script>", "\x00\x1b[31m", "../../up", "図" * 80, " ", "%s{0}"])
def test_pictures_of_any_name_are_drawn_into_the_folder(run: Run, here: Path, name: str) -> None:
    names = tuple(f"{name}{i}" for i in range(COUNT))
    full_run(here / "run", [evaluation(0, pairs=names), sick(100, pairs=names)], maps())
    write_baseline(here / "b.safetensors", evaluation(pairs=names))
    assert check(run, "run", "--pictures", "p", "--markdown", "v.md", "--junit-xml", "v.xml")[0] == FAILED
    assert all(re.fullmatch(r"pair_\d\d\.png", found) for found in opened("p"))
    assert len(ElementTree.parse("v.xml").getroot().findall("testsuite[@name='i2am pairs']/testcase")) == COUNT


def test_pairs_that_were_renamed_are_still_drawn(run: Run, here: Path) -> None:
    # Names are no part of the fingerprint: the same pictures under other names are comparable.
    names = tuple(f"renamed {i}" for i in range(COUNT))
    write_run(here / "run", [evaluation(0, pairs=names), sick(100, pairs=names)])
    assert check(run, "run", "--pictures", "p")[0] == FAILED
    assert len(opened("p")) == 4


def test_pictures_that_cannot_be_read_do_not_hide_the_verdict(run: Run, here: Path) -> None:
    folder = full_run(here / "run", [evaluation(0), sick(100)], maps(), pictures=True)
    RunStore(folder).pairs_file(sick()).write_bytes(b"broken")
    ended, _, _ = check(run, "run", "--pictures", "p", "--json", "v.json", "--exit-zero")
    assert Path("v.json").is_file() and ended == OK


# -- baseline ---------------------------------------------------------------------------------------------------------


def test_a_baseline_is_saved_shown_and_checked_against(run: Run, here: Path) -> None:
    ended, out, _ = run("baseline", "save", REGRESSION, "--step", "0", "-o", "new/b.safetensors")
    assert ended == OK and out.rstrip().endswith("new/b.safetensors")
    assert read_figures("new/b.safetensors") == evaluation(0)
    assert run("baseline", "show", "new/b.safetensors")[:2] == (OK, out.rpartition("\n\n")[0] + "\n")
    assert run("check", REGRESSION, "--baseline", "new/b.safetensors")[0] == FAILED
    assert run("check", PASS, "--baseline", "new/b.safetensors")[0] == OK


def test_a_baseline_is_of_the_last_evaluation_by_default(run: Run) -> None:
    assert run("baseline", "save", REGRESSION, "-o", "n.safetensors")[0] == OK
    assert read_figures("n.safetensors").global_step == 100


def test_a_baseline_is_not_saved_over_another(run: Run, here: Path) -> None:
    before = (here / "b.safetensors").read_bytes()
    ended, _, err = run("baseline", "save", REGRESSION, "-o", "b.safetensors")
    assert ended not in (OK, NOT_COMPARABLE)
    assert (
        "b.safetensors exists; to put another evaluation in its place: i2am-debug baseline update b.safetensors RUN"
        in err
    )
    assert (here / "b.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["save", PASS, "-o", "b.json"], "expected a file ending in .safetensors"),
        (["save", PASS, "-o", "."], "expected a file ending in .safetensors"),
        (["save", "none", "-o", "n.safetensors"], "no run and no evaluation at none"),
        (["save", ".", "-o", "n.safetensors"], "several runs; say which"),
        (["save", PASS, "--step", "7", "-o", "n.safetensors"], "no evaluation at step 7"),
        (["save", PASS, "-o", "b.safetensors/n.safetensors"], "b.safetensors"),
        (["update", "b.safetensors", "none"], "no run and no evaluation at none"),
        (["save"], "required"),
        ([], "required"),
    ],
)
def test_wrong_words_about_baselines_are_usage_errors(run: Run, words: list[str], text: str) -> None:
    ended, _, err = run("baseline", *words)
    assert ended == USAGE and text in err
    assert not Path("n.safetensors").exists()


@pytest.mark.parametrize("words", [("show", "none.safetensors"), ("show", PASS), ("update", "none.safetensors", PASS)])
def test_a_baseline_that_is_not_there_is_an_error(run: Run, words: tuple[str, ...]) -> None:
    ended, _, err = run("baseline", *words)
    assert ended in (FAILED, USAGE) and words[1] in err and "Traceback" not in err


def test_an_update_says_what_changes_and_keeps_margins(run: Run, here: Path) -> None:
    write_baseline(here / "b.safetensors", evaluation(margins={"imacs_g": 0.02}))
    ended, out, _ = run("baseline", "update", "b.safetensors", REGRESSION)
    assert ended == OK and "step 0 → step 100" in out and "reference_gap: 0.0600" in out
    assert read_figures("b.safetensors").margins == {"imacs_g": 0.02}
    assert check(run, REGRESSION)[0] == OK  # it is the new normal


def test_an_update_with_another_fingerprint_drops_margins_and_says_so(run: Run, here: Path) -> None:
    write_baseline(here / "b.safetensors", evaluation(margins={"imacs_g": 0.02}))
    _, out, _ = run("baseline", "update", "b.safetensors", OTHER)
    assert "margins are dropped" in out and read_figures("b.safetensors").margins == {}


# -- calibrate --------------------------------------------------------------------------------------------------------


def wobbling(folder: Path, levels: Sequence[float], **options: Any) -> Path:
    rows = [evaluation(10 * i, {"imacs_g": column(level)}, **options) for i, level in enumerate(levels)]
    return write_run(folder, rows, [maps()] * len(rows))


CALM = [0.3, 0.3, 0.29, 0.3, 0.3, 0.3]  # falls by 0.01


def test_calibrated_margins_are_stored_and_then_used(run: Run, here: Path) -> None:
    wobbling(here / "calm", CALM)
    write_run(here / "fallen", [evaluation(0), evaluation(100, {"imacs_g": column(0.255)})])
    (here / "i2am.toml").write_text('[i2am.rules.mine]\nkind = "drop"\nfigure = "imacs_g"\n')
    words = ["--rules", "i2am.toml"]
    assert check(run, "fallen", *words)[0] == OK  # the default margin is 0.05
    ended, out, _ = run("calibrate", "calm", "--baseline", "b.safetensors")
    assert ended == OK and re.search(r"^  imacs_g +0\.03 +largest fall 0\.01 of 5$", out, re.M)
    assert read_figures("b.safetensors").margins["imacs_g"] == pytest.approx(0.03)
    assert check(run, "fallen", *words)[0] == FAILED
    assert check(run, "fallen", *words, "--max-drop", "imacs_g=0.05")[0] == OK  # what is asked for comes first
    assert "calibrated margins: " in run("baseline", "show", "b.safetensors")[1]


def test_calibrating_without_a_baseline_stores_nothing(run: Run, here: Path) -> None:
    wobbling(here / "calm", CALM)
    before = (here / "b.safetensors").read_bytes()
    ended, out, _ = run("calibrate", "calm")
    assert ended == OK and "stored" not in out and (here / "b.safetensors").read_bytes() == before


def test_relative_margins_are_told_as_shares(run: Run, here: Path) -> None:
    rows = [evaluation(i, {"reference_gap": column(x)}) for i, x in enumerate([0.06, 0.06, 0.054, 0.06, 0.06, 0.06])]
    write_run(here / "calm", rows)
    assert re.search(r"^  reference_gap +30% +largest fall 10\.0% of 5$", run("calibrate", "calm")[1], re.M)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "give either healthy RUNs or --pipeline FOLDER --pairs FOLDER"),
        ([PASS, "--pipeline", "x", "--pairs", "y"], "give either healthy RUNs or --pipeline"),
        (["--pipeline", "x"], "--pipeline needs --pairs FOLDER"),
        (["none"], "no run and no evaluation at none"),
        ([PASS], "1 evaluations after the first are too few to calibrate with; at least 5"),
        ([PASS, "--baseline", "none.safetensors"], "--baseline: there is no file none.safetensors"),
        (["--pipeline", ".", "--pairs", "."], "is no pipeline folder: it has no model_index.json"),
    ],
)
def test_wrong_words_of_calibrate_are_usage_errors(run: Run, words: list[str], text: str) -> None:
    ended, out, err = run("calibrate", *words)
    assert (ended, out) == (USAGE, "") and text in err


@pytest.mark.parametrize("words", [["--repeats", "0"], ["--repeats", "-1"], ["--steps", "0"], ["--repeats", "4"]])
def test_numbers_that_cannot_work_are_refused_before_anything_is_loaded(run: Run, words: list[str]) -> None:
    ended, _, err = run("calibrate", "--pipeline", "none", "--pairs", "none", *words)
    assert ended == USAGE and words[0] in err


def test_a_run_of_other_settings_is_not_comparable_with_the_baseline(run: Run, here: Path) -> None:
    wobbling(here / "calm", CALM, fingerprint={"plan": {"heads": 8}})
    before = (here / "b.safetensors").read_bytes()
    ended, _, err = run("calibrate", "calm", "--baseline", "b.safetensors")
    assert ended == NOT_COMPARABLE and "plan.heads: 8 here, 64 there" in err
    assert (here / "b.safetensors").read_bytes() == before


def test_a_run_of_another_seed_can_calibrate(run: Run, here: Path) -> None:
    wobbling(here / "calm", CALM, fingerprint={**evaluation().fingerprint, "seed": 7})
    assert run("calibrate", "calm", "--baseline", "b.safetensors")[0] == OK


def test_a_run_whose_index_another_version_wrote_can_calibrate(run: Run, here: Path) -> None:
    index = RunStore(wobbling(here / "calm", CALM)).index
    index.write_text(index.read_text().replace(evaluation().comparable_id, "0123456789ab"))
    assert run("calibrate", "calm")[0] == OK


def test_a_run_that_alerted_is_asked_about(run: Run, here: Path, caplog: Any) -> None:
    found = Finding(rule="gap-drop", kind="drop", severity="warning", figure="reference_gap", fired=True)
    RunStore(wobbling(here / "calm", CALM)).write_alert(
        Alert(global_step=20, baseline_step=0, fine_at=10, findings=(found,))
    )
    ended, _, told = run("calibrate", "calm")
    assert ended == USAGE and "calm raised an alert at step 20" in told and "--anyway" in told
    assert run("calibrate", "calm", "--anyway")[0] == OK


def test_a_baseline_after_a_critical_alert_is_asked_about(run: Run, here: Path, caplog: Any) -> None:
    found = Finding(rule="gap-drop", kind="drop", severity="critical", figure="reference_gap", fired=True)
    RunStore(here / REGRESSION).write_alert(Alert(global_step=100, baseline_step=0, fine_at=0, findings=(found,)))
    ended, _, told = run("baseline", "save", REGRESSION, "-o", "new.safetensors")
    assert ended == USAGE and "critical alert at step 100" in told and "--step 0, or --anyway" in told
    assert not (here / "new.safetensors").exists()
    assert run("baseline", "save", REGRESSION, "--step", "0", "-o", "early.safetensors")[0] == OK
    assert run("baseline", "save", REGRESSION, "--anyway", "-o", "new.safetensors")[0] == OK
    assert "raised an alert at step 100" in caplog.text


def test_a_baseline_of_too_few_pairs_is_said_to_be_of_no_use(run: Run, here: Path, caplog: Any) -> None:
    assert run("baseline", "save", FEW, "-o", "few.safetensors")[0] == OK
    assert "not comparable: it has 3 pairs, at least 8 are needed" in caplog.text


def test_the_files_of_pairs_may_lie_outside_if_asked_for(here: Path, monkeypatch: Any) -> None:
    from i2am_debug.gate import repeated_evaluation

    asked = []
    monkeypatch.setattr(repeated_evaluation, "evaluate_repeatedly", lambda *_, **options: asked.append(options) or [])
    for flag in ([], ["--allow-outside"]):
        cli.main(["calibrate", "--pipeline", "p", "--pairs", "v", *flag])
    assert [one["allow_outside"] for one in asked] == [False, True]
