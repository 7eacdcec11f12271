"""`i2am-debug doctor`: of broken set-ups the cure that it names works when followed; mistakes are named; no traceback."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from i2am_debug import cli
from i2am_debug.demo.edit.pairs import PROMPTS
from i2am_debug.demo.edit.pipeline import load_edit_pipeline
from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline
from i2am_debug.doctor import installed, look
from i2am_debug.doctor.cards import CARDS, UTILISATION, card_named
from i2am_debug.doctor.findings import WIDTH, Diagnosis, counted
from i2am_debug.doctor.operations import Operations
from i2am_debug.gate.exit_codes import ExitCode

SIDE = 32


def write_pairs(folder: Path, count: int = 8, *, without: Sequence[str] = ()) -> Path:
    """Pairs of random pictures, with a hole in the target and an object in the reference."""
    folder.mkdir()
    random, rows = np.random.default_rng(0), []
    region = np.zeros((SIDE, SIDE), np.uint8)
    region[8:24, 8:16] = 255
    Image.fromarray(region).save(folder / "mask.png")
    for number in range(count):
        for name in ("target", "reference"):
            pixels = random.integers(0, 255, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{number}.png")
        row = {
            "file_name": f"target_{number}.png",
            "reference_file_name": f"reference_{number}.png",
            "mask_file_name": "mask.png",
            "reference_mask_file_name": "mask.png",
            "prompt": PROMPTS[0],
        }
        rows.append({key: value for key, value in row.items() if key not in without})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("doctor") / "val")


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs the command; gives its exit code, its output as one line without wraps, and what it wrote to stderr."""
    monkeypatch.setattr(look, "_LONG", 0.0)  # one look is enough here

    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main(["doctor", *map(str, words)])
        printed = capsys.readouterr()
        assert max(map(len, printed.out.splitlines()), default=0) <= WIDTH
        assert "Traceback" not in printed.out + printed.err
        return code, " ".join(printed.out.split()), printed.err

    return run


# -- Broken set-ups ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "code", "what", "cure", "cured"),
    [
        (
            "no_adapter",
            ExitCode.USAGE,
            "StableDiffusionPipeline has no IP-Adapter loaded, so it has no reference tokens",
            "cure: pipeline.load_ip_adapter(…) brings reference tokens",
            ["no_adapter_cured"],
        ),
        (
            "channel_concatenation",
            ExitCode.USAGE,
            "StableDiffusionInpaintPipeline has no reference tokens",
            "cure: pipeline.load_ip_adapter(…) brings reference tokens",
            ["channel_concatenation_cured"],
        ),
        (
            "one_token",
            ExitCode.FAILED,
            "1. one reference token: without a value are IMACS_r;",
            "Let the cross-attention read the image encoder's patch tokens",
            ["one_token_cured"],
        ),
        (
            "custom_attention",
            ExitCode.USAGE,
            "'single_transformer_blocks.1' ran without a call of torch's scaled_dot_product_attention: its processor is "
            "Materialising",
            "use FluxAttnProcessor",
            ["custom_attention_cured", "custom_attention_left_out"],
        ),
        (
            "custom_adapter",
            ExitCode.USAGE,
            "its processor is IPAdapterAttnProcessor",
            "use IPAdapterAttnProcessor2_0, which attends by torch's, with this one's weights",
            ["no_adapter_cured"],
        ),
    ],
)
def test_the_cure_of_a_broken_set_up_works(
    doctor, pairs: Path, broken: str, code: int, what: str, cure: str, cured: list[str]
) -> None:
    said = doctor(f"set_ups:{broken}", "--pairs", pairs)
    assert said[0] == code and what in said[1] and cure in said[1], said
    for name in cured:
        code, text, _ = doctor(f"set_ups:{name}", "--pairs", pairs)
        assert code == ExitCode.OK, text
        assert text.endswith("result: ready") and "IMACS_r;" in text
        assert ("takes no mask: those of 8 pairs are the region" in text) == ("Inpaint" not in text), text


