"""How what is handed in stands in a fingerprint: it changes with the thing, and with nothing else."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from training import untrained_pipeline

from i2am_debug import CapturePlan, ValidationPair, ValidationPairs
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.evaluation.fingerprint import of_code, of_family, of_pipeline, of_value
from i2am_debug.families.ldm_cross_attention import LDMCrossAttention
from i2am_debug.families.unet_cross_attention import UNetCrossAttention

# -- functions ---------------------------------------------------------------------------------------------------------


def written(text: str, name: str = "f", folder: Any = None) -> Any:
    """A function from a text, with a source file if there is a folder for it."""
    space: dict[str, Any] = {"__name__": "made"}
    path = "<no file>"
    if folder is not None:
        path = str(folder / f"f{len(list(folder.iterdir()))}.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    exec(compile(text, path, "exec"), space)
    return space[name]


PLAIN = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize(
    ("text", "same"),
    [
        (PLAIN, True),
        ("def f(x):\n\n    # said otherwise\n    return (x  +  1)\n", True),
        ("import os\n\n\n" + PLAIN, True),
        ("def f(x):\n    return x + 2\n", False),
        ("def f(x):\n    return x - 1\n", False),
        ("def f(x):\n    g = lambda: 3\n    return x + 1\n", False),
    ],
)
def test_a_function_is_told_by_its_code(text: str, same: bool, with_source: bool, tmp_path: Any) -> None:
    folder = tmp_path if with_source else None
    ours, theirs = of_code(written(PLAIN, folder=folder)), of_code(written(text, folder=folder))
    assert (ours == theirs) == same
    assert ours is not None and ours.startswith("made.f ") and len(ours) == len("made.f ") + 8


def test_two_lambdas_of_one_line_are_told_apart() -> None:
    one, other = (lambda x: x + 1), (lambda x: x + 2)
    assert of_code(one) != of_code(other)
    assert of_code(one) == of_code(one)


class Steps:
    def two(self, x: int) -> int:
        return x * 2

    def three(self, x: int) -> int:
        return x * 3

    def __call__(self, x: int) -> int:
        return x


def test_methods_objects_partials_and_builtins() -> None:
    assert of_code(None) is None
    assert of_code(Steps().two) == of_code(Steps().two) != of_code(Steps().three)
    assert of_code(Steps()) == of_code(Steps()) == of_code(Steps)
    assert of_code(print) == "builtins.print"
    two, three = (functools.partial(written, text=text, k=2) for text in ("a", "b"))
    assert of_code(two) != of_code(three) and str(of_code(two)).endswith("with (k=2, text='a')")
    assert of_code(functools.partial(written, Steps())) == of_code(functools.partial(written, Steps()))  # no addresses
    assert of_code(torch.no_grad()(Steps.two)) == of_code(Steps.two)  # what it wraps


def test_a_source_that_was_edited_since_is_not_taken_for_the_function(tmp_path: Any) -> None:
    made = written(PLAIN, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    plain = path.read_text(encoding="utf-8")
    path.write_text("def another(x):\n    return 0\n", encoding="utf-8")
    edited = of_code(made)
    assert edited is not None  # by its bytecode
    path.write_text(plain, encoding="utf-8")
    assert of_code(written(PLAIN, folder=tmp_path)) != edited
    assert of_code(made) == edited  # its file is read once in a program
    run = Evaluator(pairs=validation_pairs(1, seed=1), way="loss_fn", loss_fn=made)
    told = run._code["loss_fn"]
    path.write_text("nothing", encoding="utf-8")
    assert run._code["loss_fn"] == told  # read when the run began


def test_what_is_said_to_be_unseen_is_unseen() -> None:
    def maker(by: int) -> Callable[[int], int]:
        def f(x: int) -> int:
            return x * by

        return f

    assert of_code(maker(2)) == of_code(maker(3))


def test_the_same_in_another_process_whatever_its_hash_seed() -> None:
    code = """
