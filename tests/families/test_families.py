"""The registry: the right family is found for every model, and the table in the docs is the registry's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from i2am_debug import families
from i2am_debug.errors import UnsupportedModel
from i2am_debug.families.__main__ import table
from i2am_debug.families.registry import find_family, register_family, registered

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_docs_have_the_table_that_the_registry_prints():
    text = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- families: python -m i2am_debug.families -->\n", "<!-- /families -->"
    assert text[text.index(begin) + len(begin) : text.index(end)].strip() == table()


def test_every_family_says_what_it_defines_and_has_a_name_of_its_own():
    names = [family.name for family in registered()]
    assert len(set(names)) == len(names)
    for family in registered():
        assert family.about.models and isinstance(family.projections, bool)


class Known(torch.nn.Linear):
    pass


class OwnFamily:
    name, projections = "own", False
    about = families.About(models="Known")

    def refuses(self, pipeline, denoiser):
        return None if isinstance(denoiser, Known) else "it is not Known."


def test_a_family_of_ones_own_is_asked_first(monkeypatch):
    monkeypatch.setattr(families.registry, "_REGISTERED", [])
    with pytest.raises(
        UnsupportedModel, match="no family knows where the reference sits in Known.*see register_family"
    ):
        find_family(Known(1, 1), Known(1, 1))
    register_family(OwnFamily())
    assert registered()[0].name == "own"
    assert find_family(Known(1, 1), Known(1, 1)).name == "own"
    with pytest.raises(UnsupportedModel, match="own: it is not Known"):
        find_family(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))


def models() -> dict[str, torch.nn.Module]:
    """Family → a model of it, made by that family's own tests."""
    import test_capture
    from builders import (
        added_key_value,
        bria_fibo_edit,
        flux2,
        flux_kontext,
        ip_adapter,
        ldm_cross_attention,
        longcat_edit,
        omnigen,
        qwen_image_edit,
        sd3_ip_adapter,
        wan_image_to_video,
    )

    return {
        "unet_cross_attention": test_capture.small_unet(),
        "ip_adapter": ip_adapter.unet_with("full"),
        "flux_kontext": flux_kontext.tiny_transformer(),
        "flux2": flux2.tiny_transformer(),
        "qwen_image_edit": qwen_image_edit.small_transformer(),
        "omnigen": omnigen.small_transformer(),
        "sd3_ip_adapter": sd3_ip_adapter.small_transformer(),
        "wan_image_to_video": wan_image_to_video.small(),
        "ldm_cross_attention": ldm_cross_attention.small(),
        "key_concatenation": garment_unet(),
        "added_key_value": added_key_value.small_unet(),
        "longcat_edit": longcat_edit.tiny_transformer(),
        "bria_fibo_edit": bria_fibo_edit.tiny_transformer(),
    }


def garment_unet() -> torch.nn.Module:
    """A UNet that takes features of a garment, as IDM-VTON's."""
    import test_capture

    class GarmentUNet(type(test_capture.small_unet())):
        def forward(self, sample, timestep, encoder_hidden_states, garment_features=None):
            return super().forward(sample, timestep, encoder_hidden_states)

    unet = test_capture.small_unet()
    unet.__class__ = GarmentUNet
    return unet


def test_every_model_is_found_by_its_own_family():
    for name, model in models().items():
        assert find_family(model, model).name == name


def test_no_family_claims_a_model_that_is_asked_before_its_own():
    for name, model in models().items():
        claims = [f.name for f in registered() if f.refuses(model, model) is None]
        assert claims[0] == name and set(claims[1:]) <= {"unet_cross_attention"}, claims
