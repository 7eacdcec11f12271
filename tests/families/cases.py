"""One case for every family; `builders/` holds the models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from builders import (
    added_key_value,
    bria_fibo_edit,
    flux2,
    flux_ip_adapter,
    flux_kontext,
    flux_redux,
    ip_adapter,
    ldm_cross_attention,
    longcat_edit,
    omnigen,
    qwen_image_edit,
    sd3_ip_adapter,
    self_attention_reference,
    wan_image_to_video,
)
from contract import Case, latent_rows
from diffusers import FluxPipeline
from oracle import Recorded
from test_capture import run_twice as run_unet
from test_capture import small_unet

from i2am_debug.families.bria_fibo_edit import BriaFiboEdit
from i2am_debug.families.family import Family
from i2am_debug.families.flux2 import Flux2
from i2am_debug.families.flux_kontext import FluxKontext
from i2am_debug.families.ldm_cross_attention import LDMCrossAttention
from i2am_debug.families.longcat_edit import LongCatImageEdit
from i2am_debug.families.self_attention_reference import KeyConcatenation, SpatialConcatenation
from i2am_debug.families.unet_cross_attention import UNetCrossAttention


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def twice(sample: torch.Tensor, guided: bool) -> torch.Tensor:
    """The latents of a guidance batch."""
    return torch.cat([sample, sample]) if guided else sample


def attention(ending: str) -> Callable[[torch.nn.Module], dict[str, torch.nn.Module]]:
    """The modules of this name, by the name of the block that they are in."""
    return lambda model: {
        name.removesuffix(f".transformer_blocks.0.{ending}"): module
        for name, module in model.named_modules()
        if name.endswith(f".{ending}")
    }


def of_first_of_two_forwards(made, guided: bool):
    return made[:: 1 + guided]


def unet_cross_attention() -> Case:
    return Case(
        family=UNetCrossAttention(reference_grid=(3, 4)),
        model=small_unet,
        run=lambda unet, images, guided: run_unet(
            unet, twice(drawn(images, 4, 6, 10), guided), drawn(images * (1 + guided), 12, 12)
        ),
        modules=attention("attn2"),
        row=latent_rows,
    )


def with_ip_adapter() -> Case:
    tokens = 1 + ip_adapter.PATCHES[0] * ip_adapter.PATCHES[1]

    def run(unet, images: int, guided: bool):
        rows = images * (1 + guided)
        embeds = [drawn(rows, 1, tokens, ip_adapter.ENCODER)]
        return ip_adapter.run(unet, twice(drawn(images, 4, 6, 10), guided), drawn(rows, 7, ip_adapter.TEXT), embeds)

    return Case(
        family=ip_adapter.FULL,
        model=lambda: ip_adapter.unet_with("full"),
        run=run,
        modules=attention("attn2"),
        keys=lambda product: (slice(1, None),),  # a class token comes first
        products=lambda made, guided: made[1::2],  # text, picture
        row=latent_rows,
    )


def in_one_sequence(family: Family, builder: Any, keys: Sequence[slice], **changes: Any) -> Case:
    """A Flux-like transformer over [text · generated · references]; its builder has inputs and calls of one form."""
    return Case(
        family=family,
        model=builder.tiny_transformer,
        run=lambda model, images, guided: builder.denoise(model, builder.inputs(images), guidance=guided),
        modules=flux_kontext.blocks,
        queries=lambda product: builder.QUERIES,
        keys=lambda product: keys,
        joint=True,
        **changes,
    )


def kontext() -> Case:
    return in_one_sequence(FluxKontext(), flux_kontext, (flux_kontext.KEYS,), products=of_first_of_two_forwards)


def longcat() -> Case:
    return in_one_sequence(LongCatImageEdit(), longcat_edit, (longcat_edit.KEYS,), products=of_first_of_two_forwards)


def bria() -> Case:
    return in_one_sequence(BriaFiboEdit(), bria_fibo_edit, tuple(bria_fibo_edit.KEYS.values()), row=latent_rows)


def flux_2() -> Case:
    return Case(
        family=Flux2(),
        model=flux2.tiny_transformer,
        run=lambda model, images, guided: flux2.denoise(model, flux2.Inputs(images), guidance=guided),
        modules=flux2.blocks,
        queries=lambda product: flux2.QUERIES,
        keys=lambda product: tuple(flux2.KEYS.values()),
        products=of_first_of_two_forwards,
        joint=True,
    )


def redux() -> Case:
    text = flux_redux.TEXT
    return Case(
        family=flux_redux.FAMILY,
        model=flux_redux.tiny_transformer,
        run=lambda model, images, guided: flux_redux.denoise(model, (text + 15, text)[: 1 + guided], images=images),
        modules=flux_redux.blocks,
        queries=lambda product: slice(text + 15, text + 15 + 24),
        keys=lambda product: (slice(text, text + 15),),
        products=of_first_of_two_forwards,
        joint=True,
        asked_for=True,
    )


def flux_with_ip_adapter() -> Case:
    return Case(
        family=flux_ip_adapter.FAMILY,
        model=lambda: flux_ip_adapter.pipeline_of(FluxPipeline, flux_ip_adapter.with_adapters()),
        run=lambda pipeline, images, guided: [flux_ip_adapter.generate(pipeline, images, guided=guided)],
        modules=lambda pipeline: flux_ip_adapter.modules(pipeline.transformer),
        products=lambda made, guided: made[1 :: 2 * (1 + guided)],  # joint, adapter
        has_grid=False,
    )


def kandinsky() -> Case:
    return Case(
        family=added_key_value.FAMILY,
        model=added_key_value.small_unet,
        run=lambda unet, images, guided: added_key_value.generate(unet, "image_proj", images, guided=guided),
        modules=added_key_value.FAMILY.layers,
        keys=lambda product: (slice(0, added_key_value.TOKENS["image_proj"]),),
        row=latent_rows,
        joint=True,
        has_grid=False,
    )


def side_by_side() -> Case:
    dim, *grids = self_attention_reference.AXES["width"]

    def half(number: int):
        def tokens(product: Recorded):
            grid = next(grid for grid in grids if grid[0] * grid[1] == product.k.shape[2])
            return self_attention_reference.halves(grid, "width")[number]

        return tokens

    return Case(
        family=SpatialConcatenation(axis="width"),
        model=self_attention_reference.catvton,
        run=lambda unet, images, guided: self_attention_reference.run_twice(
            unet, self_attention_reference.side_by_side(images, dim, guided), None
        ),
        modules=self_attention_reference.self_attention,
        queries=half(0),
        keys=lambda product: (half(1)(product),),
        row=latent_rows,
        joint=True,
        asked_for=True,
    )


def garment() -> Case:
    def run(unet, images: int, guided: bool):
        """TryonPipeline: latents and masks twice, [negative, prompt], features [zeros, garment]."""
        features = self_attention_reference.features_for(unet, images)
        features = [torch.cat([torch.zeros_like(f), f]) if guided else f for f in features]
        text = drawn(images * (1 + guided), 5, self_attention_reference.TEXT)
        sample = twice(drawn(images, 9, 6, 10), guided)
        return self_attention_reference.run_twice(unet, sample, text, garment_features=features)

    return Case(
        family=KeyConcatenation(),
        model=lambda: self_attention_reference.small(self_attention_reference.IDMVTON, in_channels=9),
        run=run,
        modules=self_attention_reference.self_attention,
        queries=lambda product: slice(0, product.k.shape[2] // 2),
        keys=lambda product: (slice(product.k.shape[2] // 2, None),),
        row=latent_rows,
        joint=True,
    )


def qwen() -> Case:
    grids = (qwen_image_edit.GENERATED, *qwen_image_edit.REFERENCES)
    generated, *references = qwen_image_edit.spans(grids)
    return Case(
        family=qwen_image_edit.FAMILY,
        model=qwen_image_edit.small_transformer,
        run=lambda model, images, guided: qwen_image_edit.edit(model, images, guidance=guided),
        modules=qwen_image_edit.modules,
        queries=lambda product: generated,
        keys=lambda product: references,
        products=of_first_of_two_forwards,
        joint=True,
    )


def omnigen_edit() -> Case:
    def data(images: int):
        return omnigen.batch([dict(length=5, references=omnigen.REFERENCES)] * images)

    generated, references = omnigen.where(data(1))
    return Case(
        family=omnigen.FAMILY,
        model=omnigen.small_transformer,
        run=lambda model, images, guided: omnigen.generate(model, data(images)),
        modules=omnigen.modules,
        queries=lambda product: generated,
        keys=lambda product: references,
        joint=True,
        ways=(True,),  # its pipeline puts all conditions into one batch, the conditional one first
    )


def sd3() -> Case:
    return Case(
        family=sd3_ip_adapter.FAMILY,
        model=sd3_ip_adapter.small_transformer,
        run=lambda model, images, guided: sd3_ip_adapter.generate(model, images, guided=guided),
        modules=sd3_ip_adapter.modules,
        keys=lambda product: (sd3_ip_adapter.REFERENCE,),
        products=lambda made, guided: made[1::2],  # joint, adapter
        row=latent_rows,
        joint=True,
        has_grid=False,
    )


def wan() -> Case:
    def run(model, images: int, guided: bool):
        torch.manual_seed(1)
        inputs = wan_image_to_video.video(images), wan_image_to_video.text(images), wan_image_to_video.picture(images)
        return wan_image_to_video.run(model, *inputs, *([wan_image_to_video.text(images)] if guided else []))

    return Case(
        family=wan_image_to_video.FAMILY,
        model=wan_image_to_video.small,
        run=run,
        modules=wan_image_to_video.FAMILY.layers,
        keys=lambda product: (slice(1, None),),  # a class token comes first
        products=lambda made, guided: made[:: 2 * (1 + guided)],  # picture, text
    )


def latent_diffusion() -> Case:
    def run(unet, images: int, guided: bool):
        context = drawn(images, 9, ldm_cross_attention.CONTEXT)
        learnt = drawn(1, 1, ldm_cross_attention.CONTEXT, seed=2).expand_as(context)
        states = torch.cat([learnt, context]) if guided else context
        return ldm_cross_attention.run_twice(unet, twice(drawn(images, 4, 6, 10), guided), states)

    family = LDMCrossAttention()
    return Case(
        family=family,
        model=ldm_cross_attention.small,
        run=run,
        modules=family.layers,
        row=latent_rows,
        recorder=ldm_cross_attention.projected_products,
        not_planted="it never calls torch's attention; its own tests plant copies in the projections",
    )


CASES: dict[str, Callable[[], Case]] = {
    "ldm_cross_attention": latent_diffusion,
    "key_concatenation": garment,
    "spatial_concatenation": side_by_side,
    "ip_adapter": with_ip_adapter,
    "unet_cross_attention": unet_cross_attention,
    "added_key_value": kandinsky,
    "flux_ip_adapter": flux_with_ip_adapter,
    "flux_kontext": kontext,
    "flux2": flux_2,
    "flux_redux": redux,
    "qwen_image_edit": qwen,
    "longcat_edit": longcat,
    "bria_fibo_edit": bria,
    "omnigen": omnigen_edit,
    "sd3_ip_adapter": sd3,
    "wan_image_to_video": wan,
}
