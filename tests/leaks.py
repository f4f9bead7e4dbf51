"""What is left behind: threads, open files, memory."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def files() -> int:
    """Open files of this process; 0 where the system does not tell."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    if not os.path.exists("/proc/self/statm"):
        return 0
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tensors() -> int:
    """Bytes of all tensors there are; those that a compiler only reasons with (subclasses) have none."""
    found = (each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))
    storages = (each.untyped_storage() for each in found)
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def held(value, seen: set[int]) -> int:
    """Bytes of all arrays that an object holds, shared weights aside."""
    if id(value) in seen or isinstance(value, torch.nn.Module):
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, np.ndarray):
        return value.nbytes if value.base is None else held(value.base, seen)
    if isinstance(value, dict):
        return sum(held(each, seen) for each in value.values())
    if isinstance(value, list | tuple | set) or type(value).__name__ == "deque":
        return sum(held(each, seen) for each in value)
    return held(vars(value), seen) if hasattr(value, "__dict__") else 0


@contextmanager
def nothing_left(objects: int = 200) -> Iterator[None]:
    """Checks that no more threads, files and bytes of tensors are there than before, and hardly more objects."""

    def there() -> tuple[int, ...]:
        gc.collect()
        return threading.active_count(), files(), tensors(), len(gc.get_objects())

    before = there()
    yield
    after = there()
    grown = [now > then for now, then in zip(after[:3], before[:3], strict=True)]
    assert not any(grown), f"threads, files, bytes of tensors: {before[:3]} before, {after[:3]} after"
    assert after[3] - before[3] <= objects, f"{after[3] - before[3]} objects more than before"
