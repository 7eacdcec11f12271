"""What original repositories do beside what diffusers' pipelines do, on small modules in their shape."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import ip_adapter
from builders.ldm_cross_attention import CONTEXT, PASDUNet, StableVITON, cross, recorded, viton_inputs
from builders.ldm_cross_attention import small as ldm
from builders.self_attention_reference import TEXT, ReadsBank, features_for, run_twice, side_by_side
from builders.self_attention_reference import catvton as catvton_unet
from builders.self_attention_reference import small as garment
from cases import CASES
from contract import Case
from diffusers import DDIMScheduler
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor
from oracle import assert_maps_equal, recorded_products
from PIL import Image
from torch import nn

from i2am_debug import CapturePlan, ValidationPair, ValidationPairs, trace
from i2am_debug.capture.sampler_steps import scheduler_name
from i2am_debug.capture.trace import find_denoiser
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.evaluation.fingerprint import of_family
from i2am_debug.families.added_key_value import AddedKeyValue
from i2am_debug.families.bria_fibo_edit import BriaFiboEdit
from i2am_debug.families.ip_adapter import IPAdapter
from i2am_debug.families.ldm_cross_attention import LDMCrossAttention
from i2am_debug.families.registry import find_family, registered
from i2am_debug.families.sd3_ip_adapter import SD3IPAdapter
from i2am_debug.families.self_attention_reference import KeyConcatenation, SpatialConcatenation
from i2am_debug.families.unet_cross_attention import UNetCrossAttention

# -- MimicBrush --------------------------------------------------------------------------------------------------------


class MimicBrush:
    """Puts lists of reference features into its UNet at the beginning of a call, and leaves them there."""

    def __init__(self) -> None:
        self.unet = garment(processor=AttnProcessor2_0)
        self.text_encoder = nn.Linear(1, 1)
        self.sample, self.text = torch.randn(1, 4, 6, 10), torch.randn(1, 5, TEXT)

    def __call__(self, referencenet: nn.Module | None = None) -> None:
        blocks = [module for module in self.unet.modules() if isinstance(module, BasicTransformerBlock)]
        for block, features in zip(blocks, features_for(self.unet), strict=True):
            block.__class__, block.bank = ReadsBank, [features]
        run_twice(self.unet, self.sample, self.text)


def test_mimicbrush_is_of_one_family_before_its_first_call_and_after() -> None:
    pipeline, found = MimicBrush(), []
    for _ in range(2):
        with trace(pipeline) as t:
            pipeline()
        found.append((t.family, t.maps().layers, t.maps().r2g.unified.tobytes()))
    assert found[0] == found[1] and found[0][0] == KeyConcatenation()


def test_a_reference_network_of_the_pipeline_tells_too() -> None:
    unet = garment(processor=AttnProcessor2_0)
    assert KeyConcatenation().refuses(SimpleNamespace(unet=unet, reference_unet=nn.Linear(1, 1)), unet) is None
    assert KeyConcatenation().refuses(SimpleNamespace(unet=unet), unet) is not None


def test_a_denoiser_whose_family_changes_with_its_first_call_is_an_error_and_given_it_is_none() -> None:
    pipeline = MimicBrush()
    assert find_family(pipeline.unet, pipeline.unet).name == "unet_cross_attention"
    with (
        pytest.raises(UnsupportedModel, match=r"'unet_cross_attention', and is of 'key_conc.*family=KeyConcatenation"),
        trace(pipeline.unet),
    ):
        pipeline()
    pipeline = MimicBrush()
    with trace(pipeline.unet, family=KeyConcatenation()) as t:
        pipeline()
    assert t.maps().layers
    with trace(pipeline.unet) as t:
        pipeline()
    assert t.family == KeyConcatenation()


# -- StableVITON -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_step_of_plms_is_seen_beside_its_look_ahead(guided: bool, in_place: bool) -> None:
    unet = ldm(StableVITON)
    x, context, control = viton_inputs()
    nothing = [torch.zeros_like(c) for c in control]

    def run(*, conditional_only: bool) -> None:
        """PLMS of three steps: the first looks ahead to the second noise time."""
        latent = x.clone()
        for time, factor in ((800, 1.0), (400, 0.9), (400, 0.8), (200, 0.7)):
            latent = latent.copy_(x * factor) if in_place else x * factor
            with torch.no_grad():
                unet(latent, torch.tensor([time]), context, control=list(control))
                if guided and not conditional_only:
                    unet(latent, torch.tensor([time]), context, control=list(nothing))

    with trace(unet, family=LDMCrossAttention()) as t:
        run(conditional_only=False)
    runs = recorded(unet, lambda: run(conditional_only=True))
    truth = {name: [each[0] for each in runs[name]] for name in ("warp_flow_blks.0", "warp_flow_blks.1")}
    assert {len(each) for each in truth.values()} == {4} and t.maps().steps == (0, 1, 2)
    assert_maps_equal(t.maps(), truth)


# -- No guidance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [True, False])
def test_two_references_of_one_picture_and_one_noise_are_two_pictures_where_it_is_said(guidance: bool) -> None:
    unet = ldm()
    x, context = torch.randn(1, 4, 6, 10).expand(2, 4, 6, 10), torch.randn(2, 9, CONTEXT)

    def run() -> None:
        with torch.no_grad():
            unet(x, torch.tensor([800, 800]), context)

    with trace(unet, family=LDMCrossAttention(guidance=guidance)) as t:
        run()
    assert t.images == (1 if guidance else 2)
    logits = cross(recorded(unet, run))
    for image in range(t.images):
        row = image + guidance
        assert_maps_equal(t.maps(image), {layer: [each[row] for each in runs] for layer, runs in logits.items()})


def test_so_can_be_said_of_unets_and_ip_adapters() -> None:
    unet, sample = ip_adapter.unet_with("full"), torch.randn(1, 4, 6, 10).expand(2, 4, 6, 10)
    text, embeds = torch.randn(1, 7, ip_adapter.TEXT).expand(2, -1, -1), [ip_adapter.pictures("full", 2)]
    for guidance in (True, False):
        with trace(unet, family=IPAdapter(reference_grid=ip_adapter.PATCHES, guidance=guidance)) as t:
            ip_adapter.run(unet, sample, text, embeds)
        assert t.images == (1 if guidance else 2)
    unet, states = garment(processor=AttnProcessor2_0), torch.randn(2, 9, TEXT)
    for guidance in (True, False):
        with trace(unet, family=UNetCrossAttention(guidance=guidance)) as t:
            run_twice(unet, sample, states)
        assert t.images == (1 if guidance else 2)
    unet, latents = catvton_unet(), side_by_side(1, -2, True)
    for parts in (None, 1):
        with trace(unet, family=SpatialConcatenation(guidance_parts=parts)) as t:
            run_twice(unet, latents, None)
        assert t.images == (1 if parts is None else 2)


GUESS = {n: c for n, make in CASES.items() for c in [make()] if hasattr(c.family, "guidance") and True in c.ways}


@pytest.mark.parametrize("case", GUESS.values(), ids=GUESS)
def test_each_family_that_guesses_takes_every_row_where_it_is_said(case: Case) -> None:
    model = case.model()
    images = []
    for family in (case.family, replace(case.family, guidance=False)):
        with trace(model, family=family) as t:
            case.run(model, 1, True)
        images.append(t.images)
    assert images == [1, 2]


def test_all_that_guess_are_tried() -> None:
    assert {case.family.name for case in GUESS.values()} == {
        family.name for family in registered() if hasattr(family, "guidance")
    }


@pytest.mark.parametrize(
    "kind", [LDMCrossAttention, UNetCrossAttention, IPAdapter, AddedKeyValue, BriaFiboEdit, SD3IPAdapter]
)
def test_the_setting_is_told_where_it_is_not_the_default(kind: type) -> None:
    assert "family.guidance" not in of_family(kind())
    assert of_family(kind(guidance=False))["family.guidance"] is False


# -- IDM-VTON ----------------------------------------------------------------------------------------------------------


class Resampler(nn.Module):
    """Learnt queries gather from the image encoder's tokens; IDM-VTON's pipeline calls it, its UNet is given what it gives."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, queries, ip_adapter.ENCODER))


