"""Runs a training step as if on a GPU, without one, and says what it would ask of the host.

A captured step may not wait for the card. The tensors here are PyTorch's meta tensors, which have shapes but no
numbers: a step that needs a number (an item, nonzero, a boolean index) fails by itself, and copies are seen.
"""

from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CARD = torch.device("meta")
COPIES = ("aten._to_copy", "aten.copy_")


class CardGenerator(torch.Generator):
    """Says that it lives on the card."""

    device = CARD


class _Constants(TorchFunctionMode):
    """Records tensors on the card that are made of the host's numbers."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if made and out.device == CARD:
            self.found.append(f"torch.{func.__name__}({args[0]})")
        return out


class _Crossings(TorchDispatchMode):
    """Records copies between host and card, and draws without the given generator; makes those with it."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = kwargs.get("generator") is not None and kwargs["device"] == CARD
        if given:
            # Meta tensors have no generator of their own.
            del kwargs["generator"]
            overload = {"generator": "default", "low_generator": "low"}[func._overloadname]
            func = getattr(func.overloadpacket, overload)
        out = func(*args, **kwargs)
        tensors = [x for x in (*args, out) if isinstance(x, torch.Tensor)]
        if str(func).startswith(COPIES) and len({x.device for x in tensors}) > 1:
            self.found.append(f"{func} of {tuple(tensors[-1].shape)}")
        if torch.Tag.nondeterministic_seeded in func.tags and not given and out.device == CARD:
            self.found.append(f"{func} without the generator")
        return out


@contextmanager
def as_if_on_a_card():
    """Yields the list of what is asked of the host meanwhile. Meta tensors know no autocast."""
    found: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.autocast", lambda *args, **kwargs: nullcontext()))
        # transformers looks at a mask on the host, but not where it sees a capture.
        stack.enter_context(mock.patch("torch.cuda.is_current_stream_capturing", lambda: True))
        stack.enter_context(_Constants(found))
        stack.enter_context(_Crossings(found))
        yield found