def test_the_cure_of_wrong_pairs_works(doctor, pairs: Path, tmp_path: Path) -> None:
    load_tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    code, text, _ = doctor(
        tmp_path / "pipeline", "--pairs", write_pairs(tmp_path / "no_masks", without=["mask_file_name"])
    )
    assert code == ExitCode.USAGE and "pair 'target_0' has no mask, and TinyExamplePipeline needs a mask_image" in text
    code, text, _ = doctor(tmp_path / "pipeline", "--pairs", pairs)
    assert code == ExitCode.OK and text.endswith("result: ready")
    missing = ["reference_mask_file_name"]
    code, text, _ = doctor(
        tmp_path / "pipeline", "--pairs", write_pairs(tmp_path / "few", 2, without=missing), "--json", tmp_path / "d"
    )
    assert code == ExitCode.FAILED and "cure: reference_mask_file_name in metadata.jsonl" in text
    assert "1. 2 pairs: a fall can't be told from noise" in text and "cure: at least 8 pairs" in text
    written = json.loads((tmp_path / "d").read_text())
    assert written["result"] == "usable with limits" and written["exit_code"] == 1 and len(written["findings"]) == 2
    assert written["sections"]["pipeline"]["family"].startswith("unet_cross_attention, found from the model")
    assert written["sections"]["a look at the pairs"]["tokens"] == "generated 16×16, reference 8×8"
    assert "IMACS_r" in written["sections"]["figures without a value"]["no reference mask"]


def test_where_nothing_brings_tokens_none_are_promised(doctor, pairs: Path) -> None:
    code, text, _ = doctor("set_ups:nothing_but_channels", "--pairs", pairs)
    assert code == ExitCode.USAGE and "StableDiffusionUpscalePipeline has no reference tokens" in text
    assert "load_ip_adapter" not in text and "denoising loss with another pair's picture" in text


def test_a_model_that_no_family_knows_is_told_with_each_ones_reason(doctor, pairs: Path) -> None:
    code, text, _ = doctor("set_ups:unknown_family", "--pairs", pairs)
    assert code == ExitCode.USAGE and "1. no family knows where the reference sits in OfItsOwn (Linear) cure:" in text
    assert "flux_kontext the denoiser is no FluxTransformer2DModel." in text and "omnigen it is no OmniGen" in text


def test_a_call_that_is_not_known_can_be_said(doctor, pairs: Path) -> None:
    code, text, _ = doctor("set_ups:unknown_call", "--pairs", pairs)
    assert code == ExitCode.USAGE and "family ip_adapter" in text and "OfItsOwn takes no example_image" in text
    assert "cure: call= or loss_fn= beside pipeline=" in text
    code, text, _ = doctor("set_ups:unknown_call_cured", "--pairs", pairs)
    assert code == ExitCode.OK and "a pair's call your call=" in text and "way sampling every pair" in text, text


# -- Mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "texts"),
    [
        ("nowhere:make", ["there is no module 'nowhere'", "cure: run it in the folder the module is in"]),
        ("path/to/set_ups.py:no_adapter", ["is no module's name", "i2am-debug doctor set_ups:no_adapter"]),
        ("set_ups:no_adaptor", ["has no 'no_adaptor'; its functions are with_adapter", "no_adapter,"]),
        ("set_ups:needs_an_argument", ["can't be called without arguments", "missing", "'folder'"]),
        ("set_ups:raises", ["set_ups:raises raised RuntimeError: no weights there (set_ups.py:"]),
        ("set_ups:gives_a_number", ["gave a int", "neither a unet nor a transformer"]),
        ("set_ups:gives_an_unknown_setting", ["gave sampler; expected the callback's arguments: pipeline, pairs"]),
        ("set_ups:gives_no_pipeline", ["'pipeline' of set_ups:gives_no_pipeline gave a NoneType"]),
        ("set_ups:A_NUMBER", ["is a int; expected a function"]),
    ],
)
def test_what_is_wrong_with_a_name_is_said(doctor, named: str, texts: list[str]) -> None:
    code, said, _ = doctor(named)
    assert code == ExitCode.USAGE and all(text in said for text in texts), said


