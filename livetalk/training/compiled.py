"""The transformer compiled for training: the parts of its layers once for all layers, or every layer as a whole.

By parts, what lies around the two attentions of a layer is compiled, and the rotation of queries and keys (dit.Parts).
None of it depends on the layer or on who sees whom, so all layers share a form, and all networks of a shape. A form is
one of sizes of tokens, of networks with and without gradient. Attention is no compiler's business.

By blocks, a layer is compiled with its attention, alone, for everyone who may be seen. Of 30 layers that takes
minutes, and where a cache grows there is no end to it; PyTorch gives up at eight forms of a function.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from livetalk.models.dit import Parts, WanDiT

WAYS = ("parts", "blocks")
FEW = 8
"""Layers that are compiled one by one where nothing else is said: nano has as many, and fits what PyTorch allows."""
FORMS = 64
"""How many forms of a part there may be: of student, critic and teacher, with and without gradient, some for each
shape of clips."""


def _settle() -> None:
    """To be called, from the thread that trains, before what learns is compiled. Sums over rows and over columns then
    stay kernels of their own. Joined, as PyTorch has joined them since 2.10, gradients of modulations come in another
    shape where there is one sample a step, or are wrong without a word (its issues 178080 and 193061)."""
    import torch._inductor.config

    torch._inductor.config.triton.mix_order_reduction = False


def compile_whole(module: nn.Module) -> None:
    """Lets calls of a module that learns run compiled, in place, as one. It is compiled at the first."""
    _settle()
    module.compile(dynamic=False)


@cache
def parts(backend: str = "inductor") -> Parts:
    """The compiled parts that all networks share. A part that cannot be compiled in one piece is an error."""
    return Parts(*(torch.compile(act, fullgraph=True, dynamic=False, backend=backend) for act in Parts()))


def compile_network(dit: WanDiT, way: bool | str, cached: bool = False) -> None:
    """Lets passes of a network run compiled, in place. way: train.compile; true is by blocks where layers are FEW, else
    by parts. cached: its passes see a cache, which leaves parts alone. What is compiled is so at the first pass."""
    import torch._dynamo

    if not way:
        return
    if not cached and (way == "blocks" or way is True and len(dit.blocks) <= FEW):
        for block in dit.blocks:
            compile_whole(block)
        return
    _settle()
    # At its own limit PyTorch would refuse the rest of the forms.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
    dit.parts = parts()
