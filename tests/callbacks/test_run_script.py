"""`i2am-debug run`: unmodified scripts in the shape of the official ones, watched and not, on tiny random pipelines."""

from __future__ import annotations

import functools
import gc
import json
import logging
import re
import runpy
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import diffusers
import pytest
import torch
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import FluxKontextPipeline, FluxTransformer2DModel, StableDiffusionPipeline
from i2am_debug.callbacks.launcher.encoded_prompts import EncodedPrompts
from i2am_debug.callbacks.launcher.evaluating import Evaluating
from i2am_debug.callbacks.launcher.loaded_parts import LoadedParts
from i2am_debug.callbacks.launcher.options import RunOptions
from i2am_debug.callbacks.launcher.patches import Patches
from i2am_debug.callbacks.launcher.script_pipeline import ScriptPipeline
from i2am_debug.callbacks.launcher.step_count import STEP_FILE, step_of
from pipelines import flux, stable_diffusion
from pipelines.case import picture
from pipelines.pictures import autoencoder, clip_image_encoder
from pipelines.text import clip_text_encoder, clip_tokenizer
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import few_probes
from transformers import T5EncoderModel

from i2am_debug import cli
from i2am_debug.errors import I2AMError
from i2am_debug.figures.record import differences
from i2am_debug.gate.exit_codes import ExitCode
from i2am_debug.guard.state_guard import StateGuard
from i2am_debug.store.run_store import RunStore