@pytest.mark.parametrize("resampled", [False, True])
def test_resampled_tokens_have_no_grid(resampled: bool) -> None:
    unet = ip_adapter.unet_with("full")
    if resampled:
        (projection,) = unet.encoder_hid_proj.image_projection_layers
        projection.latents = nn.Parameter(torch.zeros(1, 16, 1))
    inputs = torch.randn(1, 4, 6, 10), torch.randn(1, 7, ip_adapter.TEXT), [ip_adapter.pictures("full", tokens=16)]
    t, products = ip_adapter.traced(unet, *inputs, family=IPAdapter())
    assert t.maps().g2r.unified.shape == ((1, 16) if resampled else (4, 4))
    assert t.maps().undefined_place == ("the reference tokens have no grid" if resampled else None)
    assert_maps_equal(t.maps(), ip_adapter.logits(products, 1, 2, 0))


def test_so_do_those_of_a_projection_that_stands_by_itself() -> None:
    from i2am_debug.families.ip_adapter import _resampled

    assert _resampled(SimpleNamespace(encoder_hid_proj=Resampler(16)), 0)
    assert not _resampled(SimpleNamespace(encoder_hid_proj=nn.Linear(1, 1)), 0) and not _resampled(None, 0)


def test_the_cure_for_an_adapters_own_attention_keeps_the_adapter_and_works() -> None:
    unet = ip_adapter.unet_with("full")
    module = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    kept = module.processor
    module.set_processor(
        IPAdapterAttnProcessor(module.to_q.out_features, ip_adapter.TEXT, num_tokens=[13], scale=[1.0])
    )
    module.processor.load_state_dict(kept.state_dict())
    inputs = torch.randn(1, 4, 6, 10), torch.randn(1, 7, ip_adapter.TEXT), [ip_adapter.pictures("full")]
    with pytest.raises(NothingCaptured) as raised, trace(unet, family=ip_adapter.FULL):
        ip_adapter.run(unet, *inputs)
    assert "use IPAdapterAttnProcessor2_0" in str(raised.value) and "use AttnProcessor2_0" not in str(raised.value)
    kept.load_state_dict(module.processor.state_dict())
    module.set_processor(kept)  # an IPAdapterAttnProcessor2_0 with the other's weights
    with trace(unet, family=ip_adapter.FULL) as t:
        ip_adapter.run(unet, *inputs)
    assert "mid_block.attentions.0" in t.maps().layers


