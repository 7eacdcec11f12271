"""`i2am-debug check · baseline · calibrate` on the command line. Imports torch only for `calibrate --pipeline`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import I2AMError, NotComparable
from .exit_codes import ExitCode

_RUN = "a run's folder, or a folder with one run in it"


def add_commands(commands: Any) -> None:
    """Adds the three commands to argparse's subparsers."""
    _add_check(commands)
    _add_baseline(commands)
    _add_calibrate(commands)


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="compare a run's last evaluation with a baseline, for CI",
        epilog="Exit codes: 0 nothing is worse than allowed; 1 a regression; 2 wrong words or settings; 3 not comparable "
        "(no baseline, other pairs or settings, figures without a value, too few pairs).",
    )
    check.add_argument(
        "target", type=Path, metavar="RUN_OR_EVALUATION", help=f"{_RUN}, or an evaluation's .safetensors"
    )
    check.add_argument("--baseline", type=Path, required=True, metavar="FILE", help="made by: i2am-debug baseline save")
    check.add_argument(
        "--step", type=int, metavar="N", help="judge the run's evaluation at this step, not its last one"
    )
    check.add_argument(
        "--rules", type=Path, metavar="FILE.toml", help="rules from [i2am.rules] instead of the default ones"
    )
    check.add_argument(
        "--fail-under",
        type=_assignment,
        action="append",
        default=[],
        metavar="FIGURE=VALUE",
        help="fail if the figure's mean is below this, as in imacs_r=0.2; may be given several times",
    )
    check.add_argument(
        "--max-drop",
        type=_assignment,
        action="append",
        default=[],
        metavar="FIGURE=MARGIN",
        help="fail if the figure's mean fell by more than this, as in imacs_g=0.03 or reference_gap=10%%",
    )
    check.add_argument(
        "--alpha", type=float, metavar="A", help="a drop counts if its sign-flip test has p below this (0.05)"
    )
    check.add_argument("--min-pairs", type=int, metavar="N", help="fewer pairs are not comparable (8)")
    check.add_argument(
        "--fail-on",
        choices=("info", "warning", "critical"),
        default="warning",
        help="the least severe finding that fails (default: warning)",
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="the verdict for a program")
    check.add_argument("--junit-xml", type=Path, metavar="FILE", help="a test case for each rule and each pair")
    check.add_argument("--markdown", type=Path, metavar="FILE", help="the verdict for a pull request")
    check.add_argument("--github", action="store_true", help="into $GITHUB_STEP_SUMMARY, and an ::error line")
    check.add_argument(
        "--pictures", type=Path, metavar="DIR", help="pictures of the worst pairs, at the baseline and now"
    )
    check.add_argument("--exit-zero", action="store_true", help="exit with 0 at a regression too; 2 and 3 stay")
    check.set_defaults(run=_check)


def _add_baseline(commands: Any) -> None:
    baseline = commands.add_parser("baseline", help="keep an evaluation to compare with: save · show · update")
    kinds = baseline.add_subparsers(title="commands", metavar="COMMAND", required=True)
    save = kinds.add_parser("save", help="write a run's evaluation as a baseline")
    save.add_argument("run_folder", type=Path, metavar="RUN", help=_RUN)
    save.add_argument("--step", type=int, metavar="N", help="the evaluation at this step (default: the last one)")
    save.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.safetensors", help="where to write it")
    save.add_argument("--anyway", action="store_true", help="also what was evaluated after a critical alert")
    save.set_defaults(run=_save)
    show = kinds.add_parser("show", help="what a baseline holds")
    show.add_argument("file", type=Path, metavar="FILE.safetensors")
    show.add_argument("--layers", action="store_true", help="every layer's figures, not the copying layer's alone")
    show.set_defaults(run=_show)
    update = kinds.add_parser("update", help="put another evaluation in a baseline's place; its margins stay")
    update.add_argument("file", type=Path, metavar="FILE.safetensors")
    update.add_argument("run_folder", type=Path, metavar="RUN", help=_RUN)
    update.add_argument("--step", type=int, metavar="N", help="the evaluation at this step (default: the last one)")
    update.set_defaults(run=_update)


def _add_calibrate(commands: Any) -> None:
    calibrate = commands.add_parser(
        "calibrate",
        help="measure how far a healthy model's figures move, as margins for the drop rules",
        description="From healthy runs, or from repeated evaluations of one pipeline with other noise seeds. The latter "
        "sees the noise of evaluating only, not the wobble of training: prefer runs.",
    )
    calibrate.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="folders of runs known to be healthy")
    calibrate.add_argument("--pipeline", type=Path, metavar="FOLDER", help="a pipeline saved with save_pretrained")
    calibrate.add_argument(
        "--pairs", type=Path, metavar="FOLDER", help="with --pipeline: validation pairs with metadata.jsonl"
    )
    calibrate.add_argument(
        "--allow-outside", action="store_true", help="with --pairs: also files that lie outside that folder"
    )
    calibrate.add_argument(
        "--repeats", type=at_least(5), default=8, metavar="N", help="with --pipeline: evaluations (default: 8)"
    )
    calibrate.add_argument(
        "--steps", type=at_least(1), metavar="N", help="with --pipeline: sampler steps (default: its own)"
    )
    calibrate.add_argument("--baseline", type=Path, metavar="FILE", help="store the margins in this baseline")
    calibrate.add_argument("--anyway", action="store_true", help="also from runs that raised alerts")
    calibrate.set_defaults(run=_calibrate)


