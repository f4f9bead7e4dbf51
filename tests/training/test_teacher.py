"""The teacher's objective on clips whose latents and audio say their own clip and time."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from livetalk.conditions import group_audio
from livetalk.data.encoded import EncodedClips
from livetalk.geometry import frame_span
from livetalk.models.attention import BlockCausal, FullAttention
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.text import TextConfig, TextEncoder
from livetalk.training.losses import NoisedPlaces
from livetalk.training.teacher import FlowMatchingConfig, FlowMatchingObjective, Prompts
from livetalk.training.trainer import TrainConfig, Trainer
from OmniAvatar.sampling import sample_clip

CLIPS, LATENTS, FRAMES, CHANNELS, LENGTH = 3, 9, 33, 2, 6
CONFIG = FlowMatchingConfig(drop_audio=0.0, drop_text=0.0, continued=0.4, prefix=2, moving=0.0, latents=5)
TEXT = TextConfig(dim=8, heads=2, head_dim=4, ffn=8, layers=1, vocab=20, length=LENGTH, fix_text=False)
DIT = DiTConfig(
    dim=24, ffn_dim=48, heads=2, layers=4, text_dim=8, text_len=LENGTH, freq_dim=16, audio_dim=CHANNELS, audio_hidden=8
)
EMPTY = [1, 0, 0, 0, 0, 0]


def tokenizer(texts, length):
    """Prompt n is the token n + 2 and the end mark 1; the empty one is the end mark alone."""
    rows = [[int(text) + 2, 1, 0, 0, 0, 0] if text else EMPTY for text in texts]
    ids = torch.tensor(rows)
    return ids, ids > 0


def encoded():
    """Latent f of clip n is 20 n + f everywhere; audio of frame t is (t, n)."""
    latents = 20 * torch.arange(CLIPS)[:, None] + torch.arange(LATENTS)
    latents = latents[:, None, :, None, None].expand(-1, 16, -1, 4, 4).bfloat16()
    times = torch.arange(FRAMES).expand(CLIPS, -1)
    audio = torch.stack([times, torch.arange(CLIPS)[:, None].expand(-1, FRAMES)], dim=-1).bfloat16()
    return EncodedClips(latents, audio, [str(n) for n in range(CLIPS)])


def objective(config=CONFIG, clips=None, dit=None, **changes):
    torch.manual_seed(0)
    text = TextEncoder(TEXT, tokenizer)
    clips = encoded() if clips is None else clips
    prompts = Prompts(*text.tokens(clips.prompts), *text.tokens([""]))
    return FlowMatchingObjective(WanDiT(DIT) if dit is None else dit, text, clips, prompts, replace(config, **changes))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kinds(share, steps):
    made = objective(continued=share)
    return [made.sample(step, 1, generator())[1].prefix for step in range(steps)]


def clip_and_start(x0):
    first = x0[:, 0, 0, 0, 0].long()
    return first // 20, first % 20


@pytest.mark.parametrize("share", [0.0, 0.35, 0.4, 1.0])
def test_the_share_of_continued_windows_is_exact(share):
    assert kinds(share, 100).count(CONFIG.prefix) == pytest.approx(100 * share, abs=1e-6)


def test_a_causal_teacher_sees_no_later_blocks():
    torch.manual_seed(0)
    made = objective(causal=2)
    assert made.attend == BlockCausal(2) and objective().attend == FullAttention()
    x0, conditions, _ = made.sample(0, 2, generator())
    x0 = torch.randn(x0.shape)
    later = x0.clone()
    later[:, :, 4:] += 1
    with torch.no_grad():
        for block in made.dit.blocks:
            block.modulation.add_(0.5)
        torch.nn.init.normal_(made.dit.head.head.weight)
        one, other = (made.dit(x, torch.full((2,), 500.0), conditions, made.attend) for x in (x0, later))
    assert torch.equal(one[:, :, :4], other[:, :, :4]) and not torch.allclose(one[:, :, 4:], other[:, :, 4:])


def test_clips_no_longer_than_a_window_are_never_continued():
    made = objective(latents=LATENTS, continued=1.0)
    assert made.sample(0, 2, generator())[1].prefix == 1


def test_windows_are_consecutive_latents_and_continuations_begin_later():
    made, starts = objective(), set()
    for step in range(20):
        x0, conditions, _ = made.sample(step, 8, generator(step))
        clip, start = clip_and_start(x0)
        assert x0.shape == (8, 16, CONFIG.latents, 4, 4)
        want = 20 * clip[:, None] + start[:, None] + torch.arange(CONFIG.latents)
        assert torch.equal(x0, want[:, None, :, None, None].expand_as(x0).float())
        assert (start == 0).all() if conditions.prefix == 1 else (start > 0).all()
        starts |= set(start.tolist())
    assert starts == set(range(LATENTS - CONFIG.latents + 1)), "every start a clip has room for is used"


@pytest.mark.parametrize("step", [0, 2])
def test_a_window_hears_the_sound_of_its_own_latents_and_sees_the_clips_first_frame(step):
    x0, conditions, _ = objective().sample(step, 8, generator())
    clip, start = clip_and_start(x0)
    assert conditions.first == 0 and conditions.prefix == (1 if step == 0 else CONFIG.prefix)
    assert torch.equal(conditions.reference[:, 0, 0, 0, 0].long(), 20 * clip)
    heard = conditions.audio.unflatten(-1, (4, CHANNELS))
    for row in range(8):
        assert (heard[row, ..., 1] == clip[row]).all()
        for index in range(CONFIG.latents):
            low, high = frame_span(start[row].item() + index)
            assert heard[row, index, :, 0].tolist() == (list(range(low, high)) if high - low == 4 else [0] * 4)


@torch.no_grad()
def test_prompts_are_those_of_the_clips_and_dropped_ones_the_empty_prompt():
    made = objective()
    x0, conditions, _ = made.sample(0, 8, generator())
    clip, _ = clip_and_start(x0)
    assert torch.allclose(conditions.text, made.text.encode([str(n) for n in clip.tolist()]), atol=1e-6)
    dropped = objective(drop_text=1.0).sample(0, 8, generator())[1]
    assert torch.allclose(dropped.text, made.text.encode([""]).expand(8, -1, -1), atol=1e-6)


@torch.no_grad()
def test_sound_and_prompt_are_dropped_independently_in_their_shares():
    made = objective(drop_audio=0.25, drop_text=0.5)
    conditions = made.sample(0, 2000, generator())[1]
    silent = (conditions.audio[:, 1:] == 0).flatten(1).all(1)
    untold = (conditions.text - made.text.encode([""])).abs().flatten(1).amax(1) < 1e-5
    assert silent.float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert untold.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert (silent & untold).float().mean().item() == pytest.approx(0.125, abs=0.03)


class Listener(nn.Module):
    """Stands for the transformer in the sampler and in training: keeps what it is told, knows the clip's flow."""

    config = DIT

    def __init__(self, target=0.0):
        super().__init__()
        self.target, self.calls = target, []

    def prepare(self, conditions, frames, levels):
        return conditions

    def forward(self, x, t, conditions, attend):
        self.calls.append((x, t, conditions))
        sigma = torch.as_tensor(t).reshape(-1, 1, 1, 1, 1) / 1000
        return ((x - self.target) / sigma).to(x.dtype)


