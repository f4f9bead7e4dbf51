"""Runs on clips of several shapes: each step is the very step of its bucket, and everybody takes the same."""

from types import SimpleNamespace

import pytest
import torch

from livetalk.data.encoded import EncodedClips, several
from livetalk.data.pairs import OdePairs
from livetalk.models.dit import WanDiT
from livetalk.models.text import TextEncoder
from livetalk.training.buckets import Buckets, draw_bucket, mixed, room_to_compile
from livetalk.training.dmd import DmdConfig, DmdObjective
from livetalk.training.ode import OdeConfig, OdeObjective
from livetalk.training.sequence import require_rows
from livetalk.training.teacher import FlowMatchingObjective, Prompts
from livetalk.training.trainer import Learning, TrainConfig, Trainer
from tests.models.test_dit import TINY
from tests.training import test_dmd, test_teacher

SIDES, CLIPS = ((4, 4), (4, 6)), (3, 2)
CONFIG = TrainConfig(steps=6, batch=2, lr=1e-3, warmup=1, ema=0.5, precision="fp32", log_every=1, save_every=100)
KINDS = ("teacher", "ode", "dmd")


def pairs_of(bucket: int) -> OdePairs:
    generator = torch.Generator().manual_seed(bucket)
    states = 0.5 * torch.randn(CLIPS[bucket], 5, 6, 16, *SIDES[bucket], generator=generator)
    audio = torch.randn(CLIPS[bucket], 21, TINY.audio_dim, generator=generator)
    return OdePairs(states.bfloat16(), audio.bfloat16(), ["a"] * CLIPS[bucket], test_dmd.LEVELS)


def parts_of(kind: str) -> list:
    """The objectives of two buckets, of the same networks."""
    torch.manual_seed(0)
    if kind == "teacher":
        dit, text = WanDiT(test_teacher.DIT), TextEncoder(test_teacher.TEXT, test_teacher.tokenizer)
        empty, found = text.tokens([""]), []
        for count, sides in zip(CLIPS, SIDES, strict=True):
            latents, audio = torch.randn(count, 16, 9, *sides), torch.randn(count, 33, test_teacher.CHANNELS)
            prompts = [str(n) for n in range(count)]
            told = Prompts(*text.tokens(prompts), *empty)
            clips = EncodedClips(latents, audio, prompts)
            found.append(FlowMatchingObjective(dit, text, clips, told, test_teacher.CONFIG))
        return found
    networks = [WanDiT(TINY) for _ in range(3)]
    for network in networks:
        torch.nn.init.normal_(network.head.head.weight, std=0.05)
    told, null = torch.randn(max(CLIPS), 5, 10), torch.randn(1, 5, 10)
    if kind == "ode":
        return [OdeObjective(networks[0], pairs_of(b), told[: CLIPS[b]], 3, OdeConfig()) for b in range(2)]
    networks[2].requires_grad_(False)
    rest = (null, test_dmd.LEVELS, test_dmd.CACHE, DmdConfig(every=2))
    return [DmdObjective(*networks, pairs_of(bucket), told[: CLIPS[bucket]], *rest) for bucket in range(2)]


def train(objective, kind, folder, **settings) -> Trainer:
    config = TrainConfig(**{**vars(CONFIG), **settings})
    players = {"student": config, "critic": Learning(lr=1e-3, warmup=0)} if kind == "dmd" else {}
    trainer = Trainer(objective, config, folder, players=players)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_mixing_is_training_on_one_bucket_after_another_to_the_bit(kind, tmp_path):
    """One run on both, against runs on one of them each that go on from each other's checkpoints."""
    run = train(mixed(parts_of(kind), CLIPS, seed=0), kind, tmp_path / "mixed")
    drawn = [draw_bucket(0, step, CLIPS) for step in range(CONFIG.steps)]
    assert set(drawn) == {0, 1}
    for step, bucket in enumerate(drawn):
        turn = train(parts_of(kind)[bucket], kind, tmp_path / "turns", until=step + 1)
    assert turn.step == run.step == CONFIG.steps
    for name, value in run.weights().items():
        assert torch.equal(value, turn.weights()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_stops_and_goes_on_is_the_same_to_the_bit(kind, tmp_path):
    whole = train(mixed(parts_of(kind), CLIPS, seed=0), kind, tmp_path / "whole")
    train(mixed(parts_of(kind), CLIPS, seed=0), kind, tmp_path / "parts", until=3)
    parts = train(mixed(parts_of(kind), CLIPS, seed=0), kind, tmp_path / "parts")
    for name, value in whole.modules.state_dict().items():
        assert torch.equal(value, parts.modules.state_dict()[name]), name
    assert whole.scalars == parts.scalars


@pytest.mark.parametrize("kind", KINDS)
def test_each_bucket_is_captured_for_itself(kind):
    made = mixed(parts_of(kind), CLIPS, seed=0)
    kinds = {}
    for step in range(40):
        kinds.setdefault(made.kind(step), set()).add(made.bucket(step))
    assert all(len(buckets) == 1 for buckets in kinds.values()) and len(kinds) > 1
    if kind == "dmd":
        assert all(made.turns(step) == made.parts[0].turns(step) for step in range(40))


def test_buckets_are_drawn_by_seed_and_step_in_proportion_to_their_clips():
    drawn = [draw_bucket(0, step, (100, 300)) for step in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.75, abs=0.03)
    assert drawn[:50] == [draw_bucket(0, step, (100, 300)) for step in range(50)]
    assert drawn[:50] != [draw_bucket(1, step, (100, 300)) for step in range(50)]
    # Whether the student learns at a step says nothing of its bucket.
    assert sum(drawn[::5]) / 400 == pytest.approx(0.75, abs=0.07)


def test_one_bucket_is_no_mixture():
    [only, _] = parts_of("ode")
    assert mixed([only], [3], seed=0) is only
    assert isinstance(mixed(parts_of("ode"), CLIPS, seed=0), Buckets)


def test_rows_that_do_not_divide_are_refused_before_the_first_step():
    group = SimpleNamespace(size=lambda: 4)
    require_rows(16, group)
    require_rows(6, None)
    with pytest.raises(ValueError, match="3 rows of tokens do not divide among sequence=4"):
        require_rows(6, group)


def test_there_is_room_for_the_compiled_layers_of_all():
    # Its own way to patch: after monkeypatch's the setting would be gone.
    with torch._dynamo.config.patch(recompile_limit=8):
        room_to_compile(1)
        assert torch._dynamo.config.recompile_limit == 8
        room_to_compile(3)
        assert torch._dynamo.config.recompile_limit == 24


def test_folders_are_named_with_commas():
    assert [str(path) for path in several("a/b, c")] == ["a/b", "c"]
    for wrong in ("a,,b", "a,a", "a,", ","):
        with pytest.raises(ValueError, match="name each once"):
            several(wrong)
