"""A captured step against the same step run eagerly, and what a step may not do to be captured."""

from itertools import islice

import pytest
import torch

from livetalk.data.encoded import EncodedClips
from livetalk.data.pairs import OdePairs
from livetalk.models.dit import DiTConfig, WanDiT, initialise
from livetalk.models.kv_cache import CacheConfig
from livetalk.models.small_decoder import SmallDecoder, SmallDecoderConfig
from livetalk.models.text import TextConfig, TextEncoder
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.training.autoencoder import AutoencoderConfig, AutoencoderObjective
from livetalk.training.buckets import Buckets
from livetalk.training.dmd import CRITIC, STUDENT, DmdConfig, DmdObjective
from livetalk.training.ode import OdeConfig, OdeObjective
from livetalk.training.small_decoder import SmallDecoderObjective, SmallDecoderTraining
from livetalk.training.teacher import FlowMatchingConfig, FlowMatchingObjective, Prompts
from livetalk.training.trainer import Learning, TrainConfig, Trainer
from tests.training.host import CARD, CardGenerator, as_if_on_a_card

SIZES = DiTConfig(
    dim=48, ffn_dim=64, heads=2, layers=4, text_dim=16, text_len=8, freq_dim=16, audio_dim=12, audio_hidden=8
)
TEXT = TextConfig(dim=16, heads=2, head_dim=8, ffn=32, layers=1, vocab=300, length=8, fix_text=False)
LEVELS = (1000.0, 937.5, 2500 / 3, 625.0)


def network(seed: int, device: str, trained: bool = True) -> WanDiT:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    dit = WanDiT(SIZES)
    initialise(dit, generator)
    # A silent head says nothing to the other networks of a game.
    torch.nn.init.normal_(dit.head.head.weight, std=0.05, generator=generator)
    return dit.requires_grad_(trained).to(device)


def teacher(device: str) -> FlowMatchingObjective:
    dit, text = network(0, device), TextEncoder(TEXT).to(device)
    clips = EncodedClips(torch.randn(8, 16, 9, 4, 4), torch.randn(8, 33, 12), [""] * 8)
    ids, mask = torch.randint(0, 300, (8, 8)), torch.arange(8).expand(8, -1) < 6
    prompts = Prompts(*(part.to(device) for part in (ids, mask, ids[:1], mask[:1])))
    return FlowMatchingObjective(dit, text, clips.to(device), prompts, FlowMatchingConfig(latents=6))


def autoencoder(device: str) -> AutoencoderObjective:
    torch.manual_seed(0)
    vae = WanVAE(VAEConfig(base_dim=4, res_blocks=1)).to(device)
    clips = torch.randint(0, 256, (4, 17, 16, 16, 3), dtype=torch.uint8).to(device)
    return AutoencoderObjective(vae, clips, AutoencoderConfig(frames=5, long_frames=17))


def small_decoder(device: str) -> SmallDecoderObjective:
    torch.manual_seed(0)
    decoder = SmallDecoder(SmallDecoderConfig(dim=8, mixes=1, widths=(8, 8, 4))).to(device)
    clips = torch.randint(0, 256, (4, 25, 32, 32, 3), dtype=torch.uint8).to(device)
    latents = torch.randn(4, 16, 7, 4, 4).bfloat16().to(device)
    return SmallDecoderObjective(decoder, latents, clips, SmallDecoderTraining(latents=2, history=2, crop=16))


