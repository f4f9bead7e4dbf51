import math

import pytest
import torch

from livetalk import flow


def test_four_steps_are_the_exact_levels():
    assert torch.allclose(
        1000 * flow.shifted_sigmas(4), torch.tensor([1000, 937.5, 2500 / 3, 625], dtype=torch.float64)
    )


@pytest.mark.parametrize("multiple", [12, 48])
def test_more_steps_visit_the_student_s_levels(multiple):
    assert torch.allclose(flow.shifted_sigmas(multiple)[:: multiple // 4], flow.shifted_sigmas(4))


def test_shift_is_closed_form_and_monotone():
    sigma = torch.linspace(0, 1, 101, dtype=torch.float64)
    shifted = flow.shift_sigma(sigma)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted.diff() > 0).all()
    odds = shifted[1:-1] / (1 - shifted[1:-1])
    assert torch.allclose(odds, 5 * sigma[1:-1] / (1 - sigma[1:-1]))


def test_training_weights_average_one():
    weights = flow.training_weights()
    assert math.isclose(weights.mean().item(), 1) and weights.min() == 0


@pytest.mark.parametrize("shape", [(), (2,), (2, 5)])
def test_flow_and_clean_prediction_are_inverse(shape):
    x0, noise = torch.randn(2, 2, 3, 5, 4, 4, dtype=torch.float64)
    sigma = torch.rand(shape, dtype=torch.float64) * 0.9 + 0.05
    xt = flow.add_noise(x0, noise, sigma)
    v = flow.flow_target(x0, noise)
    assert torch.allclose(flow.x0_from_flow(xt, v, sigma), x0)
    assert torch.allclose(flow.flow_from_x0(xt, x0, sigma), v)


def test_guidance_has_one_meaning():
    null, text, full = torch.randn(3, 4, dtype=torch.float64)
    assert torch.allclose(flow.guide(null, text, full, 1, 1), full)
    assert torch.allclose(flow.guide(null, text, full, 0, 0), null)
    assert torch.allclose(flow.guide(null, text, full, 3, 3), null + 3 * (full - null))
    assert torch.allclose(flow.guide(null, text, full, 3, 0), null + 3 * (text - null))


def latents(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_only_scales_motion_is_found_place_by_place():
    clean = latents(0, 2, 3, 5, 4, 4)
    still = clean.mean(2, keepdim=True)
    gain = torch.linspace(-1, 2, 16).reshape(4, 4).double()
    assert torch.allclose(flow.scaling_part(gain * (clean - still), clean), gain * (clean - still), rtol=1e-4)
    assert flow.scaling_part(still.expand_as(clean), clean).abs().max() < 1e-12, "what stays the same moves nothing"
    rest = (change := latents(1, 2, 3, 5, 4, 4)) - flow.scaling_part(change, clean)
    assert (rest * (clean - still)).sum((1, 2)).abs().max() < 1e-3 < change.abs().max()
    assert torch.equal(flow.scaling_part(change, torch.ones_like(clean)), torch.zeros_like(clean)), "no motion, no gain"


@pytest.mark.parametrize("parallel", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scales", [(1.5, 1.5), (1.25, 3.0), (1.5, 1.0), (1.0, 2.0)])
def test_guidance_may_keep_a_part_of_what_sound_does_to_the_size_of_motion(scales, parallel):
    null, text, full, clean = (latents(seed, 1, 2, 6, 3, 3) for seed in range(4))
    guidance = flow.Guidance(*scales, parallel=parallel)
    told = [side for side, needed in zip((null, text, full), guidance.needed, strict=True) if needed]
    assert len(told) == guidance.passes
    moved = guidance.combined(told, lambda _: clean, 2) - flow.guide(null, text, full, *scales)
    assert moved[:, :, :2].abs().max() < 1e-12, "what is given is not touched"
    change = (scales[1] - 1) * (full - text)[:, :, 2:]
    wanted = (parallel - 1) * flow.scaling_part(change, clean[:, :, 2:])
    assert torch.allclose(moved[:, :, 2:], wanted) and (parallel == 1 or scales[1] == 1 or wanted.abs().max() > 0.01)


@pytest.mark.parametrize(
    "guidance, said, passes",
    [
        (flow.PLAIN, "guidance 1", 1),
        (flow.Guidance(1.5, 1.5), "guidance 1.5", 2),
        (flow.Guidance(1.5, 1.5, 0.3), "guidance 1.5, 0.3 of its parallel part", 3),
        (flow.Guidance(1, 2, skip=flow.SkipLayer(0.6, 4)), "guidance 1 on text and 2 on sound, layer 4 skipped 0.6", 3),
        (flow.Guidance(0, 0, skip=flow.SkipLayer(0.6, 4)), "guidance 0, layer 4 skipped 0.6", 3),
    ],
)
def test_guidance_says_what_it_is_and_counts_its_passes(guidance, said, passes):
    assert (str(guidance), guidance.passes) == (said, passes)
