from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend

from livetalk.models.attention import attention
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.training.kernels import KERNELS, LONG, ORDERS, attending, kernel_for
from livetalk.training.trainer import TrainConfig, Trainer
from tests.training import test_graphed
from tests.training.test_trainer import Regression

CARD, CPU = torch.device("cuda"), torch.device("cpu")


def network(head_dim):
    with torch.device("meta"):
        return WanDiT(replace(DiTConfig.nano(), dim=2 * head_dim, heads=2, layers=2))


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_cudnn_is_chosen_where_it_is_known_to_pay(hopper, monkeypatch):
    wide, narrow = network(128), network(32)
    assert kernel_for("auto", CARD, "bf16", [wide, network(64)], LONG) == "cudnn"
    for device, precision, modules, tokens in (
        (CPU, "bf16", [wide], LONG),
        (CARD, "fp32", [wide], LONG),
        (CARD, "bf16", [wide], LONG - 1),
        (CARD, "bf16", [wide, narrow], LONG),
        (CARD, "bf16", [torch.nn.Linear(2, 2)], LONG),
    ):
        assert kernel_for("auto", device, precision, modules, tokens) == "default"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert kernel_for("auto", CARD, "bf16", [wide], LONG) == "default"


def test_nano_stays_as_it_is(hopper):
    with torch.device("meta"):
        assert kernel_for("auto", CARD, "bf16", [WanDiT(DiTConfig.nano())], 21 * 64) == "default"
        assert kernel_for("auto", CARD, "bf16", [WanDiT(DiTConfig.wan_1_3b())], 21 * 1024) == "cudnn"


def test_what_is_said_is_done_or_refused():
    assert kernel_for("flash", CPU, "fp32", [], 0) == "flash" and kernel_for("cudnn", CARD, "fp32", [], 0) == "cudnn"
    with pytest.raises(ValueError, match="attention=cudnn on a cpu: cuDNN is for GPUs"):
        kernel_for("cudnn", CPU, "bf16", [], 0)
    with pytest.raises(ValueError, match="attention=fast: choose auto, cudnn, flash or default"):
        TrainConfig(attention="fast")


def first():
    return torch._C._get_sdp_priority_order()[0]


def test_nothing_is_switched_off_but_the_order_changes_and_comes_back():
    before = torch._C._get_sdp_priority_order()
    for kernel in KERNELS[1:]:
        with attending(kernel):
            assert set(ORDERS[kernel]) <= set(SDPBackend.__members__.values()) - {SDPBackend.ERROR}
            assert not ORDERS[kernel] or len(ORDERS[kernel]) == 5
            assert first() == (int(ORDERS[kernel][0]) if ORDERS[kernel] else before[0])
            q = torch.randn(1, 4, 2, 8, requires_grad=True)
            attention(q, q, q).sum().backward()
        assert torch._C._get_sdp_priority_order() == before


def test_a_step_goes_forwards_and_backwards_in_that_order(tmp_path):
    seen = []

    class Watched(Regression):
        def loss(self, *arguments):
            seen.append(first())
            loss, told = super().loss(*arguments)
            loss.register_hook(lambda gradient: seen.append(first()))
            return loss, told

    run = Trainer(Watched(), TrainConfig(steps=2, batch=8, precision="fp32"), tmp_path)
    for run.kernel in ("default", "cudnn"):
        run.update()
    assert seen == [int(SDPBackend.FLASH_ATTENTION)] * 2 + [int(SDPBackend.CUDNN_ATTENTION)] * 2


def test_objectives_say_how_long_their_clips_are():
    assert test_graphed.ode("cpu").tokens == test_graphed.dmd("cpu").tokens == 6 * 4
    assert test_graphed.buckets("cpu").tokens == 6 * 2 * 3 and test_graphed.teacher("cpu").tokens == 6 * 4


@pytest.mark.gpu
@pytest.mark.parametrize("keys", [300, 1200])
def test_cudnn_computes_what_flash_does(keys):
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(1, count, 4, 128) for count in (600, keys, keys)]
    given = [torch.randn(s, generator=generator, device="cuda", dtype=torch.bfloat16) for s in shapes]
    results = []
    for kernel in ("cudnn", "flash"):
        own = [value.clone().requires_grad_() for value in given]
        with attending(kernel):
            heads_first = [value.transpose(1, 2) for value in own]
            assert torch._fused_sdp_choice(*heads_first) == int(ORDERS[kernel][0])
            out = attention(*own)
            out.float().square().sum().backward()
        results.append([out.detach(), *(value.grad for value in own)])
    for found, wanted in zip(*results, strict=True):
        assert float((found - wanted).float().norm()) <= 0.02 * float(wanted.float().norm())


@pytest.mark.gpu
def test_captured_steps_learn_with_cudnn_what_eager_ones_do(tmp_path, monkeypatch):
    monkeypatch.setattr(test_graphed, "SIZES", replace(test_graphed.SIZES, dim=128))
    given = {"precision": "bf16", "attention": "cudnn", "recompute": True, "steps": 20}
    runs = [test_graphed.trainer("dmd", tmp_path / str(graph), "cuda", graph=graph, **given) for graph in (False, True)]
    for run in runs:
        run.fit()
    assert runs[1].scalars == pytest.approx(runs[0].scalars, rel=0.2, abs=1e-2)
