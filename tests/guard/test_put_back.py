"""Whatever an evaluation does to a pipeline and the process is undone, found by an oracle that walks all objects deeply."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from described import described, differences, of_the_process
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as DiffusersHook
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from pipelines.pictures import autoencoder, clip_image_encoder
from pipelines.stable_diffusion import load_ip_adapter, sd, unet
from pipelines.text import clip_text_encoder, clip_tokenizer

from i2am_debug.guard import attributes, process_settings
from i2am_debug.guard.mentioned import mentioned
from i2am_debug.guard.modules import KeptObjects
from i2am_debug.guard.process_settings import ProcessSettings
from i2am_debug.guard.random_states import RandomStates
from i2am_debug.guard.state_guard import StateGuard
from i2am_debug.guard.tensors import KeptTensors


def with_adapters():
    """Stable Diffusion with two LoRA adapters, of which one is active; ready for training."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_text_encoder(12),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for name in ("one", "two"):
        pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False), name)
    pipeline.set_adapters(["one"])
    pipeline.scheduler.set_timesteps(7)
    pipeline.unet.train()
    pipeline.unet.mid_block.eval()
    return pipeline


def with_ip_adapter():
    pipeline = sd(StableDiffusionPipeline)
    pipeline.unet.train()
    return pipeline


def first(pipeline):
    return pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2


def to_bfloat16_and_back(pipeline):
    pipeline.unet.to(torch.bfloat16)
    pipeline.unet.to(torch.float32)


def new_parameter(pipeline):
    pipeline.unet.conv_in.weight = torch.nn.Parameter(torch.zeros_like(pipeline.unet.conv_in.weight))


def parameter_removed(pipeline):
    del pipeline.unet.conv_in.bias
    pipeline.unet.conv_in.register_parameter("other", torch.nn.Parameter(torch.zeros(2)))


def processors_by_module(pipeline):
    pipeline.unet.set_attn_processor(AttnProcessor())
    first(pipeline).set_processor(ProcessorModule())


class ProcessorModule(torch.nn.Module):
    """A processor that is a module, as IP-Adapter's are."""

    def forward(self, attn, hidden_states, *args, **kwargs):
        return hidden_states


def hook_of_accelerate(pipeline):
    add_hook_to_module(pipeline.unet, ModelHook())


def hook_of_diffusers(pipeline):
    HookRegistry.check_if_exists_or_initialize(pipeline.vae).register_hook(DiffusersHook(), "planted")


def hooks_of_torch(pipeline):
    pipeline.unet.conv_in.register_forward_hook(lambda *_: None)
    pipeline.unet.conv_in.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    pipeline.unet.conv_in.register_full_backward_hook(lambda *_: None)


def scheduler_replaced(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")


def scheduler_written_to(pipeline):
    pipeline.scheduler.set_timesteps(3)
    pipeline.scheduler.alphas_cumprod.mul_(0.5)
    pipeline.scheduler.planted = 1


def component_replaced(pipeline):
    pipeline.register_modules(unet=unet(), vae=None)


def gradients_replaced(pipeline):
    for parameter in pipeline.unet.parameters():
        parameter.grad = torch.ones_like(parameter)


def attention_backend(pipeline):
    for processor in pipeline.unet.attn_processors.values():
        processor._attention_backend = "planted"


def new_attributes(pipeline):
    pipeline.unet.register_buffer("planted", torch.zeros(2))
    pipeline.unet.add_module("further", torch.nn.Linear(2, 2))
    pipeline.vae.anything = {}
    pipeline.planted = 3


def offloaded_by_hand(pipeline):
    for module in (pipeline.unet, pipeline.vae):  # what enable_sequential_cpu_offload does, without an accelerator
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)


def ip_adapter_loaded(pipeline):
    pipeline.image_encoder = clip_image_encoder()
    load_ip_adapter(pipeline)


def tuner_layers(pipeline):
    for module in pipeline.unet.modules():
        if hasattr(module, "merged_adapters"):
            module.merged_adapters.append("planted")
            module.scaling["one"] = 17.0
            module.peft_planted = True