SCRIPTS = Path(__file__).parents[1] / "fixtures" / "scripts"
KONTEXT, IP_ADAPTER = SCRIPTS / "train_kontext_lora.py", SCRIPTS / "train_ip_adapter.py"
CONFIG = """[i2am]
on_error = "raise"
pictures = 0
panels = 0
synchronous = true
disable_progress_bar = true
plan = { sampler_steps = 2 }
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Tiny pipelines, pictures to train on, two validation pairs and a config file."""
    root = tmp_path_factory.mktemp("given")
    flux.flux(FluxKontextPipeline).save_pretrained(root / "kontext")
    StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_text_encoder(12),
        tokenizer=clip_tokenizer(),
        unet=stable_diffusion.unet(),
        scheduler=stable_diffusion.pndm(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(root / "sd")
    clip_image_encoder(side=224, patch=56).save_pretrained(root / "eyes")
    for folder, count in (("pictures", 4), ("val", 2)):
        (root / folder).mkdir()
        for n in range(count):
            reference = picture(n + 10 * count, 64, 64)
            target = reference.copy()
            target.paste(picture(n + 100, 32, 32), (16, 16))
            reference.save(root / folder / f"r{n}.png"), target.save(root / folder / f"t{n}.png")
    lines = [{"file_name": f"t{n}.png", "reference_file_name": f"r{n}.png", "prompt": "a red cat"} for n in range(2)]
    (root / "val" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "i2am.toml").write_text(CONFIG + "[i2am.rules]\ndefaults = false\n")
    (root / "pictures.toml").write_text((root / "i2am.toml").read_text().replace("panels = 0", "panels = 1"))
    return root


@pytest.fixture(autouse=True)
def _apart():
    """Scripts of one process after another, as if each had its own."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def kontext(given: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--pretrained_model_name_or_path", str(given / "kontext"), "--pictures", str(given / "pictures")),
        *("--output_dir", str(out), *more),
    ]


def plain(script: Path, arguments: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    _reset()


def watched(given: Path, script: Path, arguments: list[str], *options: str, config: Path | None = None) -> int:
    words = [
        *("run", "--pairs", str(given / "val"), "--config", str(config or given / "i2am.toml")),
        *(*options, str(script), "--", *arguments),
    ]
    with few_probes():
        code = cli.main(words)
    _reset()
    return code


def _reset() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0})
    found.Reload()
    return found


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert repr(a) == repr(b)


def assert_same_training(one: Path, other: Path) -> None:
    """Weights, optimizer, schedule and random states of every checkpoint, and of the end."""
    files = sorted(f.relative_to(one) for f in one.rglob("*") if f.suffix in (".safetensors", ".bin", ".pkl", ".pt"))
    files = [f for f in files if "plugins" not in f.parts]
    assert files
    for name in files:
        read = load_file if name.suffix == ".safetensors" else lambda path: torch.load(path, weights_only=False)
        assert_same(read(one / name), read(other / name))


def stored_steps(run: Path) -> list[int]:
    return [evaluation.global_step for evaluation in RunStore(run).evaluations()]


def patched() -> list[Any]:
    """What is wrapped while a script runs."""
    return [
        *(vars(accelerate.Accelerator)[n] for n in ("__init__", "accumulate", "backward", "end_training")),
        vars(AcceleratedOptimizer)["step"],
        vars(diffusers.ModelMixin)["from_pretrained"],
        vars(transformers.PreTrainedModel)["from_pretrained"],
        vars(diffusers.DiffusionPipeline)["register_modules"],
        vars(FluxKontextPipeline)["__call__"],
    ]


# -- the Kontext script ----------------------------------------------------------------------------------------------


def remembering(init: Any, made: list[list[Any]]) -> Any:
    """`init` of a model, which leaves word of each one that is made, and keeps none alive."""

    def remembered(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made[-1].append((type(self), weakref.ref(self)))

    functools.update_wrapper(remembered, init)
    return remembered


@pytest.fixture(scope="module")
def both(given, tmp_path_factory) -> SimpleNamespace:
    """One training with validations, without us and with us."""
    root, monkeypatch = tmp_path_factory.mktemp("both"), pytest.MonkeyPatch()
    torch.set_num_threads(1)
    more, made = ("--validation_prompt", "cat", "--max_train_steps", "5"), [[]]
    for kind in (T5EncoderModel, FluxTransformer2DModel):
        monkeypatch.setattr(kind, "__init__", remembering(kind.__init__, made))
    plain(KONTEXT, kontext(given, root / "plain", *more), monkeypatch)
    before = patched()
    made.append([])
    code = watched(
        given, KONTEXT, kontext(given, root / "run", *more), "--every-n-steps", "2", config=given / "pictures.toml"
    )
    monkeypatch.undo()
    return SimpleNamespace(plain=root / "plain", run=root / "run", code=code, before=before, made=made)


def test_the_pairs_are_evaluated_before_every_n_steps_and_at_the_end(both):
    assert both.code == ExitCode.OK
    run = both.run / "logs" / "own-run"
    assert stored_steps(run) == [0, 2, 4, 5]
    own = events(run)
    assert [e.step for e in own.Scalars("i2am/loss")] == [0, 2, 4, 5], "in the script's own TensorBoard run"
    assert {e.step for e in own.Scalars("loss")} == {
        e.step for e in events(both.plain / "logs" / "own-run").Scalars("loss")
    }
    losses = [e.value for e in own.Scalars("i2am/loss")]
    assert len(set(losses)) == 4, "each is of other weights"
    first, *others = (stored.evaluation for stored in RunStore(run).evaluations())
    assert [differences(first, other) for other in others] == [{}, {}, {}], "with encoders and without: comparable"
    assert events(run / "i2am_pictures").Images("i2am/pair_00")


def test_the_scripts_weights_are_those_of_a_run_without(both):
    assert_same_training(both.plain, both.run)


def test_so_are_its_losses_and_its_validation_pictures(both):
    one, other = (events(folder / "logs" / "own-run") for folder in (both.plain, both.run))
    assert [e.value for e in one.Scalars("loss")] == [e.value for e in other.Scalars("loss")]
    for phase in ("validation", "test"):
        pictures = [[e.encoded_image_string for e in found.Images(phase)] for found in (one, other)]
        assert pictures[0] == pictures[1] and pictures[0]


def test_everything_is_put_back(both):
    assert patched() == both.before
    assert sys.argv[0] != str(KONTEXT) and str(SCRIPTS) not in sys.path


def test_text_encoders_that_the_script_freed_are_loaded_for_the_first_evaluation_only(both):
    without, with_us = (sum(kind is T5EncoderModel for kind, _ in made) for made in both.made)
    assert with_us == without + 1


def test_what_was_loaded_for_an_evaluation_is_freed(both):
    gc.collect()
    without, with_us = both.made
    assert {kind for kind, _ in with_us} == {T5EncoderModel, FluxTransformer2DModel}
    assert not [kind for kind, alive in without + with_us if alive() is not None]


def losses_by_step(run: Path) -> dict[int, float]:
    return {e.step: e.value for e in events(run).Scalars("i2am/loss")}


def test_without_a_schedule_the_pairs_are_evaluated_when_the_script_validates(given, both, tmp_path):
    arguments = kontext(given, tmp_path, "--validation_prompt", "cat", "--max_train_steps", "5")
    watched(given, KONTEXT, arguments)
    run = tmp_path / "logs" / "own-run"
    assert [e.step for e in events(run).Images("validation")] == [2, 5]
    assert stored_steps(run) == [0, 2, 5], "before, at its validations, and the last of them is the end"
    elsewhere = losses_by_step(both.run / "logs" / "own-run")
    same = {step: elsewhere[step] for step in (0, 2, 5)}
    assert losses_by_step(run) == same, "whatever the script's autocast is where it validates"


def test_a_resumed_script_goes_on_from_its_step_with_its_baseline(given, tmp_path):
    arguments = kontext(given, tmp_path, "--mixed_precision", "bf16")
    watched(given, KONTEXT, [*arguments, "--max_train_steps", "2"], "--every-n-steps", "2")
    assert json.loads((tmp_path / "checkpoint-2" / STEP_FILE).read_text()) == 2
    more = [*arguments, "--resume_from_checkpoint", "checkpoint-2", "--max_train_steps", "4"]
    watched(given, KONTEXT, more, "--every-n-steps", "2")
    assert stored_steps(tmp_path / "logs" / "own-run") == [0, 2, 4]
    baseline = RunStore(tmp_path / "logs" / "own-run").evaluations()[0]
    assert baseline.global_step == 0


def test_without_pairs_the_scripts_own_validation_is_looked_at(given, both, tmp_path):
    arguments = kontext(given, tmp_path, "--validation_prompt", "cat", "--max_train_steps", "5")
    assert cli.main(["run", str(KONTEXT), "--", *arguments]) == ExitCode.OK
    own, without = events(tmp_path / "logs" / "own-run"), events(both.plain / "logs" / "own-run")
    assert [e.step for e in own.Scalars("i2am/validation/attention_information")] == [2, 5, 5]
    assert 0 < own.Scalars("i2am/validation/reference_mass")[0].value < 1
    assert len(events(tmp_path / "logs" / "own-run" / "i2am_pictures").Images("i2am/validation_00")) == 2
    for phase in ("validation", "test"):
        pictures = [[e.encoded_image_string for e in found.Images(phase)] for found in (without, own)]
        assert pictures[0] == pictures[1], "looked at, and the same"
    assert_same_training(both.plain, tmp_path)


LOUD = """[i2am.rules]
defaults = false
loud = { kind = "ceiling", figure = "loss", limit = 0.0, severity = "critical" }
"""


def test_an_alert_ends_a_script_only_if_it_was_asked_to(given, tmp_path, capsys):
    config = tmp_path / "loud.toml"
    config.write_text(CONFIG + LOUD)
    arguments = kontext(given, tmp_path / "goes on", "--max_train_steps", "1")
    assert watched(given, KONTEXT, arguments, "--every-n-steps", "1", config=config) == ExitCode.OK
    assert "training goes on; stop_on = 'critical' in the config file ends it there" in capsys.readouterr().err
    config.write_text(CONFIG + 'stop_on = "critical"\n' + LOUD)
    stopped = watched(given, KONTEXT, kontext(given, tmp_path / "ends"), "--every-n-steps", "1", config=config)
    assert stopped == ExitCode.FAILED
    assert "stopped at step 0 by an alert as severe as stop_on='critical'" in capsys.readouterr().err
    assert (tmp_path / "ends" / "checkpoint-0" / "pytorch_lora_weights.safetensors").is_file()


# -- the IP-Adapter script -------------------------------------------------------------------------------------------


def test_an_adapter_in_the_making_is_evaluated_as_a_finished_one(given, tmp_path, monkeypatch):
    def arguments(out: str) -> list[str]:
        return [
            *("--pretrained_model_name_or_path", str(given / "sd"), "--image_encoder_path", str(given / "eyes")),
            *("--pictures", str(given / "pictures"), "--output_dir", str(tmp_path / out)),
        ]

    plain(IP_ADAPTER, arguments("plain"), monkeypatch)
    assert watched(given, IP_ADAPTER, arguments("run"), "--every-n-steps", "2") == ExitCode.OK
    assert_same_training(tmp_path / "plain", tmp_path / "run")
    run = tmp_path / "run" / "i2am_debug"
    assert stored_steps(run) == [0, 2, 3], "the last one after the script's end, which it does not tell"
    losses = [e.value for e in events(run).Scalars("i2am/loss")]
    shares = [e.value for e in events(run).Scalars("i2am/branch_share")]
    assert len(set(losses)) == len(set(shares)) == 3 and all(0 < share < 1 for share in shares)


# -- whatever a script is --------------------------------------------------------------------------------------------


def small_script(folder: Path, text: str) -> Path:
    script = folder / "script.py"
    script.write_text(text)
    return script


TRAIN = """
import sys, torch
from accelerate import Accelerator
from diffusers import {imported}
accelerator = Accelerator(cpu=True)
model = {model}
model = accelerator.prepare(model)
with accelerator.accumulate(model):
    raise AssertionError("a training step")
"""
MADE = "FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config({folder!r}, subfolder='transformer'))"
LOADED = "FluxTransformer2DModel.from_pretrained({folder!r}, subfolder='transformer')"


@pytest.mark.parametrize(
    ("imported", "model", "text"),
    [
        ("FluxTransformer2DModel", MADE, "did not load its FluxTransformer2DModel with from_pretrained.*--model"),
        (
            "FluxTransformer2DModel, FluxKontextPipeline, FluxPipeline",
            LOADED,
            "imports FluxKontextPipeline, FluxPipeline; say with --pipeline which",
        ),
        ("FluxPipeline", "torch.nn.Linear(2, 2)", "prepares Linear .* no transformer or unet"),
        ("FluxTransformer2DModel, FluxPipeline", LOADED, "FluxPipeline .*no IP-Adapter is loaded"),
    ],
)
def test_what_is_not_known_is_asked_for_before_a_step_is_trained(given, tmp_path, capsys, imported, model, text):
    source = TRAIN.format(imported=imported, model=model.format(folder=str(given / "kontext")))
    assert watched(given, small_script(tmp_path, source), [], "--every-n-steps", "2") == ExitCode.FAILED
    said = capsys.readouterr().err
    assert re.search(text, said), said
    assert patched()[0] is vars(accelerate.Accelerator)["__init__"]


def test_what_was_asked_for_can_be_given(given, tmp_path):
    source = TRAIN.format(imported="FluxTransformer2DModel", model=MADE.format(folder=str(given / "kontext")))
    options = (
        "--model",
        str(given / "kontext"),
        "--pipeline",
        "FluxKontextPipeline",
        "--logdir",
        str(tmp_path / "log"),
    )
    with pytest.raises(AssertionError, match="a training step"):
        watched(given, small_script(tmp_path, source), [], "--every-n-steps", "2", *options)
    assert stored_steps(tmp_path / "log") == [0], "the evaluation before it"


def test_what_a_script_raises_is_raised_and_everything_put_back(given, tmp_path):
    before = patched()
    with pytest.raises(ZeroDivisionError):
        watched(given, small_script(tmp_path, "from accelerate import Accelerator\nAccelerator(cpu=True)\n1 / 0"), [])
    with pytest.raises(SystemExit) as ended:
        watched(given, small_script(tmp_path, "raise SystemExit(7)"), [])
    assert ended.value.code == 7
    assert patched() == before


def test_a_script_runs_as_if_python_had_been_called_with_it(given, tmp_path):
    (tmp_path / "beside.py").write_text("here = True")
    script = small_script(
        tmp_path,
        "import sys, logging, beside\n"
        "print(__name__, sys.argv[1:], sys.path[0], logging.getLogger().handlers)\n"
        "sys.exit(5)",
    )
    words = ["-m", "i2am_debug", "run", "--pairs", str(given / "val"), str(script), "--", "--pairs", "mine", "--", "x"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert done.stdout.splitlines()[-1] == f"__main__ ['--pairs', 'mine', '--', 'x'] {tmp_path} []"


def test_a_script_without_an_accelerator_is_said_to_be_none_to_look_at(given, tmp_path, capsys):
    assert watched(given, small_script(tmp_path, "pass"), []) == ExitCode.OK
    assert "made no accelerate.Accelerator; nothing was looked at" in capsys.readouterr().err


def test_several_processes_need_a_schedule():
    accelerator = SimpleNamespace(num_processes=2)
    with pytest.raises(I2AMError, match="2 processes train, .*main one alone.* --every-n-steps N or --budget"):
        Evaluating(RunOptions(settings={"every_n_steps": "asked"}), accelerator, LoadedParts())


def test_what_a_script_keeps_is_put_back_as_it_was(given):
    accelerator = accelerate.Accelerator(cpu=True)
    loaded, folder = LoadedParts(), str(given / "kontext")
    with Patches() as patches:
        loaded.watch(patches)
        vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
        transformer = diffusers.FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    accelerator.prepare(transformer)
    build = ScriptPipeline(accelerator, loaded, asked_for=FluxKontextPipeline)
    assert build().vae is vae and build().transformer is transformer, "its own, not loaded again"
    vae.to(torch.bfloat16)
    with build.parts_held(), StateGuard([transformer]) as guard:
        assert guard.pipeline(build).vae.dtype is torch.float32, "as at the first time"
    assert vae.dtype is torch.bfloat16


def test_a_new_prompt_finds_encoders_in_a_pipeline_built_without(given):
    accelerator = accelerate.Accelerator(cpu=True)
    loaded = LoadedParts()
    with Patches() as patches:
        loaded.watch(patches)
        transformer = diffusers.FluxTransformer2DModel.from_pretrained(given / "kontext", subfolder="transformer")
    accelerator.prepare(transformer)
    build = ScriptPipeline(accelerator, loaded)
    first = build()
    cat, dog = (first.encode_prompt(word, prompt_2=None, max_sequence_length=8)[0] for word in ("cat", "dog"))
    second = build()
    assert isinstance(second, FluxKontextPipeline), "as the model's folder says"
    assert second.text_encoder is None and second.text_encoder_2 is None
    assert torch.equal(second.encode_prompt("cat", prompt_2=None, max_sequence_length=8)[0], cat)
    assert not torch.equal(cat, dog)
    build._prompts._known.clear()
    assert torch.equal(second.encode_prompt("dog", prompt_2=None, max_sequence_length=8)[0], dog)


class Encoding:
    """A pipeline as far as its prompts go."""

    def __init__(self, text_encoder=None):
        self.text_encoder = text_encoder

    def encode_prompt(self, prompt, picture=None, prompt_embeds=None):
        if prompt_embeds is not None:
            return prompt_embeds, prompt
        return torch.full((2,), len(self.text_encoder)), prompt


def test_a_prompt_is_encoded_once_a_run_and_a_new_one_by_encoders_that_are_loaded():
    prompts, loaded = EncodedPrompts(torch.device("cpu")), []

    def load():
        loaded.append(Encoding("long"))
        return loaded[-1]

    assert not prompts.are_known
    first, second = Encoding("one"), Encoding()
    for pipeline in (first, second):
        prompts.answer_for(pipeline, load)
    assert first.encode_prompt("cat")[0].tolist() == [3, 3] and prompts.are_known
    assert second.encode_prompt("cat")[0].tolist() == [3, 3] and not loaded
    assert second.encode_prompt("dog")[0].tolist() == [4, 4] and len(loaded) == 1
    own = torch.zeros(1)
    assert second.encode_prompt(None, prompt_embeds=own)[0] is own and prompts.are_known
    assert second.encode_prompt("dog", picture=torch.zeros(1))[1] == "dog" and len(loaded) == 1
    assert not prompts.are_known, "encoders that see a picture are needed each time"


# -- its parts -------------------------------------------------------------------------------------------------------


def test_patches_put_back_what_was_inherited_too():
    class Parent:
        def own(self):
            return 1

        @classmethod
        def of_class(cls):
            return cls

    class Child(Parent):
        pass

    with pytest.raises(KeyError), Patches() as patches:
        patches.wrap(Child, "own", lambda original, self: original(self) + 1)
        patches.wrap(Child, "of_class", lambda original, cls: [original(cls)])
        assert (Child().own(), Parent().own(), Child.of_class()) == (2, 1, [Child])
        raise KeyError
    assert "own" not in vars(Child) and Child.of_class() is Child and Child().own() == 1


@pytest.mark.parametrize(
    ("name", "file", "expected"), [("checkpoint-500", None, 500), ("last", "7", 7), ("x-3", "4", 4)]
)
def test_the_step_of_a_checkpoint(tmp_path, name, file, expected):
    (tmp_path / name).mkdir()
    if file:
        (tmp_path / name / STEP_FILE).write_text(file)
    assert step_of(tmp_path / name, otherwise=1) == expected


def test_a_step_that_is_not_known_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        assert step_of(tmp_path / "best", otherwise=1) == 1
    assert "steps are counted from 1" in caplog.text
