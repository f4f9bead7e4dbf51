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
