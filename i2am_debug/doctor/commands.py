"""`i2am-debug doctor` on the command line. Imports torch only once it runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..gate.exit_codes import ExitCode
from ..pairs.folder import why_no_pairs
from .cards import CARDS, Card, card_named


def add_doctor(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
    doctor = commands.add_parser(
        "doctor",
        help="what can be seen of your pipeline and pairs, what not and why, and what it costs",
        description="Tells what i2am-debug sees of a pipeline and validation pairs, and what stands in the way. With nothing: "
        "versions, devices, and what is installed. Its output is what an issue needs.",
        epilog="Exit codes: 0 ready; 1 usable with limits; 2 not usable, or wrong words.",
    )
    doctor.add_argument(
        "pipeline",
        nargs="?",
        metavar="PIPELINE_FOLDER | MODULE:FACTORY",
        help="a pipeline saved with save_pretrained; or a function without arguments that returns a pipeline, or a dict of the "
        "callback's arguments (pipeline, pairs, call, family, loss_fn, …), as in train:make_pipeline",
    )
    doctor.add_argument("--pairs", type=Path, metavar="FOLDER", help="validation pairs with metadata.jsonl")
    doctor.add_argument(
        "--allow-outside", action="store_true", help="with --pairs: also files that lie outside that folder"
    )
    doctor.add_argument("--json", type=Path, metavar="FILE", help="the same for a program")
    doctor.add_argument(
        "--device",
        type=_card,
        metavar="NAME",
        help=f"also say what it would take on this one, from its operations: {', '.join(CARDS)}",
    )
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    if args.pairs is not None and args.pipeline is None:
        return _usage("--pairs needs a pipeline: i2am-debug doctor PIPELINE_FOLDER --pairs FOLDER")
    if args.allow_outside and args.pairs is None:
        return _usage("--allow-outside goes with --pairs")
    if args.device is not None and args.pipeline is None:
        return _usage("--device needs a pipeline and its pairs: what it would take is theirs")
    if args.json is not None and (args.json.is_dir() or not args.json.parent.is_dir()):
        return _usage(f"--json {args.json}: expected a file in a folder that exists")
    if args.pairs is not None and (wrong := why_no_pairs(args.pairs)):
        return _usage(wrong)
    if args.pipeline is not None and ":" not in args.pipeline and not Path(args.pipeline).is_dir():
        return _usage(
            f"there is no folder {args.pipeline}; expected one that save_pretrained wrote, or MODULE:FACTORY, such as "
            "train:make_pipeline"
        )
    from .examination import examine

    found = examine(args.pipeline, args.pairs, card=args.device, allow_outside=args.allow_outside)
    print(found.as_text())
    if args.json is not None:
        args.json.write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found.exit_code


def _card(name: str) -> Card:
    try:
        return card_named(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _usage(text: str) -> int:
    print(f"i2am-debug doctor: {text}", file=sys.stderr)
    return ExitCode.USAGE
