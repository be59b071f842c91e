"""Exports of PyTorch modules, each made once a process: most builds here are of one detector."""

import hashlib
import io
import pickle
from contextlib import contextmanager

import onnx
import pytest
import torch

from vadexport.tracing import composing
from vadexport.tracing import graph as tracing

#: Packages whose classes stay what they are.
_LASTING = ("vadexport.", "torch.")
_made: dict[str, bytes] = {}
_export = tracing.export_module


@contextmanager
def remembered_exports():
    """A context in which the same module, exported in the same way, is not exported again."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (tracing, composing):
            patch.setattr(module, "export_module", _remembered)
        yield


def forget_exports():
    """For a test of what exports give."""
    _made.clear()


def _remembered(module, examples, inputs, outputs, *, dynamic):
    # A pickle names classes: those of tests may be others of the same name.
    ours = all(type(each).__module__.startswith(_LASTING) for each in module.modules())
    key = _digest((module, examples, inputs, outputs, dynamic)) if ours else None
    if key is None:
        return _export(module, examples, inputs, outputs, dynamic=dynamic)
    if key not in _made:
        model = _export(module, examples, inputs, outputs, dynamic=dynamic)
        _made[key] = model.SerializeToString()
    return onnx.load_from_string(_made[key])


class _Digester(pickle.Pickler):
    """Takes of tensors what they hold, not where they lie."""

    def reducer_override(self, thing):
        if not isinstance(thing, torch.Tensor):
            return NotImplemented
        values = thing.detach().contiguous()
        held = hashlib.sha256(values.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        return str, (f"{values.dtype} {tuple(values.shape)} {held}",)


def _digest(things):
    """None of what cannot be pickled, such as functions within functions."""
    buffer = io.BytesIO()
    try:
        _Digester(buffer).dump(things)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return hashlib.sha256(buffer.getvalue()).hexdigest()
