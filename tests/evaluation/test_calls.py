"""How a pair becomes a pipeline call."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from i2am_debug import ValidationPair
from i2am_debug.errors import InvalidPair, UnsupportedModel
from i2am_debug.evaluation.calls import _TAKES_SEVERAL, default_call, denoiser_of, picture_of


def pair(**changes) -> ValidationPair:
    mask = np.zeros((8, 8), bool)
    mask[2:5, 2:5] = True
    pictures = {"target": Image.new("RGB", (8, 8), "red"), "reference": Image.new("RGB", (8, 8), "blue")}
    return ValidationPair(**{"name": "a", "mask": mask, **pictures, **changes})


class Recording:
    """Its `__call__` returns what it was given."""

    unet = SimpleNamespace(encoder_hid_proj=object())

    @staticmethod
    def arguments(values: dict) -> dict:
        return {k: v for k, v in values.items() if v is not None and k not in ("self", "generator")}


class Example(Recording):
    def __call__(self, image=None, mask_image=None, example_image=None, num_inference_steps=50, generator=None):
        return self.arguments(locals())


class Variation(Recording):
    def __call__(self, image=None, guidance_scale=3.0, generator=None):
        return self.arguments(locals())


class FluxKontextPipeline(Recording):
    """Named as diffusers' own, which also takes ip_adapter_image."""

    def __call__(self, image=None, prompt=None, ip_adapter_image=None, generator=None):
        return self.arguments(locals())


class WithAdapter(Recording):
    def __call__(self, prompt=None, image=None, mask_image=None, ip_adapter_image=None, generator=None):
        return self.arguments(locals())


def called(pipeline, given: ValidationPair | None = None, steps=None) -> dict:
    return default_call(pipeline, steps)(pipeline, given or pair(), torch.Generator())


def colour(picture) -> tuple[int, ...]:
    return picture.getpixel((0, 0))


RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


def test_inpainting_by_example_gets_target_hole_and_reference():
    got = called(Example(), steps=7)
    assert colour(got["image"]) == RED and colour(got["example_image"]) == BLUE
    assert np.asarray(got["mask_image"]).sum() == 9 * 255 and got["num_inference_steps"] == 7
    with pytest.raises(InvalidPair, match="pair 'a' has no mask, and Example needs a mask_image"):
        called(Example(), pair(mask=None))


def test_a_pipeline_with_an_image_alone_varies_the_reference():
    assert colour(called(Variation())["image"]) == BLUE
    assert called(Variation(), pair(extra={"guidance_scale": 5.0}))["guidance_scale"] == 5.0
    with pytest.raises(InvalidPair, match="pair 'a' has colour, which Variation does not take"):
        called(Variation(), pair(extra={"colour": 1}))


def test_an_editing_pipeline_gets_the_reference_as_its_image():
    got = called(FluxKontextPipeline(), pair(prompt="a hat"))
    assert colour(got["image"]) == BLUE and got["prompt"] == "a hat" and "ip_adapter_image" not in got


def test_an_adapter_gets_the_reference_and_must_be_loaded():
    got = called(WithAdapter())
    assert colour(got["ip_adapter_image"]) == BLUE and colour(got["image"]) == RED and got["prompt"] == ""
    bare = WithAdapter()
    bare.unet = SimpleNamespace(encoder_hid_proj=None)
    with pytest.raises(UnsupportedModel, match=r"no IP-Adapter is loaded: pipeline.load_ip_adapter"):
        default_call(bare)


def with_adapters(count: int) -> WithAdapter:
    pipeline = WithAdapter()
    projection = SimpleNamespace(image_projection_layers=[object()] * count)
    pipeline.unet = SimpleNamespace(encoder_hid_proj=projection)
    return pipeline


def several(count: int = 2) -> ValidationPair:
    """Blue, then green ones."""
    return pair(further_references=[Image.new("RGB", (8, 8), "green")] * (count - 1))


def test_further_references_go_with_the_first_in_order():
    (all_to_one,) = called(with_adapters(1), several(3))["ip_adapter_image"]
    assert list(map(colour, all_to_one)) == [BLUE, GREEN, GREEN]
    one_to_each = called(with_adapters(2), several())["ip_adapter_image"]
    assert list(map(colour, one_to_each)) == [BLUE, GREEN]

    class Flux2Pipeline(FluxKontextPipeline):
        """Named as diffusers' own, which takes a list."""

        __call__ = FluxKontextPipeline.__call__

    assert list(map(colour, called(Flux2Pipeline(), several())["image"])) == [BLUE, GREEN]
    assert colour(called(Flux2Pipeline(), pair())["image"]) == BLUE