# -- check -----------------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    try:
        return _checked(args)
    except (OSError, ValueError) as error:
        return _usage(f"check: {error}")
    except Exception:  # Python's own exit code would be 1, which means a regression here
        traceback.print_exc()
        return ExitCode.NOT_COMPARABLE


def _checked(args: argparse.Namespace) -> int:
    from . import verdict_reports as reports
    from .check import check

    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if args.github and not summary:
        return _usage("check: --github: $GITHUB_STEP_SUMMARY is not set, which GitHub Actions does")
    outputs = {f"--{name.replace('_', '-')}": getattr(args, name) for name in ("json", "junit_xml", "markdown")}
    for option, path in (*outputs.items(), *([("--github", Path(summary))] if args.github and summary else [])):
        if path is not None and path.is_dir():
            return _usage(f"check: {option}: {path} is a folder; a file is needed")
        if path is not None and not path.parent.is_dir():
            return _usage(f"check: {option}: there is no folder {path.parent}")
    if args.pictures is not None:
        existing = next(p for p in (args.pictures, *args.pictures.absolute().parents) if p.exists())
        if not existing.is_dir():
            return _usage(f"check: --pictures: {existing} is a file; a folder is needed")
    rules, asked_for = _rules(args)
    verdict = check(args.target, args.baseline, rules=rules, asked_for=asked_for, step=args.step, fail_on=args.fail_on)
    say(reports.as_text(verdict))
    pictures = _drawn(verdict, args.pictures)
    say(*pictures.values())
    relative = {}
    if args.markdown is not None:
        relative = {pair: os.path.relpath(path, args.markdown.parent) for pair, path in pictures.items()}
    texts = {
        "--json": lambda: reports.as_json(verdict),
        "--junit-xml": lambda: reports.as_junit(verdict),
        "--markdown": lambda: reports.as_markdown(verdict, relative),
    }
    for option, path in outputs.items():
        if path is not None:
            path.write_text(texts[option](), encoding="utf-8")
    if args.github and summary:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(reports.as_markdown(verdict))
        say(reports.as_github_annotation(verdict))
    if args.exit_zero and verdict.exit_code == ExitCode.FAILED:
        return ExitCode.OK
    return verdict.exit_code


def _drawn(verdict: Any, folder: Path | None) -> dict[str, Path]:
    """Pictures are an extra: whatever is wrong with them must not change the verdict."""
    if folder is None:
        return {}
    from .worst_pairs import draw_worst_pairs

    try:
        return draw_worst_pairs(verdict, folder)
    except Exception as error:
        print(f"i2am-debug check: --pictures: could not be drawn: {error}", file=sys.stderr)
        return {}


def say(*lines: Any) -> None:
    """Prints lines that are not empty; whoever reads the output may have seen enough."""
    try:
        for line in lines:
            if str(line):
                print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _rules(args: argparse.Namespace) -> tuple[Any, list[str]]:
    """The rules, and the names of those that the command line itself asks for."""
    from dataclasses import replace

    from ..alerts.rules import Rules

    rules = Rules() if args.rules is None else Rules.from_toml(args.rules)
    if args.alpha is not None:
        rules = replace(rules, alpha=args.alpha)
    if args.min_pairs is not None:
        rules = replace(rules, min_pairs=args.min_pairs)
    for option, given in (("--fail-under", args.fail_under), ("--max-drop", args.max_drop)):
        figures = [figure for figure, _ in given]
        for figure in figures:
            if figures.count(figure) > 1:
                raise ValueError(f"{option} {figure} is given twice")
    floors = {figure: _number(f"--fail-under {figure}", value) for figure, value in args.fail_under}
    return rules.asking_for(max_drop=dict(args.max_drop), fail_under=floors)