def pairs(device: str, width: int = 4) -> tuple[OdePairs, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = 0.5 * torch.randn(4, 5, 6, 16, 4, width, generator=generator)
    audio = torch.randn(4, 21, SIZES.audio_dim, generator=generator)
    found = OdePairs(states.bfloat16().to(device), audio.bfloat16().to(device), ["a"] * 4, LEVELS)
    return found, torch.randn(5, 8, 16, generator=generator).to(device)


def ode(device: str) -> OdeObjective:
    found, text = pairs(device)
    return OdeObjective(network(0, device), found, text[:4], 3, OdeConfig())


def buckets(device: str) -> Buckets:
    student = network(0, device)
    found = [pairs(device, width) for width in (4, 6)]
    parts = [OdeObjective(student, own, text[:4], 3, OdeConfig()) for own, text in found]
    return Buckets(parts, [4, 4], seed=0)


def dmd(device: str, positions: str = "relative", **settings) -> DmdObjective:
    found, text = pairs(device)
    student, critic, judge = (network(seed, device, seed < 2) for seed in range(3))
    cache = CacheConfig(6, 3, 3, positions)
    config = DmdConfig(**{"every": 2, "latents": 9, **settings})
    return DmdObjective(student, critic, judge, found, text[:4], text[4:], LEVELS[::2], cache, config)


OBJECTIVES = {
    "teacher": teacher,
    "autoencoder": autoencoder,
    "small_decoder": small_decoder,
    "ode": ode,
    "buckets": buckets,
    "dmd": dmd,
}


def trainer(name: str, folder, device: str, **settings) -> Trainer:
    told = OBJECTIVES[name](device)
    changes = {"steps": 24, "batch": 4, "warmup": 4, "ema": 0.9, "precision": "fp32", "save_every": 100, **settings}
    config = TrainConfig(**changes)
    players = {STUDENT: config, CRITIC: Learning(lr=5e-4, warmup=0)} if name == "dmd" else {}
    return Trainer(told, config, folder, device, players)


def alike(one: Trainer, other: Trainer) -> None:
    """Weights that differ by what the order of sums makes of 40 steps, not by a step's length."""
    there = other.modules.state_dict()
    for key, value in one.modules.state_dict().items():
        assert torch.allclose(value, there[key], atol=5e-4), key


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_that_is_captured_asks_nothing_of_the_host(name, tmp_path):
    run = trainer(name, tmp_path, "meta")
    kinds = {run.objective.kind(step): step for step in range(60)}
    for run.step in islice(kinds.values(), 4):
        with as_if_on_a_card() as asked:
            run._learn(CardGenerator())
        assert not asked


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_positions_and_windows_of_a_rollout_ask_nothing_either(positions):
    told = dmd(str(CARD), positions, windowed=positions == "relative", latents=15)
    with as_if_on_a_card() as asked:
        told.loss(1, 4, CardGenerator(), STUDENT)[0].backward()
    assert not asked


@pytest.mark.parametrize("name", ["teacher", "ode", "dmd"])
def test_only_the_first_step_of_a_kind_compiles(name, tmp_path):
    """The second is captured, and nothing can be compiled meanwhile."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    run = trainer(name, tmp_path, "cpu", precision="bf16")
    told = run.objective
    networks = {"teacher": ["dit"], "ode": ["student"], "dmd": ["critic", "teacher"]}[name]
    torch._dynamo.reset()
    for block in [block for network in networks for block in getattr(told, network).blocks]:
        block.compile(backend=backend, dynamic=False)
    seen = set()
    for run.step in range(12):
        before = len(compiled)
        run._learn(torch.Generator().manual_seed(run.step))
        assert told.kind(run.step) not in seen or len(compiled) == before
        seen.add(told.kind(run.step))
    # All variants fit, or PyTorch would go on without compiling.
    assert 0 < len(compiled) < torch._dynamo.config.recompile_limit


def test_what_asks_the_host_is_seen():
    with as_if_on_a_card() as asked:
        torch.tensor([1.0], device=CARD)
        torch.ones(2).to(CARD)
        torch.randn(2, device=CARD)
        torch.randn(2, device=CARD, generator=CardGenerator())
    assert len(asked) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["teacher", "ode", "buckets", "dmd"])
def test_a_captured_step_learns_what_an_eager_one_does(name, tmp_path):
    runs = [trainer(name, tmp_path / str(graph), "cuda", graph=graph, steps=40) for graph in (False, True)]
    for run in runs:
        run.fit()
    alike(*runs)
    assert runs[1].scalars == pytest.approx(runs[0].scalars, rel=1e-2, abs=1e-4)
    kinds = [runs[1].objective.kind(step) for step in range(40)]
    assert set(runs[1].graphed.graphs) == {kind for kind in kinds if kinds.count(kind) > 1}


@pytest.mark.gpu
@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_steps_that_are_captured_train(name, tmp_path):
    run = trainer(name, tmp_path, "cuda", graph=True, precision="bf16", log_every=1)
    start = {key: value.clone() for key, value in run.modules.state_dict().items()}
    run.fit()
    for key, value in run.modules.state_dict().items():
        assert value.isfinite().all() and (value.numel() < 2 or not torch.equal(value, start[key])), key


@pytest.mark.gpu
def test_an_eager_run_goes_on_captured_and_a_captured_one_eagerly(tmp_path):
    whole = trainer("dmd", tmp_path / "whole", "cuda")
    whole.fit()
    for until, graph in ((8, False), (16, True), (24, False)):
        part = trainer("dmd", tmp_path / "parts", "cuda", until=until, graph=graph)
        part.fit()
    alike(whole, part)


@pytest.mark.gpu
def test_a_run_that_starts_again_from_its_checkpoint_captures_anew(tmp_path):
    run = trainer("dmd", tmp_path / "run", "cuda", graph=True, until=16)
    run.fit()
    # fit() reads the checkpoint again, and with it an optimiser's state in other memory.
    run.config = trainer("dmd", tmp_path / "run", "cuda").config
    run.fit()
    whole = trainer("dmd", tmp_path / "whole", "cuda")
    whole.fit()
    alike(whole, run)