TOUCHED = {
    "disable_adapters": lambda p: p.unet.disable_adapters(),
    "set_adapters": lambda p: p.set_adapters(["one", "two"], [0.3, 0.4]),
    "delete_adapters": lambda p: p.unet.delete_adapters(["one"]),
    "unload_lora_weights": lambda p: p.unload_lora_weights(),
    "add_adapter": lambda p: p.unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"]), "three"),
    "fuse_lora, safely": lambda p: p.unet.fuse_lora(safe_fusing=True),
    "fuse and unfuse, safely": lambda p: (p.unet.fuse_lora(safe_fusing=True), p.unet.unfuse_lora()),
    "the tuner layers' own": tuner_layers,
    "freeu": lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "slicing, tiling": lambda p: (p.vae.enable_slicing(), p.vae.enable_tiling(), p.enable_attention_slicing()),
    "checkpointing": lambda p: (p.unet.enable_gradient_checkpointing(), p.vae.enable_gradient_checkpointing()),
    "compile": lambda p: p.unet.compile(backend="eager"),
    "fuse_qkv_projections": lambda p: p.fuse_qkv_projections(),
    "attention backend": attention_backend,
    "set_attn_processor": processors_by_module,
    "modes": lambda p: (p.unet.train(), p.vae.train(), p.unet.requires_grad_(True)),
    "requires_grad": lambda p: p.unet.requires_grad_(True),
    "channels_last": lambda p: p.unet.to(memory_format=torch.channels_last),
    "half": lambda p: p.unet.half(),
    "bfloat16 and back": to_bfloat16_and_back,
    "the whole pipeline to bfloat16": lambda p: p.to(torch.bfloat16),
    "data replaced": lambda p: setattr(first(p).to_q.weight, "data", torch.zeros_like(first(p).to_q.weight)),
    "parameter replaced": new_parameter,
    "parameter removed": parameter_removed,
    "parameters to meta": offloaded_by_hand,
    "gradients": gradients_replaced,
    "hook of Accelerate": hook_of_accelerate,
    "hook of diffusers": hook_of_diffusers,
    "hooks of torch": hooks_of_torch,
    "scheduler replaced": scheduler_replaced,
    "scheduler written to": scheduler_written_to,
    "component replaced": component_replaced,
    "new buffers and parts": new_attributes,
    "progress bar": lambda p: p.set_progress_bar_config(disable=False, desc="planted"),
    "layerwise casting": lambda p: p.vae.enable_layerwise_casting(torch.bfloat16, torch.float32),
    "ip-adapter loaded": ip_adapter_loaded,
}
"""Name → what is done to a pipeline inside."""


@pytest.mark.parametrize("name", TOUCHED)
def test_a_pipeline_is_put_back(name):
    everything_is_put_back(with_adapters(), TOUCHED[name], fails=False)


@pytest.mark.parametrize("name", ["set_adapters", "half", "scheduler replaced"])
def test_a_pipeline_is_put_back_when_the_evaluation_raises(name):
    everything_is_put_back(with_adapters(), TOUCHED[name], fails=True)


@pytest.mark.parametrize("name", ["scale", "unload", "set_attn_processor", "processor's own"])
def test_an_ip_adapter_is_put_back(name):
    touched = {
        "scale": lambda p: p.set_ip_adapter_scale(0.1),
        "unload": lambda p: p.unload_ip_adapter(),
        "set_attn_processor": processors_by_module,
        "processor's own": lambda p: first(p).processor.scale.__setitem__(0, 0.25),
    }
    pipeline = with_ip_adapter()
    assert isinstance(first(pipeline).processor, torch.nn.Module)
    everything_is_put_back(pipeline, touched[name], fails=False)


def everything_is_put_back(pipeline, touch, *, fails):
    parts = [pipeline, *(part for part in pipeline.components.values() if part is not None)]
    before, process = described(*parts), of_the_process()
    try:
        with StateGuard([pipeline.unet]) as guard:
            guard.pipeline(pipeline)
            inside = described(*parts)
            touch(pipeline)
            assert differences(inside, described(*parts)), "nothing was touched: the comparison would prove nothing"
            if fails:
                raise ZeroDivisionError("planted")
    except ZeroDivisionError:
        assert fails
    assert differences(before, described(*parts)) == []
    assert differences(process, of_the_process()) == []


PROCESS = {
    "random numbers": lambda: (torch.rand(3), np.random.rand(3), random.random()),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "grad": lambda: torch.set_grad_enabled(False),
    "threads": lambda: torch.set_num_threads(2),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "autocast": lambda: (torch.set_autocast_enabled("cpu", True), torch.set_autocast_dtype("cpu", torch.float16)),
    "benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "tf32 of cudnn": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "precision by its new name": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "sdpa": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "attention backend": lambda: unet().set_attention_backend("_native_math"),
}


@pytest.mark.parametrize("name", PROCESS)
def test_the_process_is_put_back(name):
    before = of_the_process()
    with StateGuard():
        PROCESS[name]()
        assert differences(before, of_the_process())
    assert differences(before, of_the_process()) == []