@pytest.mark.parametrize(
    "pipeline", [with_adapters(3), Example(), FluxKontextPipeline()], ids=lambda p: type(p).__name__
)
def test_a_pipeline_that_takes_fewer_references_says_so(pipeline):
    with pytest.raises(InvalidPair, match=r"pair 'a' has 2 references, and \w+ (takes one|has 3 IP-Adapters); .*call="):
        called(pipeline, several())


@pytest.mark.parametrize("name", _TAKES_SEVERAL)
def test_diffusers_has_the_pipelines_that_are_given_lists(name):
    assert "image" in inspect.signature(getattr(diffusers, name).__call__).parameters


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("FluxKontextPipeline", "image"),
        ("Flux2Pipeline", "image"),
        ("QwenImageEditPipeline", "image"),
        ("QwenImageEditPlusPipeline", "image"),
        ("WanImageToVideoPipeline", "image"),
        ("FluxKontextInpaintPipeline", "image_reference"),
        ("PaintByExamplePipeline", "example_image"),
        ("StableDiffusionImageVariationPipeline", "image"),
    ],
)
def test_diffusers_own_pipelines_take_the_reference_where_we_put_it(name, parameter):
    from i2am_debug.evaluation.calls import _reference_parameter

    pipeline = object.__new__(getattr(diffusers, name))
    parameters = inspect.signature(type(pipeline).__call__).parameters
    assert parameter in parameters
    assert _reference_parameter(pipeline, parameters) == parameter


def test_a_pipeline_without_a_reference_says_how_to_call_it():
    class TextToImage:
        def __call__(self, prompt=None, generator=None): ...

    with pytest.raises(UnsupportedModel, match=r"TextToImage takes no example_image.*call=lambda pipeline"):
        default_call(TextToImage())


def test_the_picture_of_an_output():
    picture = Image.new("RGB", (2, 2))
    assert all(picture_of(o) is picture for o in (picture, [picture], SimpleNamespace(images=[picture])))
    video = SimpleNamespace(frames=np.stack([np.zeros((1, 4, 6, 3)), np.ones((1, 4, 6, 3))], 1))  # what Wan returns
    assert picture_of(video).size == (6, 4) and colour(picture_of(video)) == (255, 255, 255)
    with pytest.raises(UnsupportedModel, match="returned a Tensor.*output_type='pil'"):
        picture_of(torch.zeros(1))


class Sized(Recording):
    vae_scale_factor, transformer = 8, object()

    def __call__(self, image=None, height=None, width=None, max_area=None, _auto_resize=True, generator=None):
        return self.arguments(locals())


def test_the_picture_has_the_targets_size_rounded_to_what_the_model_takes_or_the_one_asked_for():
    uneven = pair(mask=None, target=Image.new("RGB", (70, 40)), reference=Image.new("RGB", (140, 80)))
    got = called(Sized(), uneven)
    assert (got["width"], got["height"], got["max_area"], got["_auto_resize"]) == (64, 32, 64 * 32, False)
    assert got["image"].size == (140, 80)
    asked = default_call(Sized(), size=(140, 80))(Sized(), uneven, torch.Generator())
    assert (asked["width"], asked["height"]) == (144, 80)
    assert asked["image"].size == (280, 160)  # references are scaled as the targets are
    own = called(Sized(), pair(mask=None, extra={"height": 96, "width": 96}))
    assert (own["height"], own["max_area"]) == (96, 96 * 96)


def test_plain_denoising_has_no_guidance_but_what_the_model_is_told():
    def arguments(**config):
        class Guided(Sized):
            unet, transformer = None, SimpleNamespace(config=SimpleNamespace(**config))

            def __call__(self, image=None, guidance_scale=3.5, true_cfg_scale=4.0, strength=0.6, generator=None):
                return self.arguments(locals())

        return default_call(Guided(), plain=True)(Guided(), pair(mask=None), torch.Generator())

    free, told = arguments(guidance_embeds=False), arguments(guidance_embeds=True)
    assert (free["guidance_scale"], free["true_cfg_scale"], free["strength"]) == (1.0, 1.0, 1.0)
    assert (told["guidance_scale"], told["true_cfg_scale"], told["strength"]) == (3.5, 1.0, 1.0)


def test_a_compiled_denoiser_has_no_truth_value():
    compiled = torch.compile(torch.nn.Linear(1, 1), backend="eager")
    assert denoiser_of(SimpleNamespace(unet=compiled)) is compiled
    assert denoiser_of(SimpleNamespace(unet=None, transformer=compiled)) is compiled
    assert denoiser_of(SimpleNamespace()) is None
