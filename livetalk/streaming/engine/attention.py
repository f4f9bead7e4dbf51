"""The kernel of the transformer's self-attention, chosen once, by measurement at the shape it is needed for."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [S, heads, d], k, v [n, heads, d]) -> [S, heads, d]."""
TRIES = 5
SPLITS = (1, 2, 3, 4, 6)
"""Parts of the keys that FlashAttention 3 may attend to apart and then join. Without, the 288 tiles of 3072 queries and
12 heads keep 132 processors busy twice and leave most of them idle the third time."""
E4M3 = torch.float8_e4m3fn


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own choice."""
    q, k, v = (value.transpose(0, 1)[None] for value in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)


def half(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two products in bfloat16 around a softmax, for CPUs with instructions for them: PyTorch's own is no quicker there
    than in float32."""
    q, k, v = (value.transpose(0, 1).bfloat16() for value in (q * q.shape[-1] ** -0.5, k, v))
    weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
    return torch.bmm(weights, v).transpose(0, 1).float()


def _backend(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    with sdpa_kernel(backends[name]):
        return sdpa(q, k, v)


def _fa3(q: Tensor, k: Tensor, v: Tensor, splits: int = 1) -> Tensor:
    from fa3_fwd_interface import flash_attn_func

    out = flash_attn_func(q[None], k[None], v[None], num_splits=splits)
    return (out[0] if isinstance(out, tuple) else out)[0]


def has_fa3() -> bool:
    return importlib.util.find_spec("fa3_fwd_interface") is not None


def kernels(device: torch.device, halves: bool = False) -> dict[str, Kernel]:
    """What may be there, by name: in the precision of the network, and, on a CPU, in half of it if that will do."""
    if device.type != "cuda":
        return {"sdpa": sdpa, "half": half} if halves else {"sdpa": sdpa}
    names = ("cudnn", "flash", "efficient")
    found: dict[str, Kernel] = {name: partial(_backend, name) for name in names}
    return found | (split_kernels("fa3") if has_fa3() else {})


def split_kernels(name: str) -> dict[str, Kernel]:
    """FlashAttention 3, for each number of parts."""
    return {name if n == 1 else f"{name} in {n} parts": partial(_fa3, splits=n) for n in SPLITS}


def choose(
    name: str, device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype, halves: bool = False
) -> tuple[str, Kernel]:
    """The kernel called `name`, or, for auto, the fastest at (queries, keys, heads, d), and what it is called with the
    parts it is run in. halves: whether one in half the precision will do, on a CPU. Raises ValueError for one that is
    not there."""
    if name == "fa3-fp8":
        if device.type != "cuda" or not has_fa3():
            raise ValueError("engine.attention=fa3-fp8 needs a Hopper GPU and: pip install livetalk[flash]")
        return _fastest(split_kernels(name), device, shape, E4M3)
    found = kernels(device, halves or name == "half")
    if name == "sdpa":
        return name, sdpa
    if name != "auto":
        if name not in found:
            raise ValueError(f"engine.attention={name} is not there on {device}: use auto or {', '.join(found)}")
        found = split_kernels(name) if name == "fa3" else {name: found[name]}
    return _fastest(found, device, shape, dtype)


def _fastest(
    found: dict[str, Kernel], device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> tuple[str, Kernel]:
    if device.type != "cuda" and len(found) == 1:
        return next(iter(found.items()))
    times = {name: _time(kernel, device, shape, dtype) for name, kernel in found.items()}
    best = min(times, key=times.get)
    if times[best] == float("inf"):
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"engine.attention: {' and '.join(found)} cannot do {shape[2]} heads of {shape[3]} in {kind} on this card: "
            "use engine.attention=sdpa"
        )
    told = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in times.items())
    log.info("attention of %d queries to %d keys: %s; chosen: %s", *shape[:2], told, best)
    return best, found[best]


def _time(kernel: Kernel, device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype) -> float:
    """Seconds of one run, the best of a few; infinite for a kernel that refuses the shape or this card."""
    queries, keys, heads, d = shape
    q = torch.randn(queries, heads, d, device=device).to(dtype)
    k, v = (torch.randn(keys, heads, d, device=device).to(dtype) for _ in range(2))
    settle = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    try:
        kernel(q, k, v)
        settle()
    except (RuntimeError, ImportError) as error:
        log.debug("attention kernel refused", exc_info=error)
        return float("inf")
    times = []
    for _ in range(TRIES):
        settle()
        start = time.perf_counter()
        kernel(q, k, v)
        settle()
        times.append(time.perf_counter() - start)
    return min(times)