from i2am_debug.evaluation.fingerprint import of_code, of_value
f = lambda x: x in {'a', 'b', 'c', 'd'}
print(of_code(f), of_value({'b': [f], 'a': object()}))
"""
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    env = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert there == here.getvalue() and "__main__.<lambda> " in there


# -- values, families, pipelines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "nan"),
        (np.int64(3), 3),
        ((1, (2, 3)), [1, [2, 3]]),
        (slice(0, 4), "slice(0, 4, None)"),
        (torch.bfloat16, "torch.bfloat16"),
        ({"b": 1, "a": None}, {"a": None, "b": 1}),
        (object(), "object"),
    ],
)
def test_a_value_is_told_in_json(value: Any, told: Any) -> None:
    assert of_value(value) == told == json.loads(json.dumps(of_value(value)))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: [n / 1000 for _ in range(1000)],
        lambda n: torch.full((3,), n, dtype=torch.bfloat16),
        lambda n: "x" * 500 + str(n),
    ],
)
def test_a_long_value_is_told_by_its_digest(make: Callable[[int], Any]) -> None:
    assert of_value(make(1)) == of_value(make(1)) != of_value(make(2))
    assert len(of_value(make(1))) < 50


def test_a_family_is_told_with_its_settings_and_the_code_of_a_foreign_one() -> None:
    told = of_family(LDMCrossAttention(modules="input_blocks.*.attn2"))
    assert told["family"] == "ldm_cross_attention" and told["family.modules"] == "input_blocks.*.attn2"
    assert "family.code" not in told

    class Own(UNetCrossAttention):
        pass

    assert "Own" in of_family(Own())["family.code"]


def test_a_scheduler_is_told_with_what_is_not_its_default() -> None:
    pipeline = untrained_pipeline()
    told = of_pipeline(pipeline)
    assert told["pipeline"] == "TinyExamplePipeline" and told["scheduler"] == "DDIMScheduler"
    assert told["scheduler.prediction_type"] == "sample" and told["scheduler.rescale_betas_zero_snr"] is True
    assert told["scheduler.beta_start"] == 0.0001, "one that shows both values though it is the default"
    assert not [name for name in told if "._" in name] and "scheduler.steps_offset" not in told
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, steps_offset=1)
    assert {k for k, v in of_pipeline(pipeline).items() if told.get(k) != v} == {"scheduler.steps_offset"}


def test_a_shift_that_was_set_is_told() -> None:
    pipeline = untrained_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    before = of_pipeline(pipeline)
    pipeline.scheduler.set_shift(3.0)
    assert before["scheduler.shift"] == 1.0 and of_pipeline(pipeline)["scheduler.shift"] == 3.0


def test_a_switch_of_the_pipeline_is_told_unless_it_is_the_default() -> None:
    from diffusers import DiffusionPipeline

    class Switched(DiffusionPipeline):
        def __init__(self, scheduler: Any, zeros: bool = True) -> None:
            super().__init__()
            self.register_modules(scheduler=scheduler)
            self.register_to_config(zeros=zeros)

    assert "pipeline.zeros" not in of_pipeline(Switched(DDIMScheduler()))
    assert of_pipeline(Switched(DDIMScheduler(), zeros=False))["pipeline.zeros"] is False


# -- an evaluator's ------------------------------------------------------------------------------------------------------


def fingerprint(**changes: Any) -> dict[str, Any]:
    given = {"pairs": validation_pairs(1, seed=1), "way": "sampling", "num_inference_steps": 2, **changes}
    return Evaluator(**given).fingerprint(untrained_pipeline(), ["up"])


def test_only_the_functions_that_the_way_calls_are_told() -> None:
    given = {"loss_fn": print, "call": len, "encode": repr}
    told = {
        way: [name for name in given if fingerprint(way=way, **given)[name] is not None]
        for way in ("loss_fn", "sampling")
    }
    assert told == {"loss_fn": ["loss_fn"], "sampling": ["call"]}
    assert fingerprint(way="loss_fn", loss_fn=print, size=(16, 16))["size"] is None  # of the pictures only


def test_the_dtype_of_the_model_is_no_setting() -> None:
    evaluator = Evaluator(pairs=validation_pairs(1, seed=1), way="sampling", plan=CapturePlan(sampler_steps=1))
    pipeline = untrained_pipeline()
    assert evaluator.fingerprint(pipeline, ["up"]) == evaluator.fingerprint(pipeline.to(torch.float64), ["up"])


def test_thresholds_that_read_the_same_are_told_apart() -> None:
    apart = np.zeros((32, 32, 3), np.uint8)
    apart[:, 16:] = (77, 0, 0)  # 77/765 = 0.10065 on average over channels, between the two thresholds
    apart[:16, 16:] = 255
    pair = ValidationPair(name="a", reference=Image.new("RGB", (32, 32)), target=Image.fromarray(apart))
    low, high = (replace(pair).with_kept_region(threshold) for threshold in (0.1006, 0.1007))
    assert low.region_in_words == high.region_in_words and (low.kept != high.kept).any()
    told = [fingerprint(pairs=ValidationPairs([pair]), kept_threshold=threshold) for threshold in (0.1006, 0.1007)]
    assert {k for k in told[0] if told[0][k] != told[1][k]} == {"kept_threshold"}
