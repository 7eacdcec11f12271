"""`i2am-debug demo · run · explain · doctor · view · check · baseline · calibrate`. Imports torch only where needed."""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import __version__
from .doctor.commands import add_doctor
from .errors import I2AMError, WrongSettings
from .gate.commands import add_commands, at_least
from .gate.exit_codes import ExitCode
from .pairs.folder import why_no_pairs

# Written out, since what they do needs torch; a test compares.
_FAULTS = (
    *("shuffle", "zero", "drop", "learning-rate", "flip", "colours", "range", "dim", "bright"),
    *("mean-target", "prediction", "gradual", "gradual-drop", "keys", "queries", "reordered"),
)
_SABOTAGES = {
    "inpainting": (*_FAULTS, "encoder", "encoder-dim", "shift-mask", "inverted-mask", "full-mask", "none"),
    "edit": (*_FAULTS, "attention", "positions", "prompts", "shift-target", "none"),
    "super-resolution": (*_FAULTS, "encoder", "encoder-dim", "positions", "shift-target", "none"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    args = _parser().parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "→" is no reason to fail
    if args.run is not _run:  # a script sets up its own log
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logging.getLogger("i2am_debug").setLevel(logging.INFO)
    try:
        return args.run(args)
    except I2AMError as error:
        print(f"i2am-debug: {error}", file=sys.stderr)
        return ExitCode.FAILED
    except BrokenPipeError:  # whoever read our output has seen enough; the interpreter must not complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="i2am-debug", description="See whether an image-to-image diffusion model still uses its reference."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="fine-tune a shipped tiny model and watch it unlearn its reference")
    demo.add_argument(
        "--model",
        choices=_SABOTAGES,
        default="inpainting",
        help="inpainting by example, editing by instruction, or super-resolution (default: inpainting)",
    )
    demo.add_argument("--logdir", type=Path, default=Path("runs/demo"), help="where to write (default: runs/demo)")
    demo.add_argument("--steps", type=at_least(16), default=48, help="training steps, at least 16 (default: 48)")
    demo.add_argument(
        "--sabotage",
        choices=tuple(dict.fromkeys(name for names in _SABOTAGES.values() for name in names)),
        default="shuffle",
        help="what goes wrong from half way on (default: shuffle, which gives pictures each other's references); "
        "those that are of some models only: the encoder's and the masks, attention, positions, prompts and shift-target",
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    demo.add_argument("--json", type=Path, metavar="FILE", help="also write evaluations and alerts to FILE")
    demo.set_defaults(run=_demo)

    _add_run(commands)
    explain = commands.add_parser("explain", help="draw what one generated picture takes from its reference")
    explain.add_argument("pipeline", type=Path, metavar="PIPELINE_FOLDER", help="a pipeline saved with save_pretrained")
    add = explain.add_argument
    add(
        "--reference",
        type=Path,
        required=True,
        action="append",
        help="the reference picture; again for each further one",
    )
    add(
        "--image",
        type=Path,
        help="the picture to paint into; for a pipeline that edits its reference the truth, if there is one",
    )
    add("--mask", type=Path, help="the hole: white = generate; of the size of --image")
    add("--reference-mask", type=Path, help="the object in the reference, for IMACS_r")
    add(
        "--kept-mask", type=Path, help="what an edit keeps: white = kept (default: where --image and --reference agree)"
    )
    add("--prompt", help="what the pipeline is told")
    add("--size", type=_size, metavar="WIDTHxHEIGHT", help="of the picture to generate (default: the pipeline's own)")
    explain.add_argument("--steps", type=at_least(1), default=20, help="sampler steps (default: 20)")
    explain.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    explain.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.png", help="where to write the panel")
    explain.set_defaults(run=_explain)

    add_doctor(commands)

    view = commands.add_parser("view", help="start TensorBoard on a folder of runs")
    view.add_argument("logdir", type=Path, metavar="LOGDIR", help="a run, or a folder of runs")
    view.add_argument("--port", type=int, default=6006, help="TensorBoard's port (default: 6006)")
    view.set_defaults(run=_view)
    add_commands(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run an unmodified training script and evaluate validation pairs while it trains",
        description="With several processes: accelerate launch -m i2am_debug run …. docs/official-scripts.md says more.",
    )
    run.add_argument(
        "--pairs", type=Path, metavar="FOLDER", help="validation pairs with metadata.jsonl; without them the script's own "
        "validation calls are looked at"
    )  # fmt: skip
    run.add_argument("--allow-outside", action="store_true", default=None, help="also files outside of that folder")
    run.add_argument("--config", type=Path, metavar="FILE.toml", help="settings of the callback, in a table [i2am]")
    how_often = run.add_mutually_exclusive_group()
    how_often.add_argument(
        "--every-n-steps",
        type=at_least(1),
        metavar="N",
        help="evaluate every N optimizer steps (default: when the script validates)",
    )
    how_often.add_argument(
        "--budget", type=float, metavar="SHARE", help="evaluate so that it takes this share of the time, as 0.02"
    )
    run.add_argument(
        "--baseline", type=Path, metavar="FILE", help="a stored evaluation to compare with (default: the run's first)"
    )
    run.add_argument("--logdir", type=Path, help="where to write if the script has no TensorBoard tracker")
    run.add_argument("--pipeline", metavar="CLASS", help="the pipeline's class, if the script does not import it")
    run.add_argument(
        "--model", metavar="FOLDER_OR_NAME", help="a whole pipeline, if the script does not load its model from one"
    )
    run.add_argument("script", type=Path, metavar="SCRIPT.py", help="the training script")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- ARGS", help="the script's own arguments")
    run.set_defaults(run=_run)


def _demo(args: argparse.Namespace) -> int:
    if args.sabotage not in _SABOTAGES[args.model]:
        known = ", ".join(_SABOTAGES[args.model])
        return _usage_error(f"demo: --sabotage {args.sabotage}: not of the model {args.model}; expected one of {known}")
    if args.json is not None and not args.json.parent.is_dir():
        return _usage_error(f"demo: --json: there is no folder {args.json.parent}")
    if args.logdir.exists() and not args.logdir.is_dir():
        return _usage_error(f"demo: --logdir: {args.logdir} is a file; a folder is needed")
    from .demo.finetune import run_demo, write_json

    result = run_demo(args.logdir, model=args.model, steps=args.steps, sabotage=args.sabotage, seed=args.seed)
    print(f"\n{result.table()}\n")
    for alert in result.alerts:
        print(f"{alert.text}\n")
    if not result.alerts:
        print("no alert\n")
    if args.json is not None:
        write_json(result, args.json)
        print(f"figures: {args.json}")
    print(f"maps and scores: {result.run}\nto look at them: tensorboard --logdir {args.logdir}")
    return ExitCode.OK


def _run(args: argparse.Namespace) -> int:
    if not args.script.is_file():
        return _usage_error(f"run: there is no script {args.script}")
    if "--" in args.arguments and not _begin_behind_two_dashes(args):
        return _usage_error(
            f"run: {args.arguments[0]} stands behind {args.script}, so it would be the script's; put it before"
        )
    if args.pairs is not None and (wrong := why_no_pairs(args.pairs)):
        return _usage_error(f"run: {wrong}")
    from .callbacks.launcher.script import run_script

    words = ("pairs", "allow_outside", "every_n_steps", "budget", "baseline", "logdir", "pipeline", "model")
    given = {name: getattr(args, name) for name in words}
    own = args.arguments[1:] if args.arguments[:1] == ["--"] else args.arguments
    try:
        run_script(args.script, own, given, args.config)
    except WrongSettings as error:
        return _usage_error(f"run: {str(error).removeprefix('i2am-debug run: ')}")
    return ExitCode.OK


def _begin_behind_two_dashes(args: argparse.Namespace) -> bool:
    """Whether the script's arguments do; argparse keeps the dashes or takes them away, by its version."""
    before = args.words[: len(args.words) - len(args.arguments)]
    return args.arguments[0] == "--" or before[-1] == "--"


def _explain(args: argparse.Namespace) -> int:
    if args.output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp") or args.output.is_dir():
        return _usage_error(f"explain: -o {args.output}: expected a file ending in .png, .jpg or .webp")
    from .evaluation.load_pipeline import load_pipeline
    from .report.explain import explain

    try:
        pipeline = load_pipeline(args.pipeline)
    except I2AMError:
        raise
    except ValueError as error:
        return _usage_error(f"explain: {error}")
    picture = explain(
        pipeline,
        reference=args.reference,
        image=args.image,
        mask=args.mask,
        reference_mask=args.reference_mask,
        kept=args.kept_mask,
        prompt=args.prompt,
        size=args.size,
        num_inference_steps=args.steps,
        seed=args.seed,
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.output)
    print(args.output)
    return ExitCode.OK


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})", text)
    if found is None or min(int(found[1]), int(found[2])) < 16:
        raise argparse.ArgumentTypeError(
            f"expected WIDTHxHEIGHT in pixels, at least 16x16, such as 512x768, got {text!r}"
        )
    return int(found[1]), int(found[2])


def _view(args: argparse.Namespace) -> int:
    if not args.logdir.is_dir():
        return _usage_error(f"view: there is no folder {args.logdir}")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(args.logdir), "--port", str(args.port)]
    if os.name == "posix":
        os.execv(command[0], command)  # a signal to us is one to it: a process of ours between would leave it behind
    try:
        return subprocess.call(command)
    except KeyboardInterrupt:
        return ExitCode.OK


def _usage_error(text: str) -> int:
    print(f"i2am-debug {text}", file=sys.stderr)
    return ExitCode.USAGE


if __name__ == "__main__":
    sys.exit(main())
