"""Which kernel computes attention in the steps of a training.

PyTorch takes the first of its kernels, in an order that it keeps, that can do what is asked. In its own order
FlashAttention 2 comes before cuDNN's, which on Hopper is quicker for long sequences and wide heads, backwards too.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from livetalk.models.dit import WanDiT

KERNELS = ("auto", "cudnn", "flash", "default")
_FLASH, _CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
_REST = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH, SDPBackend.OVERRIDEABLE)
ORDERS = {"cudnn": (_CUDNN, _FLASH, *_REST), "flash": (_FLASH, *_REST, _CUDNN), "default": ()}
"""First what is wanted, then what takes its place where it cannot: for a mask, for float32. (): PyTorch's own."""
WIDTHS = (64, 128)
LONG = 2048
HOPPER = (9, 0)


def kernel_for(wanted: str, device: torch.device, precision: str, modules: Iterable[nn.Module], tokens: int) -> str:
    """What `wanted` of KERNELS, train.attention, comes to for networks trained on clips of so many tokens: "auto" is
    cuDNN's kernel where it is known to be quicker. Raises ValueError for cuDNN's where there is no GPU."""
    gpu = device.type == "cuda"
    if wanted == "cudnn" and not gpu:
        raise ValueError(f"attention=cudnn on a {device.type}: cuDNN is for GPUs, use attention=auto")
    if wanted != "auto":
        return wanted
    if not gpu or torch.cuda.get_device_capability(device) < HOPPER or precision != "bf16" or tokens < LONG:
        return "default"
    networks = [found for module in modules for found in module.modules() if isinstance(found, WanDiT)]
    pays = networks and all(network.config.head_dim in WIDTHS for network in networks)
    return "cudnn" if pays else "default"


def attending(kernel: str) -> AbstractContextManager:
    """In it attention tries its kernels in the order of `kernel`, in all threads, so that passes which a backward pass
    repeats take the same one."""
    return sdpa_kernel(list(ORDERS[kernel]), set_priority=True) if ORDERS[kernel] else nullcontext()
