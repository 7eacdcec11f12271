"""What is said of tensors that changed: an end of the training where that can't be undone, else a warning."""

from __future__ import annotations

from collections.abc import Sequence

from .tensors import TensorChanges

_NAMED = 3
_LOST = (
    "Going on would train other weights than before, so the training ends here: correct the script, then resume from the "
    "last checkpoint"
)


def what_is_lost(changes: TensorChanges, *, has_reducer: bool) -> str:
    """Why the training can't go on as it was; empty where it can.

    `has_reducer`: gradients are reduced by hooks on autograd's nodes, which a change of dtype or device makes anew.
    """
    if changes.written:
        return (
            f"the evaluation wrote to {len(changes.written)} of {changes.count} tensors that are being trained, which can't "
            f"be undone: {_some(changes.written)}. {_who_wrote(changes)}. {_LOST}"
        )
    unhooked = [name for name, how in changes.moved.items() if "→" in how]
    if unhooked and has_reducer:
        return (
            f"the evaluation changed dtype or device of {len(unhooked)} tensors that are being trained, "
            f"{_some_moved(changes, unhooked)}. Their data was put back, but the hooks by which DistributedDataParallel "
            "exchanges gradients are gone, and every process would train alone. Build the pipeline without .to(dtype), "
            f".half() or torch_dtype= on the trained modules. {_LOST}"
        )
    return ""


def what_was_put_back(changes: TensorChanges) -> str:
    """The warning and its cure; empty where nothing moved."""
    parts = []
    if changes.moved:
        parts.append(
            f"the pipeline exchanged the data of {len(changes.moved)} of {changes.count} tensors that are being trained, "
            f"{_some_moved(changes, list(changes.moved))}; the original data was put back exactly. Meanwhile both are in "
            "memory, and the figures are of the exchanged data: build the pipeline without .to(dtype), .half(), "
            "torch_dtype=, offloading or fused adapters on the trained modules, or of a copy of them"
        )
    if changes.restored:
        parts.append(
            f"the evaluation wrote to {len(changes.restored)} buffers of trained modules, {_some(changes.restored)}; they "
            "were written back from a copy. A forward that counts in evaluation mode too does this"
        )
    return "; ".join(parts)


def what_was_written_elsewhere(names: Sequence[str]) -> str:
    """The warning that parts which are not trained were written to; empty where none was."""
    if not names:
        return ""
    return (
        f"the evaluation wrote to {len(names)} parameters of the pipeline that are not trained, {_some(names)}, which can't "
        "be undone. If the training runs them too, it goes on with other ones: fuse adapters into a copy"
    )


def _who_wrote(changes: TensorChanges) -> str:
    names = changes.written
    if all(name.endswith(".grad") for name in names):
        return (
            "These are gradients: pipeline=, call= or loss_fn= ran a backward or an optimizer.zero_grad(); run it under "
            "torch.no_grad()"
        )
    if any(".base_layer." in name for name in names):
        return (
            "Probably adapters were fused in place (fuse_lora, merge_adapter): leave them unfused, or fuse them with "
            "safe_fusing=True (safe_merge=True), which writes elsewhere and is undone here"
        )
    if changes.uncounted:
        return (
            "Probably averaged weights were copied into the trained modules and not taken out again (EMAModel.copy_to without "
            "restore): copy them into modules of the pipeline's own, or swap before and restore after the callback is called"
        )
    return (
        "Probably pipeline=, call= or loss_fn= stepped an optimizer, loaded a state dict or fused adapters; give the pipeline "
        "a copy of the modules to write to"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more


def _some_moved(changes: TensorChanges, names: Sequence[str]) -> str:
    return f"such as {names[0]!r} ({changes.moved[names[0]]})"
