"""A captured step against the same step run eagerly. Needs a CUDA device."""

import pytest
import torch

from livetalk.data.encoded import EncodedClips
from livetalk.models.dit import DiTConfig, WanDiT, initialise
from livetalk.models.text import TextConfig, TextEncoder
from livetalk.training.teacher import FlowMatchingConfig, FlowMatchingObjective, Prompts
from livetalk.training.trainer import TrainConfig, Trainer

SIZES = DiTConfig(
    dim=48, ffn_dim=64, heads=2, layers=4, text_dim=16, text_len=8, freq_dim=16, audio_dim=12, audio_hidden=8
)
TEXT = TextConfig(dim=16, heads=2, head_dim=8, ffn=32, layers=1, vocab=300, length=8, fix_text=False)


def objective(device: str) -> FlowMatchingObjective:
    torch.manual_seed(0)
    dit, text = WanDiT(SIZES), TextEncoder(TEXT)
    initialise(dit, torch.Generator().manual_seed(0))
    clips = EncodedClips(torch.randn(8, 16, 9, 4, 4), torch.randn(8, 33, 12), [""] * 8)
    ids, mask = torch.randint(0, 300, (8, 8)), torch.arange(8).expand(8, -1) < 6
    prompts = Prompts(*(part.to(device) for part in (ids, mask, ids[:1], mask[:1])))
    return FlowMatchingObjective(dit, text, clips.to(device), prompts, FlowMatchingConfig(latents=6))


def train(folder, graph: bool) -> dict[str, torch.Tensor]:
    config = TrainConfig(steps=24, batch=8, warmup=4, ema=0.9, precision="fp32", graph=graph, save_every=100)
    trainer = Trainer(objective("cuda"), config, folder, "cuda")
    trainer.fit()
    assert (trainer.graphed is not None) == graph
    if graph:
        assert len(trainer.graphed.graphs) == 2, "starts and continuations of clips are two kinds of step"
    return dict(trainer.modules.state_dict())


@pytest.mark.gpu
def test_a_captured_step_learns_what_an_eager_one_does(tmp_path):
    eager, captured = train(tmp_path / "eager", False), train(tmp_path / "graph", True)
    for name, value in eager.items():
        assert torch.allclose(value, captured[name], atol=2e-4), name