# -- Samplers under other names, or none -------------------------------------------------------------------------------


class CatVTON:
    """Its scheduler has a name of its own."""

    def __init__(self, name: str) -> None:
        self.unet = catvton_unet()
        setattr(self, name, DDIMScheduler())
        self._name, self.latents = name, side_by_side(1, -2, False)

    def __call__(self, steps: int) -> None:
        scheduler = getattr(self, self._name)
        scheduler.set_timesteps(steps)
        for time in scheduler.timesteps:
            with torch.no_grad():
                self.unet(self.latents, time, None)


@pytest.mark.parametrize("name", ["noise_scheduler", "ddim"])
def test_the_plans_steps_are_drawn_whatever_the_scheduler_is_called(name: str) -> None:
    pipeline = CatVTON(name)
    assert scheduler_name(pipeline) == name
    plan = CapturePlan(sampler_steps=2)
    with trace(pipeline, plan=plan) as t:
        pipeline(5)
    assert t.maps().steps == plan.draw_steps(5) and t.maps().total_steps == 5
    with pytest.raises(NothingCaptured, match=r"more than the sampler's 2 steps.*new `with trace"), trace(pipeline):
        pipeline(2)
        pipeline(2)


def latent_diffusion() -> SimpleNamespace:
    """A model of latent diffusion code, which knows nothing of its sampler."""
    return SimpleNamespace(model=SimpleNamespace(diffusion_model=ldm()))


def sample(unet: nn.Module, steps: int) -> None:
    for number in range(steps):
        with torch.no_grad():
            unet(torch.randn(1, 4, 6, 10), torch.tensor([981 - 20 * number]), torch.ones(1, 9, CONTEXT))


def test_without_a_scheduler_the_plans_steps_are_refused_and_the_cures_work() -> None:
    model = latent_diffusion()
    unet = find_denoiser(model)
    with (
        pytest.raises(UnsupportedModel, match=r"looks at 2 of the sampler's steps.*sampler_steps=None.*steps=\(0"),
        trace(model, plan=CapturePlan(sampler_steps=2)),
    ):
        sample(unet, 5)
    with trace(model, plan=CapturePlan(sampler_steps=None)) as t:
        sample(unet, 5)
    assert t.maps().steps == (0, 1, 2, 3, 4)
    with trace(model, plan=CapturePlan(sampler_steps=None), steps=(0, 3)) as t:
        sample(unet, 5)
    assert t.maps().steps == (0, 3)
    with trace(model, plan=CapturePlan(sampler_steps=5)) as t:
        sample(unet, 5)  # as many as there are
    assert t.maps().steps == (0, 1, 2, 3, 4)


