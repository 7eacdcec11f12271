"""The callback in a real training loop: it never changes the training, resumes, writes, warns, and cleans up."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from i2am_debug.callbacks import I2AMCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from test_capture import left_behind
from training import Run, untrained_pipeline

from i2am_debug import CapturePlan, Rule, Rules, ValidationPair, ValidationPairs
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.errors import I2AMError, InvalidPair, UnsupportedModel
from i2am_debug.figures.values import Undefined
from i2am_debug.guard.state_guard import StateGuard
from i2am_debug.store.evaluation_file import read_evaluation
from i2am_debug.store.run_store import RunStore

pytestmark = pytest.mark.usefixtures("few_probes")

# An untrained model wanders, so these alert for certain.
EAGER = Rules(
    rules=tuple(
        Rule(name=figure, kind="drop", figure=figure, margin=1e-9)
        for figure in ("copying_layer/imacs_r_hole", "attention_information")
    )
)


def assert_same(ours, theirs, where="state"):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("way", ["loss_fn", "teacher_forcing", "sampling"])
def test_training_with_the_callback_is_bit_identical(tmp_path, way):
    alone = Run(tmp_path / "alone", tracker=False)
    alone.train(6)
    expected = alone.state()

    watched = Run(tmp_path / "watched")
    watched.unet.mid_block.eval()  # deliberately in evaluation mode: must stay so, and must be so in both runs
    watched.unet.mid_block.train()
    callback = watched.callback(
        with_loss=way == "loss_fn",
        way=way,
        pairs=validation_pairs(2, seed=11),
        every_n_steps=2,
        pictures=1,
        synchronous=False,
    )
    callback.on_train_begin(0)
    watched.train(6, callback)
    callback.on_train_end(6)
    assert [e.global_step for e in callback.history()] == [0, 2, 4, 6]
    assert_same(watched.state(), expected)


def test_the_guard_restores_what_an_evaluation_may_touch():
    pipeline = untrained_pipeline()
    pipeline.unet.train()
    pipeline.unet.mid_block.eval()
    pipeline.unet.conv_in.weight.requires_grad_(False)
    training = [m.training for m in pipeline.unet.modules()]
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    processor, numbers = attention.processor, torch.get_rng_state()
    pipeline.scheduler.set_timesteps(7)
    with pytest.raises(RuntimeError, match="planted"), StateGuard([pipeline.unet]) as untouched:
        untouched.watch([pipeline, pipeline.scheduler])
        assert not any(m.training for m in pipeline.unet.modules())
        torch.rand(3), np.random.rand(3), torch.set_grad_enabled(False)
        pipeline.unet.requires_grad_(True)
        pipeline.unet.train()
        attention.set_processor(type(processor)())
        pipeline.scheduler.set_timesteps(3)
        raise RuntimeError("planted")
    assert [m.training for m in pipeline.unet.modules()] == training
    assert not pipeline.unet.conv_in.weight.requires_grad and pipeline.unet.conv_out.weight.requires_grad
    assert attention.processor is processor and torch.equal(torch.get_rng_state(), numbers)
    assert len(pipeline.scheduler.timesteps) == 7 and torch.is_grad_enabled()


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, caplog):
    """Registered, as older scripts do: harmless, and the log says that the call can go."""
    caplog.set_level(logging.INFO, "i2am_debug")

    def run(folder):
        one = Run(folder)
        callback = one.callback(every_n_steps=4, rules=EAGER)
        one.accelerator.register_for_checkpointing(callback)
        return one, callback

    whole, callback = run(tmp_path / "whole")
    callback.on_train_begin(0)
    whole.train(8, callback)
    whole.accelerator.save_state(str(tmp_path / "checkpoint"))
    assert "accelerator.register_for_checkpointing(callback) can go" in caplog.text
    assert (tmp_path / "checkpoint" / "custom_checkpoint_0.pkl").is_file()
    draws = whole.draws.get_state()
    whole.train(8, callback)
    callback.on_train_end(16)

    first, callback = run(tmp_path / "cut")  # what an interrupted run left in its folder, beyond the checkpoint too
    callback.on_train_begin(0)
    first.train(12, callback)
    first.accelerator.end_training()

    second, callback = run(tmp_path / "cut")
    second.accelerator.load_state(str(tmp_path / "checkpoint"))
    second.draws.set_state(draws)
    second.step = 8
    callback.on_train_begin(8)
    second.train(8, callback)
    callback.on_train_end(16)

    stores = [RunStore(tmp_path / name / "run") for name in ("whole", "cut")]
    ours, theirs = ([s.evaluation for s in store.evaluations()] for store in stores)
    assert [e.global_step for e in ours] == [0, 4, 8, 12, 16]
    assert ours == theirs
    assert stores[0].alerts() == stores[1].alerts()
    assert stores[0].alerts(), "no alert in either run: the comparison would prove nothing"


def test_what_an_evaluation_leaves_in_tensorboard_and_on_disk(tmp_path, caplog):
    run = Run(tmp_path)
    callback = run.callback(panels=3, pictures=1)
    with caplog.at_level(logging.INFO, "i2am_debug"):
        evaluation = callback.evaluate(5)
    run.accelerator.end_training()
    assert "i2am step 5: IMACS_g" in caplog.text and "3 pairs" in caplog.text

    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    layer = evaluation.copying_layer
    assert {
        "i2am/imacs_g",
        "i2am/imacs_r",
        "i2am/attention_information",
        "i2am/reference_gap",
        "i2am/copying_layer/imacs_r_hole",
        f"i2am/layer/{layer}/imacs_r",
        f"i2am/layer/{layer}/attention_information",
        "i2am/alert",
        *(f"i2am/reference_lines/imacs_r/{line}" for line in ("constant", "random", "blob", "perfect")),
    } <= scalars
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charted = [tag for chart in layout.category[0].chart for tag in chart.multiline.tag]
    assert all(sum(bool(re.search(tag, scalar)) for scalar in scalars) == 1 for tag in charted), charted
    point = events.Scalars("i2am/imacs_g")[0]
    assert point.step == 5 and point.value == pytest.approx(evaluation.mean("imacs_g"))
    assert not events.Tags()["images"], "a disk that pictures fill must not cost the script its own writer"
    pictures = EventAccumulator(str(tmp_path / "run/i2am_pictures"), size_guidance={"images": 0}).Reload()
    images = set(pictures.Tags()["images"])
    assert {f"i2am/pair_0{i}" for i in range(3)} <= images
    assert {f"i2am/pair_00/{kind}" for kind in ("time", "heads", "layers", "specific")} <= images
    assert "i2am/pair_01/time" not in images
    panel = pictures.Images("i2am/pair_00")[0]
    assert max(panel.width, panel.height) <= 1024
    written = [t for t in events.Tags()["tensors"] if t.startswith("i2am/undefined")]
    assert written, "the first evaluation has no baseline to be distant from, and must say so"
    words = events.Tensors(written[0])[0].tensor_proto.string_val[0].decode()
    assert "- 6 of `i2am/layer/…/kept_place`: undefined: no kept region" in words
    assert len(re.findall("probe/", words)) == 1 and "- 13 of `i2am/probe/…`: undefined: probes are tried at" in words
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1, "a second writer loses the script's points"

    stored, maps = read_evaluation(tmp_path / "run/plugins/i2am_debug/step_00000005.safetensors")
    assert stored == evaluation and maps["0/g2r"].sum() == pytest.approx(1, abs=1e-5)
    assert isinstance(evaluation.mean("drift/js_g2r"), Undefined)
    later = callback.evaluate(6)
    assert later.mean("drift/js_g2r") == pytest.approx(0, abs=1e-3)  # nothing was trained in between
    assert later.figures["imacs_r"] == evaluation.figures["imacs_r"]


def test_a_run_without_a_tracker_writes_into_a_folder_of_its_own(tmp_path):
    run = Run(tmp_path, tracker=False)
    run.callback(logdir=tmp_path / "own").evaluate(0)
    assert RunStore(tmp_path / "own").evaluations()
    assert list((tmp_path / "own").glob("events.out.tfevents.*"))


def test_an_evaluation_that_fails_does_not_end_training_unless_asked_to(tmp_path, caplog):
    run = Run(tmp_path)

    def broken(*args, **kwargs):
        raise RuntimeError("planted in loss_fn")

    before = run.state()
    callback = run.callback(loss_fn=broken, on_error="warn")
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        callback.on_train_begin(0)
        callback.on_step_end(10)
    assert caplog.text.count("planted in loss_fn") >= 2 and "training goes on" in caplog.text
    with pytest.raises(RuntimeError, match="planted"):
        run.callback(loss_fn=broken).on_step_end(10)
    assert left_behind(run.pipeline.unet) == []
    assert_same(run.state(), before)


def test_a_step_is_evaluated_once_however_often_it_is_told(tmp_path):
    run = Run(tmp_path)
    seen = []
    callback = run.callback()
    callback.monitor.evaluator.score = lambda *args, score=callback.monitor.evaluator.score, **named: (
        seen.append(named["global_step"]) or score(*args, **named)
    )
    callback.on_train_begin(0)
    for step in (0, 9, 10, 10, 11, 20, 20):
        callback.on_step_end(step)
    callback.on_train_end(20)
    assert seen == [0, 10, 20]


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_trackers_that_can_not_be_closed_are_told_as_on_error_says(tmp_path, caplog, on_error):
    run = Run(tmp_path)
    callback = run.callback(on_error=on_error)
    callback.on_train_begin(0)
    waited = []
    callback.monitor.reporter._trackers.close = lambda: 1 / 0
    callback.monitor._processes.wait = lambda: waited.append(True)
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        if on_error == "raise":
            with pytest.raises(I2AMError, match="division by zero"):
                callback.on_train_end(0)
        else:
            callback.on_train_end(0)
            assert "at the end, step 0, not everything could be done" in caplog.text
            assert "closing the trackers: ZeroDivisionError: division by zero; training goes on" in caplog.text
    assert waited, "the other processes are not left waiting"


def test_a_state_with_less_in_it_is_taken_up(tmp_path):
    callback = Run(tmp_path).callback()
    callback.load_state_dict({"last_step": 40})
    assert callback.state_dict() == {
        **{"last_step": 40, "baseline": None, "baseline_maps": {}, "alerting": {}, "should_stop": False, "spacing": {}},
        **{"undelivered": "[]", "follow_up": "null", "pairs_at_once": None},
    }


def test_what_on_alert_raises_ends_the_training(tmp_path):
    run = Run(tmp_path)

    def stop(alert):
        raise SystemExit(f"stop at {alert.global_step}")

    callback = run.callback(
        on_alert=stop, on_error="warn", rules=EAGER, every_n_steps=2, plan=CapturePlan(sampler_steps=1)
    )
    callback.on_train_begin(0)
    with pytest.raises(SystemExit, match="stop at"):
        run.train(12, callback)
    assert RunStore(tmp_path / "run").alerts(), "the alert was written before anybody was told"


def test_a_changed_setting_makes_the_baseline_not_comparable(tmp_path, caplog):
    run = Run(tmp_path)
    first = run.callback()
    first.evaluate(0)
    path = tmp_path / "run/plugins/i2am_debug/step_00000000.safetensors"
    other = run.callback(baseline=path, plan=CapturePlan(sampler_steps=1), rules=EAGER)
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        run.train(2)
        other.evaluate(2)
    assert "not comparable" in caplog.text and "plan.sampler_steps (1, was 2)" in caplog.text
    assert RunStore(tmp_path / "run").alerts() == []


def a_pair(**changes) -> ValidationPair:
    pair = validation_pairs(1, seed=11)[0]
    fields = ("name", "target", "reference", "mask", "reference_mask")
    return ValidationPair(**{**{f: getattr(pair, f) for f in fields}, **changes})


def test_bad_arguments_are_refused_before_training(tmp_path):
    run = Run(tmp_path, tracker=False)
    for wrong in (0, -3, 2.5, True):
        with pytest.raises(ValueError, match="every_n_steps=.*whole number of at least 1"):
            run.callback(every_n_steps=wrong)
    with pytest.raises(ValueError, match='on_error=.*"warn" or "raise"'):
        run.callback(on_error="ignore")
    with pytest.raises(InvalidPair, match="0 validation pairs"):
        run.callback(ValidationPairs([]), on_error="warn").on_train_begin(0)
    twins = [a_pair(name="a"), a_pair(name="a")]
    with pytest.raises(InvalidPair, match="two validation pairs are named 'a'"):
        run.callback(ValidationPairs(twins), on_error="warn").on_train_begin(0)
    with pytest.raises(UnsupportedModel, match="no cross-attention"):
        run.callback(pipeline=torch.nn.Linear(2, 2), on_error="warn").on_train_begin(0)
    with pytest.raises(UnsupportedModel, match="no attention module of .* is looked at"):
        run.callback(plan=CapturePlan(layers=("nothing*",)), on_error="warn").on_train_begin(0)


def test_a_loss_function_of_the_wrong_shape_is_named(tmp_path):
    run = Run(tmp_path, tracker=False)

    def scalar(pairs, timesteps, generator, reference=None):
        return torch.zeros(())

    with pytest.raises(UnsupportedModel, match=r"one loss a pair.*\(2,\).*got \(\).*mean\(\(1, 2, 3\)\)"):
        run.callback(loss_fn=scalar).evaluate(0)


def test_pairs_without_masks_have_undefined_scores_with_reasons(tmp_path):
    run = Run(tmp_path, tracker=False)
    pairs = ValidationPairs([a_pair(name="a"), a_pair(name="b", reference_mask=None)])
    evaluation = run.callback(pairs, logdir=tmp_path / "own", batch_size=1).evaluate(0)
    assert not isinstance(evaluation.figures["imacs_r"][0], Undefined)
    assert evaluation.figures["imacs_r"][1] == Undefined("no reference mask")
    one = run.callback(ValidationPairs([a_pair()]), logdir=tmp_path / "one").evaluate(0)
    assert one.mean("reference_gap") == Undefined("one pair")


def test_a_pipeline_built_anew_each_time_is_the_same(tmp_path):
    run = Run(tmp_path, tracker=False)
    built = []

    def make_pipeline():
        parts = run.pipeline.components
        built.append(type(run.pipeline)(**parts))
        torch.rand(5)  # building draws random numbers
        return built[-1]

    fixed = run.callback(logdir=tmp_path / "fixed").evaluate(0)
    fresh = run.callback(logdir=tmp_path / "fresh", pipeline=make_pipeline).evaluate(0)
    assert len(built) == 1 and fresh == fixed


def test_a_pilot_looks_at_the_chosen_heads_only_and_is_kept(tmp_path):
    run = Run(tmp_path)
    callback = run.callback(plan=CapturePlan(sampler_steps=1, heads=8))
    evaluation = callback.evaluate(0)
    assert evaluation.heads is not None
    chosen = sum(len(heads) for heads in evaluation.heads.values())
    assert 6 <= chosen < 20
    assert callback.evaluate(2).heads == evaluation.heads
    resumed = run.callback(plan=CapturePlan(sampler_steps=1, heads=8))
    resumed.load_state_dict(callback.state_dict())
    assert resumed.monitor.evaluator.heads == evaluation.heads


def test_the_callback_is_importable_where_it_is_packaged():
    assert I2AMCallback.__module__ == "i2am_debug.callbacks.accelerate_loop"