def test_the_sampler_gives_a_window_what_training_gave_it():
    """A clip sampled in windows of 5 that keep 2 continues at latent 3: the training window that starts there."""
    data, listener = encoded(), Listener()
    made = objective()
    wanted = {0: (0, None), 3: (2, None)}
    for start, (step, _) in wanted.items():
        for seed in range(100):
            x0, conditions, _ = made.sample(step, 1, generator(seed))
            if clip_and_start(x0) == (torch.tensor([1]), torch.tensor([start])):
                wanted[start] = (x0, conditions)
                break
    whole = replace(wanted[0][1], audio=group_audio(data.audio[1:2, :29].float()))
    list(
        sample_clip(listener, whole, whole.text, lambda shape: torch.randn(shape), (4, 4), window=5, prefix=2, steps=1)
    )
    assert len(listener.calls) == 2
    for (_, _, seen), start in zip(listener.calls, (0, 3), strict=True):
        x0, told = wanted[start]
        for name in ("text", "reference", "audio"):
            assert torch.allclose(getattr(seen, name), getattr(told, name), atol=1e-6), name
        assert torch.equal(seen.mask(5), told.mask(5)) and seen.first == told.first
        assert seen.mask(5).tolist() == ([0, 1, 1, 1, 1] if start == 0 else [0, 0, 1, 1, 1])


@pytest.mark.parametrize("step", [0, 2])
def test_the_known_prefix_is_clean_and_the_rest_noised_to_the_level_that_is_told(step):
    """On clips that are 3 everywhere the flow is known at every level: its loss is zero, prefix or not."""
    clips = replace(encoded(), latents=torch.full((CLIPS, 16, LATENTS, 4, 4), 3.0))
    listener = Listener(target=3.0)
    loss, _ = objective(clips=clips, dit=listener).loss(step, 64, generator())
    assert loss.item() == pytest.approx(0, abs=1e-6)
    (x, t, conditions), prefix = listener.calls[0], 1 if step == 0 else CONFIG.prefix
    assert conditions.prefix == prefix and (x[:, :, :prefix] == 3).all()
    sigma = t / 1000
    spread = (x[:, :, prefix:] - 3 * (1 - sigma).reshape(-1, 1, 1, 1, 1).float()).flatten(1).std(1)
    assert torch.allclose(spread.double(), sigma, rtol=0.15)
    assert sigma.min() > 0 and sigma.max() < 1 and sigma.median() > 0.6, "levels are shifted towards noise"


