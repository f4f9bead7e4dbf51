import pytest
import torch

from livetalk import flow
from livetalk.training.losses import (
    NoisedPlaces,
    Places,
    critic_flow_loss,
    critic_input,
    dmd_gradient,
    dmd_loss,
    flow_loss,
    moving_weight,
)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_moving_weight_has_mean_one_and_is_one_without_strength():
    clip = draw(2, 16, 5, 4, 6)
    weight = moving_weight(clip, 0.7)
    assert weight.shape == (2, 1, 1, 4, 6)
    assert torch.allclose(weight.mean((1, 2, 3, 4)), torch.ones(2))
    assert torch.equal(moving_weight(clip, 0.0), torch.ones(2, 1, 1, 4, 6))


def test_moving_weight_follows_its_formula():
    """One of four places moves: change 4 times the mean there, so 1 + 4 s against 1, divided by their mean 1 + s."""
    clip = torch.full((1, 3, 2, 2, 2), 0.5)
    clip[:, :, 1, 0, 0] = 3.0
    weight = moving_weight(clip, 0.5)[0, 0, 0]
    assert torch.allclose(weight, torch.tensor([[3.0, 1.0], [1.0, 1.0]]) / 1.5)
    capped = moving_weight(clip, 0.5, most=2.0)[0, 0, 0]
    assert torch.allclose(capped, torch.tensor([[2.0, 1.0], [1.0, 1.0]]) / 1.25)


def test_a_clip_that_does_not_move_is_weighed_evenly():
    assert torch.equal(moving_weight(torch.ones(1, 2, 3, 2, 2), 1.0), torch.ones(1, 1, 1, 2, 2))


def test_places_count_by_how_much_of_them_a_box_covers():
    """The upper left quarter whole, half of each place of the last column below: 1 + 3, 1 + 0.5, else 1."""
    places = Places(lids=(0.0, 0.0, 0.5, 0.5), lips=(0.5, 0.875, 1.0, 1.0), lids_more=3.0, lips_more=1.0)
    wanted = torch.ones(4, 4)
    wanted[:2, :2], wanted[2:, 3] = 4.0, 1.5
    assert torch.allclose(places.weight(4, 4, torch.device("cpu")), wanted / wanted.mean())
    assert torch.equal(Places().weight(5, 7, torch.device("cpu")), torch.ones(5, 7))


def test_an_error_counts_more_in_a_place_that_does():
    x0, noise = draw(1, 16, 3, 4, 4), draw(1, 16, 3, 4, 4, seed=1)
    places = Places(lids=(0.0, 0.0, 0.5, 0.5), lids_more=3.0)
    losses = []
    for row in (0, 3):
        wrong = flow.flow_target(x0, noise).clone()
        wrong[..., row, 0] += 1
        losses.append(flow_loss(wrong, x0, noise, place_weight=places.weight(4, 4, torch.device("cpu"))).item())
    assert losses[0] == pytest.approx(4 * losses[1], rel=1e-5)
    assert losses[1] == pytest.approx(1 / 16 / 1.75, rel=1e-5)


def test_lids_count_more_at_their_noise_levels_alone():
    places = NoisedPlaces(
        lids=(0.0, 0.0, 0.5, 0.5), lips=(0.5, 0.5, 1.0, 1.0), lids_more=3.0, lips_more=1.0, lids_at=(0.4, 0.8)
    )
    weight = places.weight_at(4, 4, torch.tensor([0.3, 0.4, 0.8, 0.9]))
    assert weight.shape == (4, 1, 1, 4, 4)
    there = places.weight(4, 4, torch.device("cpu"))
    elsewhere = Places(lips=places.lips, lips_more=1.0).weight(4, 4, torch.device("cpu"))
    for level, wanted in zip(weight[:, 0, 0], (elsewhere, there, there, elsewhere), strict=True):
        assert torch.allclose(level, wanted)


def test_shut_lids_count_more_in_their_latent_frames_at_their_noise_levels():
    places = NoisedPlaces(lids=(0.0, 0.0, 0.5, 0.5), lids_more=1.0, shut_more=6.0, lids_at=(0.0, 0.6))
    shut = torch.tensor([[False, True, False], [False, False, False], [False, True, False]])
    weight = places.weight_at(4, 4, torch.tensor([0.3, 0.3, 0.9]), shut)
    assert weight.shape == (3, 1, 3, 4, 4) and torch.allclose(weight.mean((1, 2, 3, 4)), torch.ones(3))
    # A quarter of the picture is lids: in all 12 quarters of the first clip 9 + 2 + 8 + 2 are counted.
    assert torch.allclose(weight[0, 0, :, 0, 0] * 21 / 12, torch.tensor([2.0, 8.0, 2.0]))
    assert torch.allclose(weight[0, 0, :, 3, 3] * 21 / 12, torch.ones(3))
    assert torch.allclose(weight[1, 0, :, 0, 0], torch.full((3,), 8 / 5)) and torch.allclose(weight[2], torch.ones(4))
    x0, noise = draw(3, 16, 3, 4, 4), draw(3, 16, 3, 4, 4, seed=1)
    wrong = flow.flow_target(x0, noise).clone()
    wrong[0, 0, 1, 0, 0] += 1
    found = flow_loss(wrong, x0, noise, place_weight=weight)
    assert found.item() == pytest.approx(8 * 12 / 21 / x0.numel(), rel=1e-4)


