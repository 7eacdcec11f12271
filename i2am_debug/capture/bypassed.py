"""What to say of an attention module that ran without its product being seen: which code bypasses torch, and the cure."""

from __future__ import annotations

from torch import nn

from .taps import ModuleRun


def bypassed(run: ModuleRun) -> str:
    """The module, its processor and backend, and what to use in their place for the evaluation."""
    processor = type(getattr(run.module, "processor", None)).__name__
    backend = getattr(getattr(run.module, "processor", None), "_attention_backend", None)
    with_backend = f", its backend {getattr(backend, 'value', backend)}" if backend else ""
    return (
        f"attention module {run.name!r} ran without a call of torch's scaled_dot_product_attention: its processor is "
        f"{processor}{with_backend}. {_cure(run.module, processor)}, or leave the layer out with CapturePlan(exclude=(…))"
    )


def _cure(module: nn.Module, processor: str) -> str:
    if hasattr(getattr(module, "processor", None), "to_k_ip"):  # with another one the adapter would be gone
        own = processor.removesuffix("2_0")
        return (
            f"For the evaluation use {own}2_0, which attends by torch's, with this one's weights: new = {own}2_0(…), "
            "new.load_state_dict(module.processor.state_dict()), module.set_processor(new)"
        )
    default = getattr(module, "_default_processor_cls", None)  # of diffusers' newer attention modules
    wanted = (
        default.__name__ if default else "AttnAddedKVProcessor2_0" if "AddedKV" in processor else "AttnProcessor2_0"
    )
    return (
        f"Attention slicing, xformers, flash, sage and flex backends bypass it; for the evaluation use {wanted} "
        "(pipeline.disable_attention_slicing(), pipeline.disable_xformers_memory_efficient_attention()) or "
        'denoiser.set_attention_backend("native")'
    )
