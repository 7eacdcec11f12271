"""The command line: `i2am-debug demo · explain · doctor · view · check · baseline · calibrate`. Imports torch where needed."""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

from . import __version__
from .doctor.commands import add_doctor
from .errors import I2AMError
from .gate.commands import add_commands, at_least
from .gate.exit_codes import ExitCode

# Written out, since what they do needs torch; a test compares.
_FAULTS = (
    *("shuffle", "zero", "drop", "learning-rate", "flip", "colours", "range", "dim", "bright"),
    *("mean-target", "prediction", "gradual", "gradual-drop", "keys", "queries", "reordered"),
)
_SABOTAGES = {
    "inpainting": (*_FAULTS, "encoder", "encoder-dim", "shift-mask", "inverted-mask", "full-mask", "none"),
    "edit": (*_FAULTS, "attention", "positions", "prompts", "shift-target", "none"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    args = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "→" is no reason to fail
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
        help="inpainting by example, or editing by instruction (default: inpainting)",
    )
    demo.add_argument("--logdir", type=Path, default=Path("runs/demo"), help="where to write (default: runs/demo)")
    demo.add_argument("--steps", type=at_least(16), default=48, help="training steps, at least 16 (default: 48)")
    demo.add_argument(
        "--sabotage",
        choices=tuple(dict.fromkeys(name for names in _SABOTAGES.values() for name in names)),
        default="shuffle",
        help="what goes wrong from half way on (default: shuffle, which gives pictures each other's references); encoder, "
        "encoder-dim and the masks are inpainting's, attention, positions, prompts and shift-target edit's",
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    demo.add_argument("--json", type=Path, metavar="FILE", help="also write evaluations and alerts to FILE")
    demo.set_defaults(run=_demo)

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
    try:
        return subprocess.call(command)
    except KeyboardInterrupt:
        return ExitCode.OK


def _usage_error(text: str) -> int:
    print(f"i2am-debug {text}", file=sys.stderr)
    return ExitCode.USAGE


if __name__ == "__main__":
    sys.exit(main())
