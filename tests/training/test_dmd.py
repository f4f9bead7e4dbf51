import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from livetalk import config, flow
from livetalk.cli import run_command
from livetalk.commands.inference import infer
from livetalk.commands.train_dmd import train_dmd
from livetalk.conditions import Conditions
from livetalk.data.pairs import OdePairs
from livetalk.models.attention import FullAttention, attention
from livetalk.models.dit import WanDiT
from livetalk.models.kv_cache import CacheConfig
from livetalk.models.rope import rope_table, rotate
from livetalk.rollout import gaussian, new_cache, rollout
from livetalk.training.dmd import (
    CRITIC,
    STUDENT,
    DmdConfig,
    DmdObjective,
    Iteration,
    Scored,
    by_noise,
    draw_iteration,
    longer,
    score_timesteps,
)
from livetalk.training.health import HealthConfig, HopelessError
from livetalk.training.trainer import Learning, TrainConfig, Trainer
from OmniAvatar.sampling import GuidedFlow
from tests.models.test_dit import TINY, cache_for, clip, tiny

CACHE = CacheConfig(9, 3, 3)
LEVELS = (1000.0, 937.5, 2500 / 3, 625.0)
DEBUG = Path(__file__).parents[2] / "configs" / "train_dmd_debug.yaml"
FLAT = {"betas": (0.0, 0.999), "warmup": 0, "final_lr": 1.0}


def some_pairs(count=4, frames=6):
    generator = torch.Generator().manual_seed(0)
    states = 0.5 * torch.randn(count, 5, frames, 16, 4, 4, generator=generator)
    audio = torch.randn(count, 4 * frames - 3, TINY.audio_dim, generator=generator)
    return OdePairs(states.bfloat16(), audio.bfloat16(), ["a"] * count, LEVELS)


def objective(seed=0, frames=6, cache=CACHE, **settings):
    torch.manual_seed(0)
    student, critic, teacher = WanDiT(TINY), WanDiT(TINY), WanDiT(TINY).requires_grad_(False)
    text, null = torch.randn(4, 5, 10), torch.randn(1, 5, 10)
    found = some_pairs(frames=frames)
    return DmdObjective(student, critic, teacher, found, text, null, LEVELS, cache, DmdConfig(**settings), seed)


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


# The graded rollout


class Recorder:
    """A cache without storage: past keys, un-rotated, are concatenated; blocks in `visible` are seen."""

    def __init__(self, past, ranks):
        self.past, self.ranks, self.written = past, ranks, {}

    def open(self, grid, head_dim, device):
        table = rope_table(torch.tensor(self.ranks), grid.rows, grid.columns, head_dim)
        own = table[-grid.tokens :]

        def view(layer, q, k, v):
            self.written[layer] = (k.detach(), v.detach())
            keys = torch.cat([*(block[layer][0] for block in self.past), k], 1)
            values = torch.cat([*(block[layer][1] for block in self.past), v], 1)
            return attention(rotate(q, own), rotate(keys, table), values)

        return view


def unrolled(dit, conditions, blocks, timesteps, noise, shape, visible):
    """The plain reference: block after block, the past from explicit lists; gradient through each last pass."""
    results, written = [], []
    for index in range(blocks):
        part = conditions.block(3 * index, 3)
        past = [written[seen] for seen in visible[index]]
        attend = Recorder(past, list(range(3 * len(past) + 3)))
        x = noise(shape)
        for step, level in enumerate(timesteps):
            if index == 0:
                x = torch.cat([conditions.reference, x[:, :, 1:]], 2)
            flowed = dit(x, level, part, attend)
            x0 = x - level / 1000 * flowed
            if step + 1 < len(timesteps):
                sigma = timesteps[step + 1] / 1000
                x = ((1 - sigma) * x0 + sigma * noise(shape)).detach()
        if index == 0:
            x0 = torch.cat([conditions.reference, x0[:, :, 1:]], 2)
        dit(x0.detach(), 0.0, part, attend)
        written.append(attend.written)
        results.append(x0)
    return torch.cat(results, 2)


