"""The whole examination, in its order; what goes wrong in one part ends it with a finding, not with a traceback."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import I2AMError
from ..evaluation.evaluator import Evaluator
from ..pairs.collection import ValidationPairs
from .cards import Card
from .findings import Diagnosis
from .given import NotGiven, first_line, given, where_it_was_raised
from .installed import installed
from .look import look
from .model import describe, find


def examine(
    named: str | None, pairs: Path | None = None, *, card: Card | None = None, allow_outside: bool = False
) -> Diagnosis:
    """What is installed; of the pipeline that is named, what can be seen of it; of its pairs, what a look shows and costs.

    Args:
        named: a folder that `save_pretrained` wrote, or MODULE:FACTORY.
        pairs: a folder with metadata.jsonl; a factory may give pairs itself.
        card: an accelerator to say the cost on.
        allow_outside: whether the pairs' files may lie outside their folder.
    """
    diagnosis = Diagnosis()
    _hush()
    installed(diagnosis)
    if named is None:
        diagnosis.unchecked.append("a pipeline and its pairs, since none was named (PIPELINE_FOLDER or MODULE:FACTORY)")
        return diagnosis
    try:
        found = given(named)
    except NotGiven as error:
        diagnosis.find(str(error), error.cure, fatal=True)
        return diagnosis
    settings = dict(found.settings)
    if pairs is not None:
        try:
            settings["pairs"] = ValidationPairs.from_folder(pairs, allow_outside=allow_outside)
        except I2AMError as error:
            diagnosis.find(str(error), fatal=True)
    examine_pipeline(diagnosis, found.pipeline, settings, card=card)
    return diagnosis


def _hush() -> None:
    """What diffusers and transformers warn of at each load and call says nothing here."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    with suppress(ImportError):
        from transformers.utils import logging as of_transformers

        of_transformers.set_verbosity_error()


def examine_pipeline(
    diagnosis: Diagnosis, pipeline: Any, settings: Mapping[str, Any], *, card: Card | None = None
) -> None:
    """Adds what is found of a pipeline, looked at as the settings (fields of `Evaluator`) say; pairs are among them, or not."""
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)
    evaluator = None
    if settings.get("pairs") is not None:
        try:
            pairs = settings["pairs"]
            pairs = pairs if isinstance(pairs, ValidationPairs) else ValidationPairs(pairs)
            evaluator = Evaluator(**{**settings, "pairs": pairs})
        except (TypeError, ValueError) as error:
            diagnosis.find(f"the settings can't be used: {error}", fatal=True)
            return
    describe(diagnosis, pipeline)
    family = find(diagnosis, pipeline, evaluator or Evaluator(**{**settings, "pairs": ValidationPairs([])}))
    if evaluator is None and not diagnosis.findings and family is not None:
        diagnosis.add("a look at the pairs", "not taken", "no pairs: --pairs FOLDER, with metadata.jsonl")
        diagnosis.unchecked.append(
            "the pairs, their call, which figures they give and what looking costs, since none were named (--pairs FOLDER)"
        )
    if evaluator is None or family is None or any(one.fatal for one in diagnosis.findings):
        return
    try:
        look(diagnosis, evaluator, pipeline, card)
    except I2AMError as error:
        diagnosis.find(str(error), fatal=True)
    except Exception as error:
        diagnosis.find(
            f"{type(pipeline).__name__}, called with a pair, raised {first_line(error)} ({where_it_was_raised(error)})",
            "the call must work by itself first: try it with the pair's pictures; what it needs beside them goes into the "
            "pair's further keys, or call=",
            fatal=True,
        )
