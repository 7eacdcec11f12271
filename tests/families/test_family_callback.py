"""The callback on families other than the tiny model's: sampling with a real pipeline, and tokens without a grid."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import flux2 as flux2
from builders import flux_kontext as kontext
from builders.ip_adapter import TEXT, pictures, unet_with
from cases import CASES
from diffusers import Flux2KleinPipeline, FluxKontextPipeline
from i2am_debug.callbacks import I2AMCallback
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import new_accelerator

from i2am_debug import CapturePlan, ValidationPair, ValidationPairs, imacs, js_distance, trace
from i2am_debug.capture.trace import find_denoiser
from i2am_debug.errors import InvalidPair
from i2am_debug.evaluation.calls import default_call
from i2am_debug.figures.values import Undefined
from i2am_debug.store.evaluation_file import read_evaluation
from i2am_debug.store.packing import unpack_picture


def pairs(count: int, size: int = 64) -> ValidationPairs:
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        mask = np.zeros((size, size), bool)
        mask[8:24, 8:40] = True
        target, reference = (Image.fromarray(random.integers(0, 255, (size, size, 3), np.uint8)) for _ in range(2))
        made.append(
            ValidationPair(name=f"p{number}", target=target, reference=reference, mask=mask, reference_mask=mask)
        )
    return ValidationPairs(made)


def kontext_pair(number: int) -> ValidationPair:
    """Pictures of 16x16 pixels a token; what the tiny pipeline without text encoders needs comes as further arguments."""
    hole, thing = np.zeros((64, 96), bool), np.zeros((48, 80), bool)
    hole[16:48, 32:64] = thing[0:32, 16:48] = True
    random = torch.Generator().manual_seed(number)
    shapes = {"prompt_embeds": (kontext.TEXT, 12), "pooled_prompt_embeds": (8,)}
    return ValidationPair(
        name=f"p{number}",
        target=kontext.picture(kontext.GENERATED, number),
        reference=kontext.picture(kontext.REFERENCE, 10 + number),
        mask=hole,
        reference_mask=thing,
        extra={
            **{name: torch.randn(1, *shape, generator=random) for name, shape in shapes.items()},
            **{"height": 64, "width": 96, "max_area": 64 * 96, "_auto_resize": False},
        },
    )


def images_and_scalars(folder) -> tuple[set[str], set[str]]:
    figures, pictures = (EventAccumulator(str(one)).Reload().Tags() for one in (folder, folder / "i2am_pictures"))
    return set(pictures["images"]), set(figures["scalars"])


def test_tokens_without_a_grid_have_information_and_no_place(tmp_path):
    """IP-Adapter base: four tokens from one embedding, read in a teacher-forced forward."""
    accelerator = new_accelerator(tmp_path)
    unet = accelerator.prepare(unet_with("base"))
    text = torch.randn(1, 7, TEXT, generator=torch.Generator().manual_seed(0))

    def loss_fn(batch, timesteps, generator, reference=None):
        brightness = [np.asarray(picture).mean() / 255 for picture in reference or [p.reference for p in batch]]
        embeds = pictures("base") * torch.tensor(brightness).view(-1, 1, 1)
        noisy = torch.randn(len(batch), 4, 6, 10, generator=generator)
        condition = {"image_embeds": [embeds]}
        out = unet(noisy, timesteps, text.expand(len(batch), -1, -1), added_cond_kwargs=condition).sample
        return (out - noisy).square().mean((1, 2, 3))

    callback = I2AMCallback(
        accelerator,
        pipeline=unet,
        pairs=pairs(2),
        every_n_steps=1,
        plan=CapturePlan(sampler_steps=2, heads=None),
        loss_fn=loss_fn,
        pictures=0,
        on_error="raise",
        disable_progress_bar=True,
    )
    callback.on_train_begin(0)
    evaluation = callback.evaluate(1)
    callback.on_train_end(1)
    accelerator.end_training()
    assert evaluation.fingerprint["family"] == "ip_adapter"
    assert evaluation.mean("attention_information") > 0 and evaluation.copying_layer in evaluation.layers
    assert evaluation.mean("imacs_r") == Undefined("the reference tokens have no grid")
    assert not isinstance(evaluation.mean("imacs_g"), Undefined)
    assert evaluation.mean("branch_share") > 0 and isinstance(evaluation.mean("reference_mass"), Undefined)
    assert evaluation.mean("drift/js_g2r") == pytest.approx(0, abs=1e-3)
    _, maps = read_evaluation(tmp_path / "run/plugins/i2am_debug/step_00000001.safetensors")
    assert maps["0/g2r"].shape == (1, 4)
    images, scalars = images_and_scalars(tmp_path / "run")
    assert "i2am/pair_00" in images and "i2am/branch_share" in scalars


def test_a_joint_attention_pipeline_is_sampled_with_its_default_call(tmp_path):
    """FluxKontextPipeline: the reference is its `image`; the map has its own grid, and its share of the attention."""
    accelerator = new_accelerator(tmp_path)
    pipeline = kontext.kontext_pipeline(FluxKontextPipeline)
    pipeline.transformer.train()
    before = {n: p.clone() for n, p in pipeline.transformer.named_parameters()}
    callback = I2AMCallback(
        accelerator,
        pipeline=pipeline,
        pairs=ValidationPairs([kontext_pair(n) for n in range(2)]),
        every_n_steps=5,
        plan=CapturePlan(sampler_steps=2),
        num_inference_steps=2,
        on_error="raise",
        disable_progress_bar=True,
    )
    callback.on_train_begin(0)
    callback.on_step_end(5)
    callback.on_train_end(5)
    accelerator.end_training()
    first, second = callback.history()
    assert first.figures == {**second.figures, **{t: first.figures[t] for t in ("drift/js_r2g", "drift/js_g2r")}}
    assert second.fingerprint["family"] == "flux_kontext" and len(second.layers) == 3
    assert 0 < second.mean("reference_mass") < 1 and isinstance(second.mean("branch_share"), Undefined)
    for tag in ("imacs_g", "imacs_r", "imacs_r_hole", "attention_information"):
        assert not isinstance(second.mean(tag), Undefined), tag
    _, maps = read_evaluation(tmp_path / "run/plugins/i2am_debug/step_00000005.safetensors")
    assert maps["0/g2r"].shape == kontext.REFERENCE and maps["0/r2g"].shape == kontext.GENERATED
    images, scalars = images_and_scalars(tmp_path / "run")
    assert {"i2am/pair_00", "i2am/pair_01", "i2am/pair_00/specific"} <= images and "i2am/reference_mass" in scalars
    assert pipeline.transformer.training
    assert all(torch.equal(p, before[n]) for n, p in pipeline.transformer.named_parameters())


def klein_pair(number: int, further: int) -> ValidationPair:
    hole = np.zeros((64, 96), bool)
    hole[16:48, 32:64] = True
    random = torch.Generator().manual_seed(number)
    prompts = ("prompt_embeds", "negative_prompt_embeds")
    return ValidationPair(
        name=f"p{number}",
        target=flux2.picture(flux2.GENERATED, number),
        reference=flux2.picture(flux2.REFERENCES[0], 10 + number),
        further_references=[flux2.picture(flux2.REFERENCES[1], 20 + number)] * further,
        mask=hole,
        extra={
            **{name: torch.randn(1, flux2.TEXT, 12, generator=random) for name in prompts},
            **{"height": 64, "width": 96},
        },
    )


def test_every_reference_of_a_pair_has_its_figures_maps_and_picture(tmp_path):
    """Flux2KleinPipeline with its default call: one pair has two references, the other has one."""
    accelerator = new_accelerator(tmp_path)
    pipeline = flux2.flux2_pipeline(Flux2KleinPipeline, flux2.Flux2())
    both = ValidationPairs([klein_pair(0, 1), klein_pair(1, 0)])
    callback = I2AMCallback(
        accelerator,
        pipeline=pipeline,
        pairs=both,
        every_n_steps=5,
        plan=CapturePlan(sampler_steps=2),
        way="sampling",
        num_inference_steps=2,
        on_error="raise",
        disable_progress_bar=True,
    )
    callback.on_train_begin(0)
    with torch.no_grad():  # what the model does with its references changes
        pipeline.transformer.x_embedder.weight.mul_(-2)
    evaluation = callback.evaluate(5)
    callback.on_train_end(5)
    accelerator.end_training()
    with trace(pipeline, plan=CapturePlan(sampler_steps=2), mask=both[0].mask) as t:
        default_call(pipeline, 2)(pipeline, both[0], torch.Generator().manual_seed(0))
    assert t.references == (0, 1)
    own, further = t.maps(), t.maps(reference=1)

    no_second = Undefined("this pair has no reference 1")
    figures = {tag.removeprefix("reference_1/"): v for tag, v in evaluation.figures.items() if "reference_1/" in tag}
    assert all(second == no_second for _, second in figures.values())
    layer = max(further.layers, key=further.layer_information.__getitem__)
    assert figures["attention_information"][0] == pytest.approx(further.layer_information[layer], rel=1e-5)
    assert figures["imacs_g"][0] == pytest.approx(imacs(further.r2g.unified, both[0].mask), abs=1e-5)
    mass = {tag: evaluation.figures[tag][0] for tag in ("reference_mass", "reference_1/reference_mass")}
    expected = [np.mean(list(m.reference_mass.values())) for m in (own, further)]
    assert list(mass.values()) == pytest.approx(expected, rel=1e-5) and 0 < sum(expected) < 1
    assert isinstance(figures["branch_share"][0], Undefined)

    folder = tmp_path / "run/plugins/i2am_debug"
    before, after = (read_evaluation(folder / f"step_0000000{step}.safetensors")[1] for step in (0, 5))
    assert after["0/reference_1/g2r"].shape == flux2.REFERENCES[1] and "1/reference_1/g2r" not in after
    np.testing.assert_allclose(after["0/reference_1/r2g"], further.r2g.unified, rtol=1e-4)
    for tag in ("r2g", "g2r"):
        far = js_distance(after[f"0/reference_1/{tag}"], before[f"0/reference_1/{tag}"])
        assert far > 1e-3 and figures[f"drift/js_{tag}"][0] == pytest.approx(far, rel=1e-4)
    (pictures,) = folder.glob("pairs_*.safetensors")
    with safe_open(pictures, framework="numpy") as file:
        kept = np.asarray(unpack_picture(file.get_tensor("0/reference_1")).convert("L"), dtype=float)
        given = np.asarray(both[0].further_references[0].convert("L"), dtype=float)
        assert kept.shape == given.shape and np.corrcoef(kept.ravel(), given.ravel())[0, 1] > 0.8  # noise as JPEG
        assert "1/reference_1" not in set(file.keys())
    assert {"i2am/reference_1/imacs_g", "i2am/reference_1/reference_mass"} <= images_and_scalars(tmp_path / "run")[1]


def test_a_layer_that_reads_only_a_further_reference_has_its_share_of_the_sampled_heads(tmp_path):
    """Two IP-Adapters with scales by block: the second is read where the first is off."""
    accelerator = new_accelerator(tmp_path)
    unet = unet_with("full", "full")
    middle = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    cross = [m for n, m in unet.named_modules() if n.endswith("attn2")]
    for module in cross:  # as set_ip_adapter_scale([{"mid": 1.0}, {"down": 1.0, "up": 1.0}]) does
        module.processor.scale = [1.0, 0.0] if module is middle else [0.0, 1.0]
    text = torch.randn(1, 7, TEXT, generator=torch.Generator().manual_seed(0))
    embeds = [pictures("full"), pictures("full")]

    def loss_fn(batch, timesteps, generator, reference=None):
        noisy = torch.randn(len(batch), 4, 6, 10, generator=generator)
        condition = {"image_embeds": [one.expand(len(batch), -1, -1, -1) for one in embeds]}
        out = unet(noisy, timesteps, text.expand(len(batch), -1, -1), added_cond_kwargs=condition).sample
        return (out - noisy).square().mean((1, 2, 3))

    callback = I2AMCallback(
        accelerator,
        pipeline=unet,
        pairs=pairs(2),
        every_n_steps=1,
        plan=CapturePlan(sampler_steps=2, heads=8),
        loss_fn=loss_fn,
        pictures=0,
        on_error="raise",
        disable_progress_bar=True,
    )
    callback.on_train_begin(0)
    evaluation = callback.evaluate(1)
    callback.on_train_end(1)
    accelerator.end_training()
    assert len(evaluation.heads) == len(cross) > 1
    assert [name.split(".")[0] for name in evaluation.layers] == ["mid_block"]
    with safe_open(tmp_path / "run/plugins/i2am_debug/step_00000001.safetensors", framework="numpy") as file:
        others = json.loads(file.get_tensor("0/reference_1/layers").tobytes())
    assert sorted([*others, *evaluation.layers]) == sorted(evaluation.heads)
    assert not isinstance(evaluation.mean("reference_1/attention_information"), Undefined)


def test_references_that_the_pipeline_cannot_take_are_refused_before_the_training(tmp_path):
    accelerator = new_accelerator(tmp_path)
    pipeline = kontext.kontext_pipeline(FluxKontextPipeline)
    one = kontext_pair(0)
    two = replace(one, name="two", further_references=[one.reference])
    callback = I2AMCallback(accelerator, pipeline=pipeline, pairs=ValidationPairs([one, two]), every_n_steps=5)
    with pytest.raises(InvalidPair, match=r"pair 'two' has 2 references, and FluxKontextPipeline takes one; .*call="):
        callback.on_train_begin(0)
    accelerator.end_training()


@pytest.mark.parametrize("name", CASES)
def test_the_callback_works_on_every_family(name, tmp_path):
    """Teacher-forced, with the family's own way of calling its model; every figure is a number or says why not."""
    accelerator = new_accelerator(tmp_path)
    case = CASES[name]()
    model = case.model()
    denoiser = find_denoiser(model)
    denoiser.train()
    before = {n: p.clone() for n, p in denoiser.named_parameters()}

    def loss_fn(batch, timesteps, generator, reference=None):
        return torch.stack([output.float().square().mean() for output in case.run(model, 1, case.ways[0])]).mean()[None]

    callback = I2AMCallback(
        accelerator,
        pipeline=model,
        family=case.family,
        pairs=pairs(2),
        every_n_steps=1,
        plan=CapturePlan(sampler_steps=1, heads=None),
        loss_fn=loss_fn,
        pictures=0,
        on_error="raise",
        disable_progress_bar=True,
    )
    callback.on_train_begin(0)
    evaluation = callback.evaluate(1)
    callback.on_train_end(1)
    accelerator.end_training()
    assert evaluation.fingerprint["family"] == name and evaluation.layers
    assert not isinstance(evaluation.mean("imacs_g"), Undefined)
    assert evaluation.mean("attention_information") > 0
    placed = isinstance(evaluation.mean("imacs_r"), float)
    assert placed or evaluation.mean("imacs_r") == Undefined("the reference tokens have no grid")
    images, scalars = images_and_scalars(tmp_path / "run")
    assert {"i2am/pair_00", "i2am/pair_01"} <= images and {"i2am/imacs_g", "i2am/attention_information"} <= scalars
    assert denoiser.training and all(torch.equal(p, before[n]) for n, p in denoiser.named_parameters())