def _number(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{what}={text}: not a number") from None


def _assignment(text: str) -> tuple[str, str]:
    figure, equals, value = text.partition("=")
    if not (figure and equals and value):
        raise argparse.ArgumentTypeError(f"expected FIGURE=VALUE, as in imacs_r=0.2, got {text!r}")
    return figure.strip(), value.strip()


# -- baseline --------------------------------------------------------------------------------------------------------


def _save(args: argparse.Namespace) -> int:
    from ..store.find_run import find_evaluation, find_store
    from .baseline import describe, require_healthy, require_new, save_baseline

    if args.output.suffix != ".safetensors" or args.output.is_dir():
        return _usage(f"baseline save: -o {args.output}: expected a file ending in .safetensors")

    def save() -> None:
        require_new(args.output)
        store = find_store(args.run_folder)
        stored = find_evaluation(store, args.step)
        if not args.anyway:
            require_healthy(store, stored)
        print(describe(save_baseline(store, stored, args.output)))
        print(f"\n{args.output}")

    return _with_usage_errors("baseline save", save)


def _show(args: argparse.Namespace) -> int:
    from ..store.evaluation_file import read_figures
    from .baseline import describe

    print(describe(read_figures(args.file), layers=args.layers))
    return ExitCode.OK


def _update(args: argparse.Namespace) -> int:
    from ..store.find_run import find_evaluation, find_store
    from .baseline import compare, update_baseline

    def update() -> None:
        store = find_store(args.run_folder)
        print(compare(*update_baseline(args.file, store, find_evaluation(store, args.step))))
        print(f"\n{args.file}")

    return _with_usage_errors("baseline update", update)


def _with_usage_errors(command: str, work: Callable[[], None]) -> int:
    """A `ValueError` is a wrong argument; what the package's own errors mean is left to `cli.main`."""
    try:
        work()
    except I2AMError:
        raise
    except (ValueError, OSError) as error:
        return _usage(f"{command}: {error}")
    return ExitCode.OK


# -- calibrate -------------------------------------------------------------------------------------------------------


def _calibrate(args: argparse.Namespace) -> int:
    from .baseline import set_margins

    if bool(args.runs) == (args.pipeline is not None):
        return _usage("calibrate: give either healthy RUNs or --pipeline FOLDER --pairs FOLDER")
    if args.pipeline is not None and args.pairs is None:
        return _usage("calibrate: --pipeline needs --pairs FOLDER")
    if args.runs and args.pairs is not None:
        return _usage("calibrate: --pairs goes with --pipeline")
    if len({run.resolve() for run in args.runs}) < len(args.runs):
        return _usage("calibrate: a run is given twice")
    if args.baseline is not None and not args.baseline.is_file():
        return _usage(f"calibrate: --baseline: there is no file {args.baseline}")

    def calibrate() -> None:
        found = _from_runs(args) if args.runs else _from_pipeline(args)
        width = max(map(len, found))
        print("three times the largest fall seen, as a margin:")
        for figure, one in found.items():
            largest = f"{one.largest:.1%}" if one.margin.relative else f"{one.largest:.3g}"
            print(f"  {figure:<{width}}  {one.margin!s:>7}   largest fall {largest} of {one.count}")
        if args.baseline is not None:
            set_margins(args.baseline, {figure: one.margin.to_json() for figure, one in found.items()})
            print(f"\nstored in {args.baseline}")

    try:
        return _with_usage_errors("calibrate", calibrate)
    except NotComparable as error:
        print(f"i2am-debug calibrate: {error}", file=sys.stderr)
        return ExitCode.NOT_COMPARABLE


def _from_runs(args: argparse.Namespace) -> Any:
    from ..figures.record import cure, differences
    from ..store.evaluation_file import read_figures
    from ..store.find_run import find_store
    from .calibration import margins_from_runs

    runs, baselines = [], []
    for folder in args.runs:
        store = find_store(folder)
        everything = store.evaluations()
        if not everything:
            raise ValueError(f"{folder} holds no evaluation yet")
        first = everything[0].evaluation
        unlike = {} if args.baseline is None else differences(first, read_figures(args.baseline))
        unlike.pop("seed", None)  # margins are of the spread, which other noise does not change
        if unlike:
            raise NotComparable(unlike, cure(unlike))
        runs.append([stored for stored in everything if stored.comparable_id == everything[0].comparable_id])
        baselines.append(first)
        alerts = store.alerts()
        if alerts and not args.anyway:
            raise ValueError(
                f"{folder} raised an alert at step {alerts[0].global_step}, so its falls may be no measure of health; "
                "take a healthy run, or say --anyway"
            )
    return margins_from_runs(runs, baselines)


def _from_pipeline(args: argparse.Namespace) -> Any:
    from .calibration import margins_from_repeats
    from .repeated_evaluation import evaluate_repeatedly

    baseline = None
    if args.baseline is not None:
        from ..store.evaluation_file import read_figures

        baseline = read_figures(args.baseline)
    return margins_from_repeats(
        evaluate_repeatedly(
            args.pipeline,
            args.pairs,
            repeats=args.repeats,
            steps=args.steps,
            baseline=baseline,
            allow_outside=args.allow_outside,
        )
    )


def at_least(lowest: int) -> Callable[[str], int]:
    """An argparse type: a whole number that is not smaller."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {lowest}, got {value}")
        return value

    whole_number.__name__ = "whole number"
    return whole_number


def _usage(text: str) -> int:
    print(f"i2am-debug {text}", file=sys.stderr)
    return ExitCode.USAGE
