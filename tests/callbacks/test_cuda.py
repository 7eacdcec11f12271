"""On an accelerator: the training is left alone, the figures are those of the CPU, outputs stay what they were."""

from __future__ import annotations

import pytest
import torch
from accelerate.utils import set_seed
from i2am_debug.callbacks import I2AMCallback
from test_callback import assert_same

from i2am_debug import CapturePlan, trace
from i2am_debug.demo.demo_model import MODELS, demo_model
from i2am_debug.demo.finetune import fine_tune, new_accelerator
from i2am_debug.evaluation.evaluator import Evaluator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def trained(folder, name: str, **settings) -> dict:
    """Weights, optimizer-independent random state and modes after 12 steps, with a callback where settings are given."""
    set_seed(4)
    model = demo_model(name)
    accelerator = new_accelerator(folder, "run")
    assert accelerator.device.type == "cuda"
    pipeline = model.load(device=accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    steps = fine_tune(accelerator, model, pipeline, steps=12, seed=4)
    callback = None
    if settings:
        if settings.get("way") == "loss_fn":
            settings["loss_fn"] = model.loss_fn(pipeline)
        callback = I2AMCallback(
            accelerator,
            pipeline=pipeline,
            pairs=model.validation_pairs()[:2],
            every_n_steps=4,
            num_inference_steps=3,
            pictures=1,
            on_error="raise",
            disable_progress_bar=True,
            **settings,
        )
        callback.on_train_begin(0)
    for step, _ in steps:
        if callback is not None:
            callback.on_step_end(step)
    if callback is not None:
        callback.on_train_end(12)
        assert len(callback.history()) == 4
        assert callback.history()[0].fingerprint["way"] == settings["way"]
    accelerator.end_training()
    modules = [getattr(pipeline, part) for part in model.trained]
    return {
        "weights": {f"{i}.{k}": v.clone() for i, m in enumerate(modules) for k, v in m.state_dict().items()},
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
        "training": [m.training for module in modules for m in module.modules()],
    }


@pytest.mark.parametrize("way", ["teacher_forcing", "loss_fn", "sampling"])
@pytest.mark.parametrize("name", MODELS)
def test_training_on_cuda_with_the_callback_is_bit_identical(tmp_path, name, way):
    assert_same(trained(tmp_path / "watched", name, way=way), trained(tmp_path / "alone", name))


@pytest.mark.parametrize("name", MODELS)
def test_cuda_sees_what_the_cpu_sees(name):
    model = demo_model(name)
    found = []
    for device in ("cpu", "cuda"):
        pipeline = model.load(device=device)
        evaluator = Evaluator(pairs=model.validation_pairs()[:3])
        evaluator.check(pipeline)
        evaluator.prepare(pipeline)
        assert evaluator.chosen.name == "teacher_forcing"
        observations = [one for batch in evaluator.batches for one in evaluator.observe(pipeline, batch)]
        found.append(evaluator.score(observations, global_step=0, pipeline=pipeline, baseline=None))
    for tag in ("loss", "reference_gap", "blank_gap", "imacs_g", "attention_information"):
        assert found[1].values(tag) == pytest.approx(found[0].values(tag), rel=2e-3, abs=2e-4), tag
    assert found[0].copying_layer == found[1].copying_layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_looking_changes_no_output_on_cuda(dtype):
    pipeline = demo_model("edit").load(device="cuda").to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    pair = demo_model("edit").validation_pairs()[0]

    def run() -> torch.Tensor:
        call = dict(image=pair.reference, prompt=pair.prompt, num_inference_steps=3, output_type="pt")
        return pipeline(**call, generator=torch.Generator().manual_seed(0)).images

    alone = run()
    with trace(pipeline, plan=CapturePlan.full()) as t:
        watched = run()
    assert torch.equal(alone, watched)
    assert t.maps().g2r.unified.sum() == pytest.approx(1, abs=1e-4)
