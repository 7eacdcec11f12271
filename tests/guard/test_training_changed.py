"""What can't be put back ends the training by name; what was put back is said once; the rest is silent."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from diffusers.training_utils import EMAModel
from test_put_back import with_adapters
from training import Run, untrained_pipeline

from i2am_debug.errors import I2AMError, TrainingChanged
from i2am_debug.guard import tensors
from i2am_debug.guard.checksums import Checksums
from i2am_debug.guard.state_guard import StateGuard

pytestmark = pytest.mark.usefixtures("few_probes")


def ema_copied_in(pipeline):
    """The bytes change and no version counter moves."""
    averaged = EMAModel(pipeline.unet.parameters())
    for parameter in averaged.shadow_params:
        parameter.add_(0.01)
    versions = [p._version for p in pipeline.unet.parameters()]
    averaged.copy_to(pipeline.unet.parameters())
    assert versions == [p._version for p in pipeline.unet.parameters()]


def stepped(pipeline):
    with torch.no_grad():
        pipeline.unet.conv_in.bias.add_(1.0)


def gradients_zeroed(pipeline):
    pipeline.unet.zero_grad(set_to_none=False)


def written_then_moved(pipeline):
    ema_copied_in(pipeline)
    pipeline.unet.half()


WRITTEN = {
    ema_copied_in: r"wrote to \d+ of \d+ tensors .*'UNet2DConditionModel\.conv_in\.weight', .* and \d+ more.*"
    r"EMAModel\.copy_to without restore.*other weights than before.*last checkpoint",
    stepped: r"wrote to 1 of \d+ .*: 'UNet2DConditionModel\.conv_in\.bias'\. Probably .*stepped an optimizer",
    gradients_zeroed: r"wrote to 1 of .*'UNet2DConditionModel\.conv_in\.bias\.grad'\. These are gradients.*torch\.no_grad",
    written_then_moved: r"EMAModel\.copy_to without restore",
}


def unet_in_training():
    pipeline = untrained_pipeline()
    pipeline.unet.conv_in.bias.grad = torch.ones_like(pipeline.unet.conv_in.bias)
    return pipeline


@pytest.mark.parametrize("write", WRITTEN)
def test_a_write_in_place_is_an_error_that_names_it(write):
    pipeline = unet_in_training()
    with pytest.raises(TrainingChanged, match=WRITTEN[write]), StateGuard([pipeline.unet]):
        write(pipeline)
    assert issubclass(TrainingChanged, I2AMError)


@pytest.mark.parametrize("write", WRITTEN)
def test_without_checksums_it_would_go_unseen(monkeypatch, write):
    monkeypatch.setattr(Checksums, "changed", lambda self: set())
    pipeline = unet_in_training()
    with StateGuard([pipeline.unet]):
        write(pipeline)


def test_adapters_fused_in_place_are_named_with_the_cure():
    pipeline = with_adapters()
    wanted = r"\.base_layer\.weight'.*fused in place \(fuse_lora.*safe_fusing=True"
    with pytest.raises(TrainingChanged, match=wanted), StateGuard([pipeline.unet]):
        for module in pipeline.unet.modules():
            if hasattr(module, "merged_adapters"):
                module.get_base_layer().weight.data += module.get_delta_weight("one")


def test_it_is_raised_from_what_the_evaluation_raised():
    pipeline = unet_in_training()
    with pytest.raises(TrainingChanged) as caught, StateGuard([pipeline.unet]):
        stepped(pipeline)
        raise ZeroDivisionError("planted")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_replaced(caplog, interrupt):
    pipeline = unet_in_training()
    with pytest.raises(interrupt), StateGuard([pipeline.unet]):
        stepped(pipeline)
        raise interrupt
    assert "stepped an optimizer" in caplog.text


def test_the_same_bytes_written_back_are_no_change():
    pipeline = unet_in_training()
    state = copy.deepcopy(pipeline.unet.state_dict())
    with StateGuard([pipeline.unet]):
        ema_copied_in(pipeline)
        pipeline.unet.load_state_dict(state)


def test_data_that_was_put_back_is_said_once_and_with_the_cure(caplog):
    pipeline, told = unet_in_training(), set()
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        for _ in range(2):
            with StateGuard([pipeline.unet], told=told):
                pipeline.unet.half()
    (record,) = caplog.records
    assert "exchanged the data of" in record.message and "(float32 → float16)" in record.message
    assert "put back exactly" in record.message and "build the pipeline without .to(dtype)" in record.message


def test_a_part_that_is_not_trained_and_was_written_to_is_a_warning(caplog):
    pipeline = unet_in_training()
    with StateGuard([pipeline.unet]) as guard, torch.no_grad():
        guard.watch([pipeline.reference_encoder])
        pipeline.reference_encoder.norm.bias.add_(1.0)
    assert "1 parameters of the pipeline that are not trained, 'ReferenceEncoder.norm.bias'" in caplog.text


class Counting(torch.nn.Module):
    """Counts its forwards, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("table", torch.zeros(tensors._LARGEST_COPY))

    def forward(self):
        self.count += 1


def test_a_buffer_that_a_forward_writes_to_is_written_back(caplog):
    counting = Counting()
    with StateGuard([counting]):
        counting()
    assert counting.count == 0 and "1 buffers of trained modules, 'Counting.count'" in caplog.text


def test_a_large_buffer_can_not_be_written_back():
    counting = Counting()
    with pytest.raises(TrainingChanged, match="'Counting.table'"), StateGuard([counting]):
        counting.table[0] = 1


def test_an_evaluation_that_touches_nothing_says_nothing(caplog, tmp_path):
    run = Run(tmp_path, tracker=False)
    run.train(1)
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        run.callback().evaluate(0)
    assert "trained" not in caplog.text


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (64, 3), (4, 6, 5, 5), (0, 3)])
def test_a_checksum_sees_every_single_byte(dtype, shape):
    tensor = torch.zeros(shape, dtype=dtype)
    views = [
        tensor,
        torch.zeros(shape, dtype=dtype).to(memory_format=torch.channels_last) if len(shape) == 4 else tensor,
    ]
    flat = torch.zeros(tensor.numel() + 1, dtype=dtype)
    views.append(flat[1:].view(shape))  # in a storage that begins elsewhere
    for view in views:
        sums = Checksums([torch.ones(3), view])
        assert sums.changed() == set()
        for place in range(0, view.numel(), 5):
            one = view.as_strided((view.numel(),), (1,), view.storage_offset())
            one[place] = 1
            assert sums.changed() == {1}
            one[place] = 0
        assert sums.changed() == set()


def test_a_checksum_sees_signs_not_numbers_and_what_moves_about():
    tensor = torch.arange(1.0, 129.0)
    for change in (
        lambda t: t.neg_(),
        lambda t: t.copy_(t.flip(0)),
        lambda t: t[3].fill_(float("nan")),
        lambda t: t.zero_(),
    ):
        one = tensor.clone()
        sums = Checksums([one])
        change(one)
        assert sums.changed() == {0}
    zero = torch.zeros(2)
    sums = Checksums([zero])
    zero.neg_()  # -0.0, which is equal to 0.0
    assert sums.changed() == {0}