def test_modules_that_cannot_be_imported_are_named(doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needs_another.py").write_text("import a_package_that_is_not_there")
    (tmp_path / "breaks_off.py").write_text("import sys\nsys.exit('usage: train.py')")
    said = doctor("needs_another:make")[1]
    assert "needs 'a_package_that_is_not_there'" in said and "pip install a_package_that_is_not_there" in said
    said = doctor("breaks_off:make")[1]
    assert "importing 'breaks_off' raised SystemExit: usage: train.py (breaks_off.py:2)" in said
    assert '__name__ == "__main__"' in said


def test_a_folder_that_is_no_pipeline_or_a_broken_one(doctor, tmp_path: Path) -> None:
    code, said, _ = doctor(tmp_path)
    assert code == ExitCode.USAGE and "it has no model_index.json" in said
    load_edit_pipeline().save_pretrained(tmp_path)
    (tmp_path / "transformer" / "config.json").write_text("{")
    code, said, _ = doctor(tmp_path)
    assert code == ExitCode.USAGE and "can't be loaded:" in said and "MODULE:FACTORY" in said


def test_what_the_pipeline_raises_is_said_with_its_place(doctor, pairs: Path) -> None:
    code, said, _ = doctor("set_ups:fails_when_called", "--pairs", pairs)
    assert code == ExitCode.USAGE
    assert "TinyEditPipeline, called with a pair, raised AttributeError" in said and ".py:" in said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--pairs", "val"], "--pairs needs a pipeline"),
        (["--device", "H100"], "--device needs a pipeline"),
        (["set_ups:one_token", "--allow-outside"], "--allow-outside goes with --pairs"),
        (["--json", "nowhere/file.json"], "expected a file in a folder that exists"),
    ],
)
def test_words_that_do_not_go_together(doctor, words: list[str], text: str) -> None:
    code, said, error = doctor(*words)
    assert code == ExitCode.USAGE and said == "" and text in error


def test_folders_that_are_not_there_are_said_before_anything_is_loaded(capsys, tmp_path: Path) -> None:
    for arguments, words in (
        (["set_ups:one_token", "--pairs", str(tmp_path)], "metadata.jsonl; expected one JSON object a line"),
        ([str(tmp_path / "nowhere")], "there is no folder"),
    ):
        assert cli.main(["doctor", *arguments]) == ExitCode.USAGE
        said = capsys.readouterr()
        assert words in said.err and not said.out


