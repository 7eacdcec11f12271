"""Tiny models of the family `ldm_cross_attention`, and how a pipeline calls them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import Transformer2DModel
from oracle import Recorded, sharpened
from torch import nn

CONTEXT = 12
LOGITS: dict[nn.Module, list[torch.Tensor]] = defaultdict(list)
"""Attention module → float64 logits (B, N, G, R) of each run, written by the modules themselves while `recording`."""
RECORDING = [False]


class CrossAttention(nn.Module):
    """Attention written out; without a context, self-attention."""

    def __init__(self, channels: int, context_channels: int | None = None, heads: int = 2, scale: float | None = 0.6):
        super().__init__()
        self.heads = heads
        if scale is not None:
            self.scale = scale  # not H^-0.5, so that it shows whether the module's own is used
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = (p.unflatten(-1, (self.heads, -1)) for p in (self.to_q(x), self.to_k(context), self.to_v(context)))
        scale = getattr(self, "scale", q.shape[-1] ** -0.5)  # the variant that calls xformers has no attribute
        if RECORDING[0]:
            LOGITS[self].append(torch.einsum("bgnh,brnh->bngr", q.double(), k.double()) * scale)
        weights = (torch.einsum("bgnh,brnh->bngr", q, k) * scale).softmax(-1)
        return self.to_out(torch.einsum("bngr,brnh->bgnh", weights, v).flatten(2))


class BasicTransformerBlock(nn.Module):
    def __init__(self, channels: int, context_channels: int, **changes):
        super().__init__()
        self.attn1 = CrossAttention(channels)
        self.attn2 = CrossAttention(channels, context_channels, **changes)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, x, context=None):
        x = self.attn1(self.norm1(x)) + x
        return self.attn2(self.norm2(x), context=context) + x


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, context_channels: int, depth: int = 1, **changes):
        super().__init__()
        blocks = [BasicTransformerBlock(channels, context_channels, **changes) for _ in range(depth)]
        self.transformer_blocks = nn.ModuleList(blocks)

    def forward(self, x, context=None):
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class UNetModel(nn.Module):
    """Two levels: in, down, middle, up, out."""

    def __init__(self, channels: int = 8, **changes):
        super().__init__()
        self.time = nn.Linear(1, channels)
        self.input_blocks = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(4, channels, 3, padding=1)]),
                nn.ModuleList(
                    [nn.Conv2d(channels, channels, 3, padding=1), SpatialTransformer(channels, CONTEXT, **changes)]
                ),
                nn.ModuleList([nn.Conv2d(channels, channels, 3, stride=2, padding=1)]),
                nn.ModuleList(
                    [nn.Conv2d(channels, channels, 3, padding=1), SpatialTransformer(channels, CONTEXT, **changes)]
                ),
            ]
        )
        self.middle_block = nn.ModuleList([SpatialTransformer(channels, CONTEXT, **changes)])
        self.output_blocks = nn.ModuleList(
            nn.ModuleList(
                [nn.Conv2d(2 * channels, channels, 3, padding=1), SpatialTransformer(channels, CONTEXT, **changes)]
            )
            for _ in range(2)
        )
        self.out = nn.Conv2d(channels, 4, 3, padding=1)

    def down(self, x, timesteps, context):
        skips = []
        for block in self.input_blocks:
            for part in block:
                x = part(x, context) if isinstance(part, SpatialTransformer) else part(x)
            x = x + self.time(timesteps[:, None] / 1000)[:, :, None, None]
            skips.append(x)
        return self.middle_block[0](x, context), [skips[3], skips[1]]

    def up(self, number, x, skip, context):
        convolution, transformer = self.output_blocks[number]
        return transformer(convolution(torch.cat([x, skip], dim=1)), context)

    def forward(self, x, timesteps=None, context=None, y=None, **kwargs):
        x, skips = self.down(x, timesteps, context)
        for number, skip in enumerate(skips):
            x = self.up(number, F.interpolate(x, size=skip.shape[2:]), skip, context)
        return self.out(x)


class StableVITON(UNetModel):
    """Its decoder also attends, before each block, to the features of a copy of the encoder that was given the clothing."""

    def __init__(self, channels: int = 8, clothing: int = 10, name: str = "warp_flow_blks"):
        super().__init__(channels)
        self.name = name
        setattr(self, name, nn.ModuleList(SpatialTransformer(channels, clothing) for _ in range(2)))
        self.warp_zero_convs = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))

    def forward(self, x, timesteps=None, context=None, control=None, only_mid_control=False, **kwargs):
        x, skips = self.down(x, timesteps, context)
        for number, skip in enumerate(skips):
            x = F.interpolate(x, size=skip.shape[2:])
            hint = control.pop().flatten(2).transpose(1, 2)
            x = x + self.warp_zero_convs[number](getattr(self, self.name)[number](x, hint))
            x = self.up(number, x, skip, context)
        return self.out(x)


class PASDUpBlock(nn.Module):
    def __init__(self, channels: int, features: int):
        super().__init__()
        settings = dict(in_channels=channels, norm_num_groups=4)
        self.attentions = nn.ModuleList([Transformer2DModel(2, channels // 2, cross_attention_dim=CONTEXT, **settings)])
        self.pixel_attentions = nn.ModuleList(
            [Transformer2DModel(2, channels // 2, cross_attention_dim=features, **settings)]
        )

    def forward(self, x, text, features):
        x = self.attentions[0](x, encoder_hidden_states=text).sample
        return self.pixel_attentions[0](x, encoder_hidden_states=features.flatten(2).transpose(1, 2)).sample


class PASDUNet(nn.Module):
    """Text, then the features of the low-resolution picture, which a ControlNet hands over."""

    def __init__(self, channels: int = 8, features: int = 10):
        super().__init__()
        self.conv_in = nn.Conv2d(4, channels, 3, padding=1)
        self.up_blocks = nn.ModuleList(PASDUpBlock(channels, features) for _ in range(2))

    def forward(self, sample, timestep, encoder_hidden_states, down_block_additional_residuals=None):
        small, large = down_block_additional_residuals
        x = self.conv_in(sample) * (1 + timestep / 1000)
        skip, x = x, F.avg_pool2d(x, 2)
        x = self.up_blocks[0](x, encoder_hidden_states, small)
        return self.up_blocks[1](F.interpolate(x, size=skip.shape[2:]) + skip, encoder_hidden_states, large)


def small(cls=UNetModel, **changes):
    torch.manual_seed(0)
    return sharpened(cls(**changes).eval())


def run_twice(unet, x, context, **more) -> list[torch.Tensor]:
    with torch.no_grad():
        return [unet(x, torch.full((len(x),), t), context=context, **more) for t in (800, 400)]


def recorded(unet, run) -> dict[str, list[torch.Tensor]]:
    """Layer → logits of each run of its `attn2`; also of self-attention, under its full name."""
    LOGITS.clear()
    RECORDING[0] = True
    try:
        run()
    finally:
        RECORDING[0] = False
    names = {m: n.removesuffix(".attn2") for n, m in unet.named_modules()}
    if not any(n.endswith(".transformer_blocks.1") for n in names.values()):
        names = {m: n.removesuffix(".transformer_blocks.0") for m, n in names.items()}
    return {names[module]: logits for module, logits in LOGITS.items()}


def cross(logits) -> dict[str, list[torch.Tensor]]:
    return {layer: each for layer, each in logits.items() if not layer.endswith("attn1")}


def sample_step(unet, x, time, context, unconditional):
    """One step of the DDIM and PLMS samplers: every latent twice, the unconditional half first."""
    with torch.no_grad():
        times = torch.full((2 * len(x),), time)
        return unet(torch.cat([x, x]), times, context=torch.cat([unconditional, context]))


def viton_inputs(images: int = 1, seed: int = 1):
    random = torch.Generator().manual_seed(seed)
    shapes = [(images, 10, 6, 10), (images, 10, 3, 5)]  # popped from the end: the coarse level is first
    return (
        torch.randn(images, 4, 6, 10, generator=random),
        torch.randn(images, 1, CONTEXT, generator=random),
        [torch.randn(shape, generator=random) for shape in shapes],
    )


@contextmanager
def projected_products(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Recorded]]]:
    """As the oracle's, of modules that never call torch's attention: what `to_q` and `to_k` give."""
    found: dict[str, list[Recorded]] = defaultdict(list)
    queries: dict[str, torch.Tensor] = {}
    handles = []

    def split(module, projected: torch.Tensor) -> torch.Tensor:
        return projected.double().unflatten(-1, (module.heads, -1)).transpose(1, 2)

    def keep(name: str, module, projected: torch.Tensor) -> None:
        q, k = split(module, queries.pop(name)), split(module, projected)
        found[name].append(Recorded(q, k, getattr(module, "scale", q.shape[-1] ** -0.5), None, projected))

    for name, module in modules.items():
        handles += [
            module.to_q.register_forward_hook(lambda _, __, out, n=name: queries.__setitem__(n, out)),
            module.to_k.register_forward_hook(lambda _, __, out, n=name, m=module: keep(n, m, out)),
        ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
