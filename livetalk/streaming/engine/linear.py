"""Linear layers of the fast pass: as they are, or in fp8 with a scale a row."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0


class Linear(NamedTuple):
    """y = x weight' + bias. scale [out], in float32, where weight [out, in] is in e4m3."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None


def linear_of(layer: nn.Linear) -> Linear:
    return Linear(layer.weight.data, layer.bias.data)


def as_is(layer: Linear) -> Linear:
    return layer


def fused(layers: list[nn.Linear]) -> Linear:
    """Several layers on the same input as one. Their parameters become parts of the joined ones: no second copy."""
    weight = torch.cat([layer.weight.data for layer in layers])
    bias = torch.cat([layer.bias.data for layer in layers])
    start = 0
    for layer in layers:
        stop = start + layer.out_features
        layer.weight.data, layer.bias.data = weight[start:stop], bias[start:stop]
        start = stop
    return Linear(weight, bias)


def quantised(layer: Linear) -> Linear:
    """The same with weights in e4m3, the largest of each row at the end of the range."""
    scale = layer.weight.float().abs().amax(1).clamp_min(1e-12) / LARGEST
    weight = (layer.weight.float() / scale[:, None]).to(E4M3)
    return Linear(weight, layer.bias, scale)


def halved(layer: Linear) -> Linear:
    """The same with weights in bfloat16; activations are rounded where they come in, results are as wide as before."""
    return Linear(layer.weight.bfloat16(), layer.bias.bfloat16())


def can_fp8(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of rows in e4m3 give `dtype` there; a CPU goes through the motions in float32."""
    if device.type != "cuda":
        return True
    return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 9)


def narrow(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x [n, in] in e4m3 and their scales [n, 1] float32."""
    wide = x.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min(1e-12) / LARGEST
    return (wide / scale).to(E4M3), scale


def linear(x: Tensor, layer: Linear) -> Tensor:
    """[n, in] -> [n, out] in x's type."""
    if layer.scale is None:
        return F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias).to(x.dtype)
    rows, scale = narrow(x)
    if x.is_cuda:
        return torch._scaled_mm(
            rows,
            layer.weight.t(),
            scale_a=scale,
            scale_b=layer.scale[None],
            bias=layer.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
    product = rows.float() @ layer.weight.float().t()
    return (product * scale * layer.scale + layer.bias.float()).to(x.dtype)


def linear_gelu(x: Tensor, layer: Linear) -> Tensor:
    """gelu_tanh of it; in half precision on a GPU inside the product's own kernel, before rounding."""
    if (
        x.is_cuda
        and layer.scale is None
        and x.dtype == layer.weight.dtype
        and x.dtype in (torch.bfloat16, torch.float16)
    ):
        return torch._addmm_activation(layer.bias, x, layer.weight.t(), use_gelu=True)
    return F.gelu(linear(x, layer), approximate="tanh")


PRODUCTS = 20
GAIN = 1.3
"""How much quicker bfloat16 must be: on a CPU without instructions for it, it is many times slower."""


def halves_pay(rows: int, width: int, wide: int) -> bool:
    """Whether this CPU multiplies [rows, width] by [width, wide] much quicker in bfloat16 than in float32."""
    times = []
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.randn(rows, width).to(dtype), torch.randn(wide, width).to(dtype)
        runs = []
        for _ in range(PRODUCTS):
            start = time.perf_counter()
            F.linear(x, w)
            runs.append(time.perf_counter() - start)
        times.append(min(runs))
    log.info("a product in float32 %.0f us, in bfloat16 %.0f us", *(1e6 * seconds for seconds in times))
    return times[0] > GAIN * times[1]