# -- What it says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lacks", "cure"), [("Triton", "pip install triton"), ("C compiler", "apt install gcc"), (None, "")]
)
def test_on_cuda_it_says_what_the_kernels_lack(monkeypatch, lacks: str | None, cure: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(installed, "version", lambda name: None if name == "triton" and lacks == "Triton" else "9.9")
    monkeypatch.setattr(installed.shutil, "which", lambda name: None if lacks == "C compiler" else f"/usr/bin/{name}")
    monkeypatch.delenv("CC", raising=False)
    diagnosis = Diagnosis()
    installed.installed(diagnosis)
    told = [found for found in diagnosis.findings if "kernels" in found.what]
    assert [lacks in found.what and cure in found.cure for found in told] == ([True] if lacks else [])


def test_with_nothing_it_says_what_is_installed(doctor) -> None:
    code, said, _ = doctor()
    assert code == ExitCode.OK and said.startswith("installed i2am-debug 0.1.0 Python 3.")
    assert f"torch {torch.__version__}" in said
    assert said.endswith(
        "result: ready not checked: a pipeline and its pairs, since none was named (PIPELINE_FOLDER or MODULE:FACTORY)"
    )


def test_what_is_missing_or_too_old_is_told_with_the_command(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.5.1", "transformers": None}
    version = installed.version
    monkeypatch.setattr(installed, "version", lambda name: versions.get(name, version(name)))
    code, said, _ = doctor()
    assert code == ExitCode.FAILED and said.count("cure:") == 2
    assert 'torch is 2.5.1, i2am-debug needs >=2.6 cure: pip install "torch>=2.6"' in said
    assert "transformers is not installed" in said and "cure: pip install transformers" in said


def test_what_the_package_warns_of_is_a_finding(doctor, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "val")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[0] = json.dumps({key: value for key, value in json.loads(lines[0]).items() if key != "prompt"})
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    code, said, _ = doctor("set_ups:no_adapter_cured", "--pairs", folder)
    assert code == ExitCode.FAILED and "1. 1 of 8 pairs have no prompt: target_0" in said
    assert "no pair has a prompt" not in said and "sizes target 32×32, reference 32×32 (of 8 pairs)" in said


def test_pairs_that_lack_prompts_or_have_unlike_shapes_are_told(doctor, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "val", without=["prompt", "mask_file_name", "reference_mask_file_name"])
    code, said, _ = doctor("set_ups:no_adapter_cured", "--pairs", folder)
    assert code == ExitCode.FAILED and "no pair has a prompt, and StableDiffusionPipeline takes one" in said
    assert "not checked" not in said
    folder = write_pairs(tmp_path / "edits", without=["mask_file_name", "reference_mask_file_name"])
    for number in range(3):
        with Image.open(folder / f"reference_{number}.png") as reference:
            smaller = reference.resize((SIDE, SIDE // 2))
        smaller.save(folder / f"reference_{number}.png")
    said = doctor("i2am_debug.demo.edit.pipeline:load_edit_pipeline", "--pairs", folder)[1]
    assert (
        "sizes target 32×32, reference 32×32 (of 5 pairs); target 32×32, reference 32×16 (of 3 pairs) regions" in said
    )
    assert "target and reference of 3 pairs have unlike shapes: the reference is stretched" in said


def test_without_pairs_the_pipeline_is_described(doctor) -> None:
    code, said, _ = doctor("set_ups:no_adapter_cured")
    assert code == ExitCode.OK and "not taken no pairs: --pairs FOLDER" in said
    assert "result: ready not checked: the pairs, their call, which figures they give and what looking costs" in said
    assert "family ip_adapter, found from the model" in said and "IPAdapterAttnProcessor2_0 × 7" in said


def test_broken_weights_and_compiled_parts_are_told() -> None:
    from i2am_debug.doctor.model import describe

    pipeline = load_edit_pipeline()
    pipeline.transformer.single_transformer_blocks[0].compile(backend="eager")
    diagnosis = Diagnosis()
    describe(diagnosis, pipeline)
    assert diagnosis.sections["pipeline"]["compiled"] == "single_transformer_blocks.0; looked at eagerly"
    assert not diagnosis.findings
    with torch.no_grad():
        pipeline.transformer.proj_out.bias[0] = float("nan")
    describe(diagnosis, pipeline)
    assert "proj_out.bias hold values that are not finite" in diagnosis.findings[0].what and diagnosis.exit_code == 2


def test_the_cost_on_a_card_is_its_operations_over_what_it_reaches(doctor, pairs: Path) -> None:
    assert card_named("nvidia h100") is CARDS["H100"] and card_named("rtx 4090") is CARDS["RTX4090"]
    assert CARDS["A100"].seconds(312e12 * UTILISATION) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"no figures of a device 'TPU'; there are A10, A100"):
        card_named("TPU")
    said = doctor("set_ups:custom_attention_cured", "--pairs", pairs, "--device", "l40s")[1]
    assert "on L40S less than 0.1 s for all pairs, if 40% of its 362 × 10^12 operations" in said
    assert "weights 5.6 MiB of 48 GiB" in said


def test_operations_are_counted_by_their_formulas() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    q, k, v = torch.ones(1, 2, 6, 8), torch.ones(1, 2, 7, 8), torch.ones(1, 2, 7, 8)
    with torch.no_grad(), Operations() as operations:
        torch.nn.functional.linear(a, b.T)
        torch.nn.functional.conv2d(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3))
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
        a.exp()
    assert operations.count == 2 * (3 * 4 * 5) + 2 * (9 * 3 * 2 * 9) + 2 * (2 * 6 * 7 * 8) * 2


def test_text_is_wrapped_and_numbered() -> None:
    diagnosis = Diagnosis()
    diagnosis.add("pipeline", "short", "word " * 40)
    diagnosis.add("pipeline", "a label that is longer than its column", "x")
    assert diagnosis.exit_code == ExitCode.OK
    diagnosis.find("something " * 20, "do " * 60)
    assert diagnosis.exit_code == ExitCode.FAILED
    diagnosis.find("all", fatal=True)
    assert diagnosis.exit_code == ExitCode.USAGE
    lines = diagnosis.as_text().splitlines()
    assert max(map(len, lines)) <= WIDTH and lines[1].startswith("  short           word")
    assert "  a label that is longer than its column:" in lines and "    x" in lines
    assert "result: not usable" in lines and lines[-1] == "2. all"
    assert counted(["A", "B", "A"]) == "A × 2, B"
    assert replace(diagnosis.findings[0], cure="").cure == ""
