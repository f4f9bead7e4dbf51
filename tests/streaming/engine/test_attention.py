"""The choice of the kernel of self-attention."""

import pytest
import torch

from livetalk.streaming.engine.attention import SPLITS, _fastest, has_fa3, sdpa, split_kernels

CPU = torch.device("cpu")


def refuses(q, k, v):
    raise RuntimeError("not built for this card")


@pytest.mark.parametrize("order", [1, -1])
def test_a_kernel_that_refuses_is_not_chosen(order):
    found = dict([("other", refuses), ("sdpa", sdpa)][::order])
    assert _fastest(found, CPU, (4, 8, 2, 16), torch.float32) == ("sdpa", sdpa)


def test_if_all_refuse_the_remedy_is_told():
    with pytest.raises(ValueError, match=r"other and more cannot do 2 heads of 16 in float32 .* engine.attention=sdpa"):
        _fastest({"other": refuses, "more": refuses}, CPU, (4, 8, 2, 16), torch.float32)


def test_parts_are_named():
    assert [*split_kernels("fa3")][:3] == ["fa3", "fa3 in 2 parts", "fa3 in 3 parts"]


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() and has_fa3()), reason="needs FlashAttention 3 and a Hopper GPU")
@pytest.mark.parametrize("splits", SPLITS)
def test_parts_are_the_whole(splits):
    q, k, v = (torch.randn(n, 3, 128, device="cuda", dtype=torch.bfloat16) for n in (300, 1000, 1000))
    wanted = sdpa(q.double(), k.double(), v.double())
    found = [*split_kernels("fa3").values()][SPLITS.index(splits)](q, k, v)
    assert (found.double() - wanted).norm() / wanted.norm() < 5e-3