def test_without_a_scheduler_two_calls_in_one_trace_are_an_error_too() -> None:
    model = latent_diffusion()
    with pytest.raises(NothingCaptured, match=r"came back to its first noise time, 981.*new `with trace"), trace(model):
        sample(find_denoiser(model), 3)
        sample(find_denoiser(model), 3)


def test_a_sampler_is_told_from_its_model() -> None:
    sampler = type("DDIMSampler", (), {})()
    sampler.model = latent_diffusion()
    with pytest.raises(UnsupportedModel, match=r"DDIMSampler is a sampler.*trace\(sampler\.model\)"):
        trace(sampler)
    assert trace(sampler.model).denoiser is sampler.model.model.diffusion_model


# -- PASD --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", [2, 4])
def test_tiles_of_a_large_picture_are_refused_and_a_picture_of_one_tile_is_not(tiles: int) -> None:
    unet = ldm(PASDUNet)
    latents, text = torch.randn(tiles, 1, 4, 6, 10), torch.randn(2, 15, CONTEXT)
    features = [torch.randn(2, 10, *grid) for grid in ((3, 5), (6, 10))]

    def run(count: int) -> None:
        with torch.no_grad():
            for time in (800.0, 400.0):
                for tile in latents[:count]:
                    unet(tile.repeat(2, 1, 1, 1), time, text, down_block_additional_residuals=features)

    with (
        pytest.raises(UnsupportedModel, match=r"2 different latents at one noise time: tiles.*latent_tiled_size"),
        trace(unet, steps=(1,)),  # even where the step is not looked at
    ):
        run(tiles)
    with trace(unet) as t, recorded_products(LDMCrossAttention().layers(unet)) as products:
        run(1)
    assert_maps_equal(t.maps(), {n: [p.logits([1])[0] for p in each] for n, each in products.items()})


# -- Training ----------------------------------------------------------------------------------------------------------


class LatentDiffusion(nn.Module):
    """What docs/originals.md asks of a model of latent diffusion code."""

    first_stage_key = "image"

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = ldm()

    def get_input(self, batch: dict, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        return batch[key], batch["reference"]

    def q_sample(self, x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        share = (t / 1000).view(-1, 1, 1, 1)
        return (1 - share).sqrt() * x_start + share.sqrt() * noise

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.model.diffusion_model(x, t, context=condition)


def collate(pairs: list, reference: list | None) -> dict[str, torch.Tensor]:
    brightness = [np.asarray(one).mean() / 255 for one in reference or [pair.reference for pair in pairs]]
    tokens = torch.ones(1, 9, CONTEXT) * torch.linspace(-1, 1, 9)[:, None]
    return {
        "image": torch.ones(len(pairs), 4, 6, 10),
        "reference": torch.cat([tokens * float(one) for one in brightness]),
    }


def test_the_loss_function_of_the_page_is_looked_at() -> None:
    page = (Path(__file__).parents[2] / "docs" / "originals.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    given = {"model": LatentDiffusion(), "collate": collate, "torch": torch}
    exec(code, given)
    grey = [Image.new("RGB", (16, 16), (60 + 90 * number,) * 3) for number in range(2)]
    pairs = ValidationPairs([ValidationPair(name=f"{n}", target=grey[0], reference=grey[n]) for n in range(2)])
    evaluator = Evaluator(pairs=pairs, plan=CapturePlan(sampler_steps=2), loss_fn=given["loss_fn"], pictures=0)
    evaluator.check(given["model"])
    observations = evaluator.observe(given["model"], [0]) + evaluator.observe(given["model"], [1])
    evaluation = evaluator.score(observations, global_step=0, pipeline=given["model"], baseline=None)
    assert evaluation.fingerprint["family"] == "ldm_cross_attention" and len(evaluation.layers) == 5
    assert evaluation.mean("attention_information") > 0 and evaluation.mean("loss") > 0
