import pytest
import torch

from livetalk import flow
from livetalk.conditions import Conditions, pin
from livetalk.flow import Guidance
from livetalk.models.attention import FullAttention
from OmniAvatar.sampling import GuidedFlow, covered, sample, sample_clip, windows
from tests.models.test_dit import clip, tiny

LEVELS = [800.0, 500.0, 300.0]


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1, 1), (3, 3), (4, 6), (0, 0), (2, 0)])
def test_guided_flow_is_the_formula_and_skips_what_counts_nothing(scales):
    dit = tiny()
    x, conditions = clip()
    empty = torch.zeros_like(conditions.text)
    sides = conditions.null(empty), conditions.without_audio(), conditions
    parts = [dit(x, 800.0, side, FullAttention()) for side in sides]
    guided = GuidedFlow(dit, conditions, empty, 6, Guidance(*scales), [800.0])
    assert torch.allclose(guided(x, 800.0), flow.guide(*parts, *scales))
    assert len(guided.sides) == {(1, 1): 1, (3, 3): 2, (4, 6): 3, (0, 0): 1, (2, 0): 2}[scales]


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1, 1), (4, 6), (2, 0)])
def test_a_layer_left_out_drives_the_flow_away_at_its_noise_levels_alone(scales):
    dit, skip = tiny(), flow.SkipLayer(1.5, layer=1, levels=(0.4, 0.75))
    x, conditions = clip()
    empty = torch.zeros_like(conditions.text)
    plain, guided = (
        GuidedFlow(dit, conditions, empty, 6, each, LEVELS)
        for each in (Guidance(*scales), Guidance(*scales, skip=skip))
    )
    assert torch.equal(plain(x, 800.0), guided(x, 800.0)) and torch.equal(plain(x, 300.0), guided(x, 300.0))
    away = dit(x, 500.0, conditions, FullAttention()) - dit(x, 500.0, conditions, FullAttention(), skip=1)
    assert torch.allclose(guided(x, 500.0), plain(x, 500.0) + 1.5 * away, atol=1e-5) and away.abs().max() > 1e-3


def test_a_layer_that_is_not_there_is_refused():
    _, conditions = clip()
    with pytest.raises(ValueError, match="skip.layer=9: the network has layers 0 to 3"):
        GuidedFlow(tiny(), conditions, conditions.text, 6, Guidance(skip=flow.SkipLayer(1.0, layer=9)), LEVELS)


@torch.no_grad()
def test_a_network_without_a_layer_is_that_with_a_layer_that_does_nothing():
    dit, (x, conditions) = tiny(), clip()
    found = dit(x, 500.0, conditions, FullAttention(), skip=2)
    dit.blocks[2].forward = lambda tokens, *others: tokens
    assert torch.equal(found, dit(x, 500.0, conditions, FullAttention()))


class Straight(torch.nn.Module):
    """A network whose flow leads to a known clip: Euler steps must end there exactly."""

    def __init__(self, target):
        super().__init__()
        self.target = target

    def prepare(self, conditions, frames, levels):
        return conditions

    def forward(self, x, level, prepared, attend):
        return (x - self.target) / (level / 1000)


@pytest.mark.parametrize("order", [1, 2])
def test_sampling_follows_a_straight_flow_to_its_end(order):
    x, conditions = clip()
    target = pin(torch.randn_like(x), conditions.reference)
    network, visited = Straight(target), []
    out = sample(
        network, conditions, conditions.text, x, steps=8, order=order, visit=lambda step, _: visited.append(step)
    )
    assert torch.allclose(out, target) and visited == list(range(9))


class Gaussian(torch.nn.Module):
    """The exact flow of Gaussian data that deviates by `deviation`, the same in every place."""

    def __init__(self, deviation):
        super().__init__()
        self.variance = deviation**2

    def prepare(self, conditions, frames, levels):
        return conditions

    def forward(self, x, level, prepared, attend):
        sigma = level / 1000
        return x * (sigma - (1 - sigma) * self.variance) / ((1 - sigma) ** 2 * self.variance + sigma**2)


@pytest.mark.parametrize("deviation, euler", [(0.3, 0.75), (1.0, 0.90), (2.0, 0.94)])
def test_steps_of_second_order_keep_the_variance_that_euler_steps_lose(deviation, euler):
    x, conditions = clip()
    network = Gaussian(deviation)
    kept = {
        order: float((sample(network, conditions, conditions.text, x, order=order)[:, :, 1:] / x[:, :, 1:]).mean()) ** 2
        for order in (1, 2)
    }
    assert kept[1] / deviation**2 == pytest.approx(euler, abs=0.005)
    assert kept[2] / deviation**2 == pytest.approx(1, abs=0.04)


def test_the_first_step_of_second_order_is_eulers():
    dit = tiny()
    x, conditions = clip()
    empty = torch.zeros_like(conditions.text)
    seen = {1: [], 2: []}
    for order, states in seen.items():
        sample(
            dit, conditions, empty, x, steps=4, order=order, visit=lambda _, state, states=states: states.append(state)
        )
    same = [torch.equal(one, two) for one, two in zip(*seen.values(), strict=True)]
    assert same == [True, True, False, False, False]


def test_windows_cover_any_length_and_keep_a_prefix():
    assert windows(1, 21, 4) == [0] and windows(21, 21, 4) == [0] and windows(22, 21, 4) == [0, 17]
    for latents in range(1, 100):
        starts = windows(latents, 21, 4)
        assert latents <= starts[-1] + 21 == covered(latents, 21, 4) < latents + 17 + 21 * (latents < 21)
    with pytest.raises(ValueError):
        windows(30, 4, 4)


@torch.no_grad()
def test_long_clips_continue_from_their_prefix():
    dit = tiny()
    _, conditions = clip(9)
    generator = torch.Generator().manual_seed(0)
    seen = []
    pieces = list(
        sample_clip(
            dit,
            conditions,
            torch.zeros_like(conditions.text),
            lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64),
            (4, 6),
            window=6,
            prefix=3,
            steps=2,
            visit=lambda step, x: seen.append(x),
        )
    )
    assert [piece.shape[2] for piece in pieces] == [6, 3]
    assert torch.equal(pieces[0][:, :, :1], conditions.reference)
    assert torch.equal(seen[3][:, :, :3], pieces[0][:, :, -3:]), "the second window starts from the end of the first"


@torch.no_grad()
def test_the_network_is_told_which_latents_are_given():
    assert Conditions(torch.zeros(1, 1, 1), prefix=3).mask(5).tolist() == [0, 0, 0, 1, 1]