def test_the_prefix_is_left_out_of_the_loss():
    class Wild(Listener):
        def forward(self, x, t, conditions, attend):
            flow = super().forward(x, t, conditions, attend)
            flow[:, :, : conditions.prefix] = 1e4
            return flow

    clips = replace(encoded(), latents=torch.full((CLIPS, 16, LATENTS, 4, 4), 3.0))
    for step in (0, 2):
        loss, _ = objective(clips=clips, dit=Wild(target=3.0)).loss(step, 8, generator())
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_reaches_every_weight_of_transformer_and_text_encoder():
    made = objective()
    made.loss(2, 4, generator())[0].backward()
    for name, module in made.modules().items():
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{name}.{key}"
    assert made.text.encoder.embed_tokens.weight.grad.abs().sum() > 0
    assert made.dit.audio_proj.proj.weight.grad.abs().sum() > 0


def test_autocast_computes_the_same_to_its_precision():
    made = objective()
    plain = made.loss(0, 8, generator())[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = made.loss(0, 8, generator())[0]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=0.01)


def test_it_learns_a_toy_set_by_heart(tmp_path):
    """Clips of two colours: in pure noise, only the conditions tell which one to make."""
    latents = torch.tensor([-1.0, 1.0])[:, None, None, None, None].expand(2, 16, 6, 4, 4).contiguous()
    audio = torch.tensor([-1.0, 1.0])[:, None, None].expand(2, 21, CHANNELS)
    made = objective(clips=EncodedClips(latents, audio, ["0", "1"]), continued=0.2, latents=3)
    settings = TrainConfig(steps=100, batch=12, lr=5e-3, warmup=10, precision="fp32", log_every=50, save_every=1000)

    def error():
        with torch.no_grad():
            return sum(made.loss(step, 32, generator(1000 + step))[0].item() for step in range(5)) / 5

    before = error()
    Trainer(made, settings, tmp_path).fit()
    assert error() < 0.5 * before
    with torch.no_grad():
        x0, conditions, _ = made.sample(0, 16, generator())
        noise = torch.cat([x0[:, :, :1], torch.randn(x0[:, :, 1:].shape, generator=generator())], dim=2)
        made_x0 = noise - made.dit(noise, torch.full((16,), 1000.0), conditions, FullAttention())
    colour = made_x0[:, :, 1:].mean((1, 2, 3, 4))
    assert torch.equal(colour.sign(), x0[:, 0, 1, 0, 0]) and colour.abs().min() > 0.5


@pytest.mark.parametrize("changes", [{"latents": LATENTS + 1}, {"prefix": 5}, {"prefix": 0}])
def test_windows_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match="no longer than a clip|longer than its prefix|prefix=0: give 1"):
        objective(**changes)


def test_where_lids_are_shut_goes_with_the_window_and_counts():
    frames = torch.arange(CLIPS)[:, None] + torch.arange(LATENTS)
    clips = replace(encoded(), shut=frames % 3 == 0)
    places = NoisedPlaces(lids=(0.0, 0.0, 0.5, 1.0), shut_more=5.0)
    made = objective(clips=clips, places=places, continued=1.0)
    x0, _, shut = made.sample(0, 8, generator())
    clip, latent = x0[:, 0, :, 0, 0].long() // 20, x0[:, 0, :, 0, 0].long() % 20
    assert torch.equal(shut, (clip + latent) % 3 == 0) and 0 < shut.float().mean() < 1
    plain = objective(clips=clips, continued=1.0)
    assert not torch.equal(made.loss(0, 4, generator())[0], plain.loss(0, 4, generator())[0])
    with pytest.raises(ValueError, match="flow.places.shut_more=5: these clips do not say when lids are shut"):
        objective(places=places)


@pytest.mark.parametrize("levels, counts", [((0.0, 1.0), True), ((0.0, 1e-6), False)])
def test_lids_count_more_at_levels_that_were_drawn(levels, counts):
    def loss(more):
        places = NoisedPlaces(lids=(0.0, 0.0, 0.5, 1.0), lids_more=more, lids_at=levels)
        return objective(places=places).loss(0, 4, generator())[0]

    assert torch.equal(loss(5.0), loss(0.0)) is not counts