def test_what_was_cast_without_gradients_is_not_found_by_a_forward_under_the_scripts_autocast():
    layer = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with StateGuard([layer]), torch.no_grad():
            layer(torch.ones(1, 4))
        layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("fails", ["random", "settings", "tensors", "objects"])
def test_one_part_that_can_not_be_put_back_does_not_keep_the_others(monkeypatch, fails):
    kind = {"random": RandomStates, "settings": ProcessSettings, "tensors": KeptTensors, "objects": KeptObjects}[fails]
    real = kind.put_back

    def put_back(self):
        real(self)
        raise OSError("planted")

    monkeypatch.setattr(kind, "put_back", put_back)
    pipeline = with_adapters()
    before, process = described(pipeline.unet), of_the_process()
    with (
        pytest.raises(Exception, match="could not be put back or checked: OSError: planted"),
        StateGuard([pipeline.unet]),
    ):
        TOUCHED["freeu"](pipeline), pipeline.unet.half(), torch.rand(3), torch.set_grad_enabled(False)
    assert differences(before, described(pipeline.unet)) == []
    assert differences(process, of_the_process()) == []


def test_a_guard_that_can_not_begin_leaves_everything_as_it_was(monkeypatch):
    pipeline = with_adapters()
    before, process = described(pipeline.unet), of_the_process()
    monkeypatch.setattr(KeptTensors, "remember", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), StateGuard([pipeline.unet]):
        pass
    assert differences(before, described(pipeline.unet)) == []
    assert differences(process, of_the_process()) == []


SWITCHED_OFF = {
    "freeu": (attributes.Attributes, "put_back"),
    "half": (KeptTensors, "put_back"),
    "hooks of torch": (KeptObjects, "put_back"),
    "scheduler written to": (attributes.Attributes, "put_back"),
}


@pytest.mark.parametrize("name", SWITCHED_OFF)
def test_a_guard_without_this_part_would_be_seen(monkeypatch, name):
    monkeypatch.setattr(*SWITCHED_OFF[name], lambda self: None)
    pipeline = with_adapters()
    with pytest.raises(AssertionError):
        everything_is_put_back(pipeline, TOUCHED[name], fails=False)


@pytest.mark.parametrize("name", ["grad", "sdpa", "random numbers"])
def test_a_guard_without_settings_and_random_states_would_be_seen(monkeypatch, name):
    before = (RandomStates(), ProcessSettings())
    monkeypatch.setattr(process_settings.ProcessSettings, "put_back", lambda self: None)
    monkeypatch.setattr(RandomStates, "put_back", lambda self: None)
    try:
        with pytest.raises(AssertionError):
            test_the_process_is_put_back(name)
    finally:
        monkeypatch.undo()
        for states in before:
            states.put_back()


class Script:
    """Holds its parts as a trainer does."""

    def __init__(self):
        self.pipeline = with_adapters()
        self.scheduler, self.vae = self.pipeline.scheduler, self.pipeline.vae

    def build(self):
        self.vae.enable_tiling(), self.scheduler.set_timesteps(3), self.vae.requires_grad_(False)
        self.pipeline.scheduler = DDIMScheduler()
        return self.pipeline


@pytest.mark.parametrize("how", ["closure", "function in a closure", "partial", "method", "global"])
def test_what_a_function_does_before_it_returns_the_pipeline_is_put_back(how):
    script = Script()
    vae, scheduler, pipeline = script.vae, script.scheduler, script.pipeline

    def build():
        vae.enable_tiling(), scheduler.set_timesteps(3)
        pipeline.scheduler = DDIMScheduler()
        return pipeline

    def with_arguments(vae, *, pipeline):
        vae.enable_tiling()
        pipeline.scheduler.set_timesteps(3)
        pipeline.scheduler = DDIMScheduler()
        return pipeline

    globals()["THE_SCRIPTS"] = script
    builds = {
        "closure": build,
        "function in a closure": lambda: build(),
        "partial": partial(with_arguments, vae, pipeline=pipeline),
        "method": script.build,
        "global": lambda: THE_SCRIPTS.build(),  # noqa: F821
    }
    parts = [pipeline, vae, scheduler]
    before = described(*parts)
    with StateGuard([pipeline.unet]) as guard:
        guard.pipeline(builds[how])
        assert differences(before, described(*parts))
    assert differences(before, described(*parts)) == []


def test_a_function_with_a_variable_that_has_no_value_yet_is_looked_into():
    def build():
        return later

    assert mentioned(build) == []
    later = unet()
    assert mentioned(build) == [later]