@pytest.mark.parametrize("leave, turned", [(0, False), (0, True), (2, True)])
@pytest.mark.parametrize(
    "window, anchors, visible",
    [(12, 0, [[], [0], [0, 1], [0, 1, 2]]), (9, 3, [[], [0], [0, 1], [0, 2]])],
    ids=["whole", "anchors and ring"],
)
def test_the_gradient_is_that_of_a_plain_unrolled_reference(leave, turned, window, anchors, visible):
    dit = tiny()
    _, conditions = clip(12)
    shape = (1, 16, 3, 4, 6)
    weight = torch.randn(1, 16, 12, 4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    steps = LEVELS[: leave + 1]

    def noise():
        return gaussian(torch.Generator().manual_seed(7), torch.float64, "cpu")

    wanted = unrolled(dit, conditions, 4, steps, noise(), shape, visible)
    (wanted * weight).sum().backward()
    truth = gradients(dit)
    dit.zero_grad()
    dit.recompute = True
    cache = cache_for(dit, window, anchors, turned=turned)
    found = torch.cat(list(rollout(dit, conditions, 12, steps, cache, noise(), range(12))), 2)
    (found * weight).sum().backward()
    # Sigmas of float64 tensors and rotations in float32 tables are the only differences.
    assert torch.allclose(found, wanted, atol=1e-6)
    ours = gradients(dit)
    assert ours.keys() == truth.keys()
    for name, value in truth.items():
        assert torch.allclose(ours[name], value, rtol=1e-5, atol=1e-6 * float(value.abs().max())), name


def test_rotated_keys_that_are_kept_in_bfloat16_change_no_bit_under_autocast():
    dit = tiny().float()
    _, conditions = clip(15)
    conditions = conditions.map(lambda value: value.float())

    def run(**kept):
        dit.zero_grad()
        cache = new_cache(dit, CACHE, rows=2, columns=3, **kept)
        noise = gaussian(torch.Generator().manual_seed(7), torch.float32, "cpu")
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.cat(list(rollout(dit, conditions, 15, LEVELS[:2], cache, noise, range(15))), 2)
        found.square().sum().backward()
        return {"": found.detach(), **gradients(dit)}

    plain, kept = run(), run(dtype=torch.bfloat16, turned=True)
    assert plain.keys() == kept.keys() and all(torch.equal(value, kept[name]) for name, value in plain.items())


def test_the_rollout_of_training_is_that_of_inference_and_leaves_the_same_cache():
    dit = tiny()
    _, conditions = clip(12)

    def run(graded):
        cache = cache_for(dit, 9, 3)
        noise = gaussian(torch.Generator().manual_seed(7), torch.float64, "cpu")
        return torch.cat(list(rollout(dit, conditions, 12, LEVELS, cache, noise, graded)), 2), cache

    with torch.inference_mode():
        plain, left = run(range(0))
    graded, cache = run(range(12))
    assert graded.requires_grad and not run(range(0))[0].requires_grad
    assert torch.allclose(graded, plain, atol=1e-6)
    assert not cache.keys.requires_grad
    # Anchors, the last block, which no pass may have written, and the one before.
    first, _, third = zip(cache.keys.chunk(3, dim=2), left.keys.chunk(3, dim=2), strict=True)
    assert all(torch.allclose(*both, atol=1e-6) for both in (first, third))


def test_no_gradient_crosses_blocks_or_reaches_the_reference():
    dit = tiny()
    _, conditions = clip(6)
    audio = conditions.audio.clone().requires_grad_()
    told = replace(conditions, audio=audio)
    noise = gaussian(torch.Generator().manual_seed(7), torch.float64, "cpu")
    first, second = rollout(dit, told, 6, LEVELS[:2], cache_for(dit, 6), noise, range(6))
    second.sum().backward()
    assert (audio.grad[:, :3] == 0).all() and (audio.grad[:, 3:] != 0).any()
    (gradient,) = torch.autograd.grad(first[:, :, 0].sum(), audio)
    assert (gradient == 0).all()


def test_under_autocast_no_weight_is_cut_off():
    told = objective()
    conditions = told.pairs.conditions(torch.arange(2), told.text[:2])

    def reached(precision):
        told.student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            scored = told.generate(conditions, Iteration(exit=2, start=0), torch.Generator().manual_seed(0))
            loss = scored.latents.float().square().mean()
        loss.backward()
        return set(gradients(told.student))

    assert reached("bf16") == reached("fp32") == {name for name, _ in told.student.named_parameters()}


# What is drawn


def test_the_exit_step_is_drawn_evenly_from_seed_and_step_alone():
    drawn = [draw_iteration(3, step, 4, range(0, 7, 3)) for step in range(2000)]
    assert drawn == [draw_iteration(3, step, 4, range(0, 7, 3)) for step in range(2000)]
    exits = torch.tensor([one.exit for one in drawn]).bincount(minlength=4)
    starts = torch.tensor([one.start for one in drawn]).bincount(minlength=7)
    assert (exits - 500).abs().max() < 80
    assert (starts[[0, 3, 6]] - 667).abs().max() < 90 and starts.sum() == starts[[0, 3, 6]].sum()
    assert drawn[:20] != [draw_iteration(4, step, 4, range(0, 7, 3)) for step in range(20)]


def test_score_timesteps_are_shifted_integers_between_20_and_980():
    t = score_timesteps(4000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.float64 and t.min() == 20 and t.max() == 980
    inner = t[(t > 20) & (t < 980)] / 1000
    drawn = 1000 * inner / (5 - 4 * inner)
    assert torch.allclose(drawn, drawn.round(), atol=1e-6) and abs(t.median() - 833.3) < 12


def test_the_sound_of_a_longer_rollout_begins_again():
    audio = torch.arange(4.0)[None, :, None]
    told = longer(Conditions(torch.zeros(1, 1, 1), None, audio), 9)
    assert told.audio.flatten().tolist() == [0, 1, 2, 3, 1, 2, 3, 1, 2]


# The two losses


def scored_of(told, prefix=1, batch=2):
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(batch, 16, 6, 4, 4, generator=generator)
    conditions = told.pairs.conditions(torch.arange(batch), told.text[:batch])
    given = latents[:, :, :prefix].clone()
    free = latents.requires_grad_()
    return free, Scored(torch.cat([given, free[:, :, prefix:]], 2), given, replace(conditions, prefix=prefix))


def test_guidance_is_that_of_flow_and_passes_in_one_batch_equal_passes_alone():
    told = objective(text_scale=3.0, audio_scale=2.0)
    x, scored = scored_of(told)
    t, conditions = torch.tensor([700.0, 200.0], dtype=torch.float64), scored.conditions
    kinds = [conditions.null(told.null), conditions.without_audio(), conditions]
    x = x.detach()
    flows = [told.teacher(x, t, kind, FullAttention()) for kind in kinds]
    wanted = flow.x0_from_flow(x, flow.guide(*flows, 3.0, 2.0), t / 1000)
    assert torch.allclose(told.guided(x, t, conditions).float(), wanted, atol=1e-4)
    told.config = replace(told.config, text_scale=3.0, audio_scale=3.0)
    equal = flow.x0_from_flow(x, flow.guide(*flows, 3.0, 3.0), t / 1000)
    assert torch.allclose(told.guided(x, t, conditions).float(), equal, atol=1e-4), "two passes are enough"
    told.config = replace(told.config, text_scale=1.0, audio_scale=1.0)
    plain = flow.x0_from_flow(x, flows[2], t / 1000)
    assert torch.allclose(told.guided(x, t, conditions).float(), plain, atol=1e-4)


@pytest.mark.parametrize("prefix", [1, 3])
@pytest.mark.parametrize("skip", [flow.SkipLayer(), flow.SkipLayer(0.6, layer=1)])
def test_the_size_of_motion_is_taken_from_the_guided_teacher_as_in_sampling(skip, prefix):
    told = objective(text_scale=1.5, audio_scale=3.0, parallel=0.25, skip=skip)
    x, scored = scored_of(told)
    conditions, null = replace(scored.conditions, prefix=prefix), told.null.expand(2, -1, -1)
    sampled = GuidedFlow(told.teacher, conditions, null, x.shape[2], told.config.guidance, [700.0])
    with torch.no_grad():
        wanted = flow.x0_from_flow(x, sampled(x, 700.0), flow.sigma_of(700.0))
    t = torch.full((2,), 700.0, dtype=torch.float64)
    assert torch.allclose(told.guided(x.detach(), t, conditions).float(), wanted.float(), atol=1e-4)
    told.config = replace(told.config, parallel=1.0)
    assert not torch.allclose(told.guided(x.detach(), t, conditions).float(), wanted.float(), atol=1e-3)


@pytest.mark.parametrize("scales", [(3.0, 2.0), (3.0, 3.0), (1.0, 1.0)])
def test_a_teacher_without_a_layer_pushes_at_its_noise_levels_alone(scales):
    told = objective(text_scale=scales[0], audio_scale=scales[1])
    x, scored = scored_of(told)
    t, conditions = torch.tensor([700.0, 200.0], dtype=torch.float64), scored.conditions
    plain = told.guided(x.detach(), t, conditions)
    skip = flow.SkipLayer(2.0, layer=1, levels=(0.5, 0.8))
    told.config = replace(told.config, skip=skip)
    with torch.no_grad():
        full, without = (told.teacher(x, t, conditions, FullAttention(), layer) for layer in (None, 1))
    moved = told.guided(x.detach(), t, conditions) - plain
    assert (moved[1] == 0).all()
    assert torch.allclose(moved[0].float(), (-0.7 * 2.0 * (full - without))[0], atol=1e-4)


def test_the_student_is_pushed_along_the_difference_of_critic_and_teacher():
    told = objective()
    free, scored = scored_of(told)
    generator = torch.Generator().manual_seed(1)
    loss, _ = told.student_loss(scored, generator)
    loss.backward()
    assert loss.dtype == torch.float64 and (free.grad[:, :, 0] == 0).all() and (free.grad[:, :, 1:] != 0).any()
    assert not gradients(told.critic)

    again = torch.Generator().manual_seed(1)
    t = score_timesteps(2, again)
    noise = torch.randn(free.shape, generator=again)
    sigma = (t / 1000)[:, None, None, None, None]
    noisy = ((1 - sigma) * free.detach() + sigma * noise).float()
    noisy[:, :, 0] = scored.given[:, :, 0]
    fake = noisy - sigma * told.critic(noisy, t, scored.conditions, FullAttention())
    real = told.guided(noisy, t, scored.conditions)
    scale = (free - real).abs().mean((1, 2, 3, 4), keepdim=True)
    wanted = (fake - real) / scale / free.numel()
    assert torch.allclose(free.grad[:, :, 1:], wanted[:, :, 1:].float(), rtol=1e-3, atol=1e-9)


def test_a_student_that_matches_the_teacher_is_left_alone():
    told = objective(text_scale=1.0, audio_scale=1.0)
    told.critic.load_state_dict(told.teacher.state_dict())
    free, scored = scored_of(told)
    told.student_loss(scored, torch.Generator().manual_seed(1))[0].backward()
    assert free.grad.abs().max() < 1e-9


@pytest.mark.parametrize("prefix", [1, 4])
def test_the_critic_is_not_scored_on_frames_that_are_given(prefix):
    told = objective()
    _, scored = scored_of(told, prefix)
    seen = []

    def wrong(noisy, t, conditions, attend):
        seen.append((noisy, conditions.mask(6)))
        truth = (noisy.double() - scored.latents.double()) / (t / 1000)[:, None, None, None, None]
        error = torch.zeros_like(truth)
        error[:, :, :prefix] = 9.0
        error[:, :, -1] = 1.0
        return truth + error

    told.critic = wrong
    loss, _ = told.critic_loss(scored, torch.Generator().manual_seed(1))
    assert loss.item() == pytest.approx(1 / (6 - prefix), rel=1e-3)
    noisy, mask = seen[0]
    assert torch.equal(noisy[:, :, :prefix], scored.given) and mask.tolist() == [0.0] * prefix + [1.0] * (6 - prefix)
    assert not torch.equal(noisy[:, :, prefix], scored.latents[:, :, prefix])


def test_losses_are_told_by_quarters_of_the_noise():
    t = torch.tensor([900.0, 100.0, 500.0, 700.0, 30.0, 800.0, 950.0, 600.0])
    found = by_noise("loss", t.clone().requires_grad_(), t)
    assert list(found) == [f"loss at noise {i}/4" for i in (1, 2, 3, 4)]
    assert [value.item() for value in found.values()] == [65, 550, 750, 925]
    assert not any(value.requires_grad for value in found.values())
    assert list(by_noise("loss", t[:2], t[:2])) == ["loss at noise 1/2", "loss at noise 2/2"]
    told = objective()
    loss, found = told.loss(0, 8, torch.Generator().manual_seed(0), CRITIC)
    assert torch.stack(list(found.values())).mean() == pytest.approx(loss.item())
    _, found = told.loss(3, 8, torch.Generator().manual_seed(0), STUDENT)
    assert found.pop("exit") == told.shared(3).exit
    size = found.pop("gradient")
    assert torch.stack(list(found.values())).mean() == pytest.approx(size.item(), rel=1e-4)


def test_a_window_of_a_longer_rollout_is_scored_as_a_clip_that_goes_on():
    told = objective(latents=12)
    conditions = longer(told.pairs.conditions(torch.arange(2), told.text[:2]), 12)
    whole = [
        told.generate(conditions, Iteration(exit=1, start=start), torch.Generator().manual_seed(0)) for start in (0, 6)
    ]
    first, second = whole
    assert first.latents.shape == second.latents.shape == (2, 16, 6, 4, 4)
    assert torch.equal(first.given, conditions.reference) and first.conditions.prefix == 1
    assert torch.equal(second.given, second.latents[:, :, :4]) and second.conditions.prefix == 4
    assert second.conditions.first == 0 and torch.equal(second.conditions.audio, conditions.audio[:, 6:])
    (gradient,) = torch.autograd.grad(second.latents.sum(), told.student.head.head.bias, retain_graph=True)
    # Latent frames 4 and 5 of the window carry gradient: each value is x - sigma * (... + bias).
    assert torch.allclose(gradient, torch.full_like(gradient, -0.9375 * 2 * 2 * 4), rtol=1e-4)


def test_without_a_window_all_that_came_before_is_seen():
    told = objective(windowed=False, latents=12, cache=CacheConfig(6, 3, 3))
    assert told.cache_config == CacheConfig(12, 0, 3) and objective().cache_config == CACHE


def test_rollouts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="rollouts of 3 latent frames"):
        objective(latents=3)
    with pytest.raises(ValueError, match="whole blocks"):
        objective(frames=7)
    with pytest.raises(ValueError, match="prefix 6"):
        objective(latents=9, prefix=6)
    with pytest.raises(ValueError, match="every"):
        DmdConfig(every=0)


# The game


def trainer(folder, critic_lr=1e-3, **settings):
    changes = {"steps": 20, "batch": 2, "lr": 1e-3, "precision": "fp32", "ema": 0.9, "log_every": 1, **FLAT, **settings}
    settings = TrainConfig(**changes)
    players = {STUDENT: settings, CRITIC: Learning(lr=critic_lr, **FLAT)}
    return Trainer(objective(critic_first=5, every=5), settings, folder, players=players)


def test_the_critic_learns_at_every_step_and_the_student_at_every_fifth():
    told = objective(critic_first=7, every=5)
    turns = [told.turns(step) for step in range(20)]
    assert [step for step in range(20) if STUDENT in turns[step]] == [9, 14, 19]
    assert all(turn[-1] == CRITIC for turn in turns)


def test_the_kind_of_a_step_says_all_that_the_host_decides():
    told = objective(latents=12, critic_first=4, every=2)
    kinds = [told.kind(step) for step in range(400)]
    wanted = {
        (turns, exit, start) for turns in ((STUDENT, CRITIC), (CRITIC,)) for exit in range(4) for start in (0, 3, 6)
    }
    assert {(turns, shared.exit, shared.start) for turns, shared in kinds} == wanted
    assert all(kinds[step] == (told.turns(step), told.shared(step)) for step in range(400))


def test_each_batch_size_has_its_own_keys_and_values_for_ever():
    told, used = objective(), []
    for batch in (2, 3, 2):
        told.loss(0, batch, torch.Generator().manual_seed(0), CRITIC)
        used.append(told.caches[batch, torch.float32].keys.data_ptr())
    assert used[0] == used[2] != used[1]


def test_twenty_steps_equal_ten_and_ten_bit_for_bit(tmp_path):
    whole, half = trainer(tmp_path / "whole"), trainer(tmp_path / "parts", until=10)
    whole.fit()
    half.fit()
    parts = trainer(tmp_path / "parts")
    parts.fit()
    assert whole.step == parts.step == 20
    for one, other in ((whole.weights(), parts.weights()), (whole.modules.state_dict(), parts.modules.state_dict())):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    for name, player in whole.players.items():
        one, other = player.optimiser.state_dict()["state"], parts.players[name].optimiser.state_dict()["state"]
        assert all(torch.equal(one[i][key], other[i][key]) for i in one for key in one[i])


def test_each_player_has_its_own_optimiser_and_average(tmp_path):
    run = trainer(tmp_path, critic_lr=0.0, until=9, steps=10)
    start = {name: value.clone() for name, value in run.modules.state_dict().items()}
    run.fit()
    now = run.modules.state_dict()
    assert all(torch.equal(now[name], value) for name, value in start.items()), "nobody has moved yet"
    run.config = replace(run.config, until=10)
    run.fit()
    now = run.modules.state_dict()
    moved = {name.split(".")[0] for name, value in start.items() if not torch.equal(now[name], value)}
    assert moved == {STUDENT}
    name = "student.head.head.bias"
    decay = min(0.9, 11 / 20)
    assert torch.allclose(run.weights()[name], decay * start[name] + (1 - decay) * now[name])
    assert set(run.players[CRITIC].optimiser.param_groups[0]["params"]) == set(run.objective.critic.parameters())


def test_the_student_moves_to_what_the_teacher_wants(tmp_path):
    """A teacher that knows one picture only; the student has 20 updates, which it sees through the critic alone."""
    told = objective(critic_first=0, every=5)
    wanted = torch.randn(1, 16, 1, 1, 1, generator=torch.Generator().manual_seed(9))
    told.guided = lambda noisy, t, conditions: wanted.expand_as(noisy).double()
    settings = TrainConfig(steps=100, batch=4, lr=2e-3, precision="fp32", **FLAT)
    run = Trainer(told, settings, tmp_path, players={STUDENT: settings, CRITIC: Learning(lr=5e-3, **FLAT)})

    @torch.no_grad()
    def distance():
        conditions = told.pairs.conditions(torch.arange(4), told.text)
        made = told.generate(conditions, Iteration(exit=3, start=0), torch.Generator().manual_seed(1)).latents
        return (made[:, :, 1:] - wanted).abs().mean((0, 1, 3, 4))

    before = distance()
    run.fit()
    assert (distance() < 0.7 * before).all()


# The command


def test_the_debug_command_keeps_the_ode_student_goes_on_and_leaves_a_student_that_speaks(
    tiny_family, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_family, tmp_path / "family")
    before = next(Path("family/student").glob("*.safetensors")).read_bytes()
    run = replace(config.load(DEBUG), family="family", name="a")
    train_dmd(replace(run, train=replace(run.train, until=2)))
    assert json.loads(Path("family/student/card.json").read_text())["steps"] == 2
    with pytest.raises(HopelessError, match="black frames.*last good checkpoint, runs/a/dmd/step-0000002, is kept"):
        train_dmd(replace(run, health=HealthConfig(bad_frames=-2.0, patience=1)))
    assert [path.name for path in Path("runs/a/dmd").glob("step-*")] == ["step-0000002"]
    assert json.loads(Path("family/student/card.json").read_text())["steps"] == 2
    capsys.readouterr()
    with open("runs/a/dmd/metrics.jsonl", "a") as file:
        file.write('{"step": 3, "critic lo\n')
    train_dmd(run)
    *_, where, use = capsys.readouterr().out.splitlines()
    assert where == "checkpoint: family/student"
    report = json.loads(Path("runs/a/dmd/report.json").read_text())
    assert [row["step"] for row in report["history"]] == [2, 4] and {"sharpness", "motion"} < set(report["history"][0])
    assert json.loads(Path("family/student/card.json").read_text())["steps"] == report["best step"]
    assert report["best step"] == report["exported step"] and report["start"]["motion"] > 0
    assert report["teacher"]["sharpness"] > 0 and "A/V correlation" in report["best"]
    assert set(report["student grad_norm by exit timestep"]) <= {"1000", "937.5", "833.333", "625"}
    assert next(Path("family/student_ode").glob("*.safetensors")).read_bytes() == before
    assert len(list(Path("runs/a/dmd/sheets").glob("*.png"))) == len(list(Path("runs/a/dmd/videos").glob("*.mp4"))) == 2
    lines = Path("runs/a/dmd/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    learned = {row["step"] for row in rows if "student loss" in row and "student exit" in row}
    assert learned == {2, 4} and all("critic loss" in row or "motion" in row for row in rows)

    script, *settings = use.removeprefix("use it: bash ").split()
    assert script == "scripts/inference.sh"
    assert run_command("inference", "", infer, [*settings, "duration=0.5", "output=a.mp4"]) == 0
    assert Path("a.mp4").stat().st_size > 0
    shutil.rmtree("family/student")
    shutil.copytree("family/student_ode", "family/student")
    train_dmd(run)
    assert Path("family/student/card.json").is_file(), "a finished run exports again what was replaced"
    train_dmd(run, dry_run=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("total memory: ")


def test_a_missing_ode_student_is_named_with_its_remedy(tiny_family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_family, tmp_path / "family")
    shutil.rmtree(tmp_path / "family" / "student")
    run = replace(config.load(DEBUG), family="family", name="a", ode_config="")
    with pytest.raises(ValueError, match="scripts/train_ode.sh"):
        train_dmd(run)
    assert not Path("runs/a/pairs").exists(), "said before pairs are made"