@pytest.mark.parametrize("levels", [(0.5, 0.5), (0.8, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_noise_levels_that_are_none_are_refused(levels):
    with pytest.raises(ValueError, match="lids_at=.*the lower noise level first"):
        NoisedPlaces(lids_at=levels)


@pytest.mark.parametrize("box", [(0.5, 0.0, 0.5, 1.0), (0.0, -0.1, 1.0, 1.0), (0.0, 0.0, 1.0, 1.5)])
def test_a_box_beyond_the_picture_is_refused(box):
    with pytest.raises(ValueError, match="lips=.*give top, left, bottom and right"):
        Places(lips=box)


@pytest.mark.parametrize("moving", [0.0, 0.5])
def test_flow_loss_is_zero_for_the_true_flow_and_the_squared_error_otherwise(moving):
    x0, noise = draw(2, 16, 4, 4, 4), draw(2, 16, 4, 4, 4, seed=1)
    truth = flow.flow_target(x0, noise)
    assert flow_loss(truth, x0, noise, moving=moving) == 0
    # The weights have mean 1, so an error that is the same everywhere costs its square.
    assert flow_loss(truth + 0.3, x0, noise, moving=moving).item() == pytest.approx(0.09, rel=1e-5)


def test_skipped_frames_do_not_count_in_any_sample():
    x0, noise = draw(2, 16, 4, 4, 4), draw(2, 16, 4, 4, 4, seed=1)
    skip = torch.tensor([[True, False, False, False], [True, True, True, False]])
    wrong = flow.flow_target(x0, noise)
    wrong[0, :, 0], wrong[1, :, :3] = 1e6, -1e6
    assert flow_loss(wrong, x0, noise, skip) == 0
    wrong[1, :, 3] += 2
    # One of the four frames that are kept is off by 2: every kept frame of the batch counts the same.
    assert flow_loss(wrong, x0, noise, skip).item() == pytest.approx(1.0, rel=1e-5)


def test_flow_loss_pulls_towards_the_flow():
    x0, noise = draw(1, 16, 3, 2, 2), draw(1, 16, 3, 2, 2, seed=1)
    predicted = torch.zeros_like(x0, requires_grad=True)
    flow_loss(predicted, x0, noise).backward()
    assert torch.allclose(predicted.grad, 2 * (x0 - noise) / x0.numel(), atol=1e-6)


def test_dmd_loss_has_the_gradient_g_over_the_number_of_elements():
    generated = draw(2, 16, 3, 4, 4).requires_grad_()
    gradient = draw(2, 16, 3, 4, 4, seed=1)
    loss = dmd_loss(generated, gradient)
    loss.backward()
    assert torch.allclose(generated.grad, gradient / generated.numel(), rtol=1e-12)
    assert loss.item() == pytest.approx(0.5 * gradient.square().mean().item())


def test_dmd_gradient_is_normalised_a_sample():
    x, fake, real = draw(2, 16, 3, 4, 4), draw(2, 16, 3, 4, 4, seed=1), draw(2, 16, 3, 4, 4, seed=2)
    gradient = dmd_gradient(x, fake, real)
    for i in range(2):
        assert torch.allclose(gradient[i], (fake[i] - real[i]) / (x[i] - real[i]).abs().mean())
    assert torch.equal(dmd_gradient(x, real, real), torch.zeros_like(x))
    assert torch.equal(dmd_gradient(real, real, real), torch.zeros_like(x)), "0 / 0 is 0"


def test_the_critic_sees_the_reference_as_its_first_frame_and_noise_elsewhere():
    generated, noise, reference = draw(2, 16, 4, 2, 2), draw(2, 16, 4, 2, 2, seed=1), draw(2, 16, 1, 2, 2, seed=2)
    sigma = torch.tensor([0.25, 0.75])
    noisy = critic_input(generated, noise, sigma, reference)
    assert torch.equal(noisy[:, :, :1], reference)
    for i in range(2):
        want = (1 - sigma[i]) * generated[i, :, 1:] + sigma[i] * noise[i, :, 1:]
        assert torch.allclose(noisy[i, :, 1:], want)
    a_frame = critic_input(generated, noise, sigma[:, None].expand(2, 4), reference)
    assert torch.equal(a_frame, noisy)


def test_critic_loss_is_zero_for_the_true_clean_frames_and_blind_to_the_first():
    generated, noise, reference = draw(2, 16, 4, 2, 2), draw(2, 16, 4, 2, 2, seed=1), draw(2, 16, 1, 2, 2, seed=2)
    sigma = torch.tensor([0.4, 0.8], dtype=torch.float64)
    noisy = critic_input(generated, noise, sigma, reference)
    fake = generated.clone()
    fake[:, :, 0] = 1e6
    assert critic_flow_loss(fake, noisy, generated, noise, sigma).item() == pytest.approx(0, abs=1e-20)
    # An error d of the clean prediction is an error d / sigma of the flow.
    off = critic_flow_loss(fake + 0.1, noisy, generated, noise, sigma).item()
    assert off == pytest.approx((0.25**2 + 0.125**2) / 2)
