"""What a stream's frames see of the prompt: keys and values of its words, and one key for all of the padding.

The network attends to padding positions, which all have the same key and the same value. n keys of score s weigh as
much as one of score s + log n, so one does for all of them.
"""

from __future__ import annotations

import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from livetalk.models.dit import WanDiT

LOG2_E = math.log2(math.e)
LEAST_WIDTH = 16
"""Of a head, for the kernel of our own."""


def words(text: Tensor) -> int:
    """Positions of features [1, L, text_dim] up to the last that is not padding, whose features are zero."""
    used = text[0].abs().amax(1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


class TextMemory:
    """Keys and values of one stream's prompt, [layers, L, heads, d], at a fixed address."""

    def __init__(self, dit: WanDiT, dtype: torch.dtype, device: torch.device | str) -> None:
        config = dit.config
        shape = (config.layers, config.text_len, config.heads, config.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.bias = torch.zeros(config.text_len, dtype=torch.promote_types(dtype, torch.float32), device=device)
        self.scaled = torch.zeros_like(self.bias)
        self.total = torch.ones(1, dtype=torch.int32, device=device)
        self.count = 1
        self._dit = dit
        self._kernel = _kernel(config.head_dim, torch.device(device))

    @torch.inference_mode()
    def fill(self, text: Tensor) -> None:
        """From text features [1, L, text_dim]. Waits for the card, once a prompt."""
        length, real = text.shape[1], words(text)
        count = min(real + 1, length)
        embedded = self._dit.text_embedding(text[:, :count])
        for layer, block in enumerate(self._dit.blocks):
            keys, values = block.cross_attn.keys_values(embedded)
            self.keys[layer, :count], self.values[layer, :count] = keys[0], values[0]
        self.bias.fill_(-torch.inf)[:count] = 0
        if real < length:
            self.bias[real] = math.log(length - real)
        self.scaled.copy_(self.bias * LOG2_E)
        self.total.fill_(count)
        # Where the number of keys is part of the call, one that was captured goes over all of them.
        self.count = len(self.bias) if self.bias.is_cuda else count

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """Of queries [S, heads, d]. A captured call goes on to be right when the prompt changes: the kernel reads the
        number of keys on the card."""
        keys, values = self.keys[layer], self.values[layer]
        if self._kernel is not None:
            return self._kernel(q, keys, values, self.scaled, self.total)
        count = self.count
        mask = self.bias[:count].to(q.dtype)[None, None, None]
        split = (q.transpose(0, 1)[None], keys[:count].transpose(0, 1)[None], values[:count].transpose(0, 1)[None])
        return F.scaled_dot_product_attention(*split, attn_mask=mask)[0].transpose(0, 1)


def _kernel(head_dim: int, device: torch.device):
    power = head_dim & (head_dim - 1) == 0
    if device.type != "cuda" or not power or head_dim < LEAST_WIDTH or importlib.util.find_spec("triton") is None:
        return None
    from livetalk.streaming.engine.text_triton import attend

    return attend
