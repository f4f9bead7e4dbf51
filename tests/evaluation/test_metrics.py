"""Measures against closed forms, known lags and known damage."""

import math

import numpy as np
import pytest
import torch

from livetalk.evaluation import metrics


def curves(seed=0, clips=40, frames=81, width=5):
    """Smooth unrelated curves [N, T]: neighbouring frames are alike, as a mouth's are."""
    noise = np.random.default_rng(seed).normal(size=(clips, frames + width - 1))
    return np.stack([np.convolve(row, np.ones(width) / width, mode="valid") for row in noise])


def speech_mask(clips=40, frames=81, lead=10):
    mask = np.ones((clips, frames), dtype=bool)
    mask[:, :lead] = False
    return mask


def test_pearson_equals_numpy_on_the_masked_frames():
    a, b, mask = curves(1), curves(2), speech_mask()
    mask[:, ::3] = False
    expected = [np.corrcoef(x[m], y[m])[0, 1] for x, y, m in zip(a, b, mask, strict=True)]
    np.testing.assert_allclose(metrics.masked_pearson(a, b, mask), expected, atol=1e-9)


def test_frozen_mouth_counts_zero_and_silent_clips_do_not_count():
    truth, mask = curves(), speech_mask()
    mask[3] = False
    value = metrics.masked_pearson(np.full_like(truth, 0.7), truth, mask)
    assert np.isnan(value[3])
    assert np.all(np.delete(value, 3) == 0)
    assert np.isnan(metrics.masked_pearson(truth, np.zeros_like(truth), mask)).all()


@pytest.mark.parametrize("lag", [-4, -1, 0, 2, 4])
def test_the_one_lag_is_found(lag):
    truth = curves()
    found = metrics.av_correlation(np.roll(truth, lag, axis=1), truth, speech_mask())
    assert found.lag == lag
    assert found.estimate.value > 0.98
    assert len(found.by_lag) == 9


def test_noise_lowers_correlation_as_it_should():
    truth = curves(clips=400)
    noisy = truth + curves(9, clips=400)
    assert metrics.av_correlation(noisy, truth, speech_mask(400)).estimate.value == pytest.approx(0.5**0.5, abs=0.03)


def test_shuffled_sound_is_low_with_one_lag_but_not_with_a_lag_per_clip():
    truth, mask = curves(clips=300), speech_mask(300)
    other = truth[metrics.derangement(300)]
    assert abs(metrics.av_correlation(truth, other, mask).estimate.value) < 0.08
    free = np.max([metrics.lagged_pearson(truth, other, mask, lag) for lag in range(-4, 5)], axis=0)
    assert free.mean() > 0.15


def test_shifted_sound_lowers_correlation():
    truth, mask = curves(clips=200), speech_mask(200)
    moved = metrics.av_correlation(truth, metrics.shift_curves(truth, 3.2), mask, lag=0)
    assert moved.estimate.value < 0.6
    np.testing.assert_allclose(metrics.shift_curves(truth, 2)[:, 2:], truth[:, :-2])
    np.testing.assert_allclose(metrics.shift_curves(truth, -0.5)[:, :-1], 0.5 * (truth[:, 1:] + truth[:, :-1]))
    assert metrics.shift_mask(mask, 3.2).argmax(1).tolist() == [13] * 200


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.av_correlation(curves(), curves(frames=80), speech_mask())


def test_derangement_moves_everything_and_repeats():
    for count in (2, 3, 50):
        order = metrics.derangement(count)
        assert sorted(order) == list(range(count))
        assert not np.any(order == np.arange(count))
        assert np.array_equal(order, metrics.derangement(count))
    with pytest.raises(ValueError, match="at least 2"):
        metrics.derangement(1)


def test_silence_is_judged_by_opening_away_from_speech():
    speech = np.zeros((2, 20), dtype=bool)
    speech[0, 8:12] = True
    quiet = metrics.quiet_frames(speech, margin=3)
    assert quiet[0].nonzero()[0].tolist() == [*range(5), *range(15, 20)]
    opening = np.where(quiet, 0.1, 0.9)
    np.testing.assert_allclose(metrics.opening_in_silence(opening, speech), 0.1)
    opening[0, 0] = 0.6
    np.testing.assert_allclose(metrics.share_open(opening, speech, 0.3), [0.1, 0])
    assert np.isnan(metrics.opening_in_silence(np.ones((1, 20)), np.ones((1, 20), dtype=bool))).all()


def test_blinks_are_counted_once_each():
    eye = np.ones((2, 160))
    for start in (10, 60, 120):
        eye[0, start : start + 3] = (0.4, 0.1, 0.6)
    assert metrics.blinks_per_minute(eye, fps=16).tolist() == [18.0, 0.0]


def test_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = boot = 0
    for trial in range(300):
        values = rng.normal(1.0, 2.0, 50)
        normal = metrics.mean_interval(values)
        inside += normal.low < 1.0 < normal.high
        drawn = metrics.bootstrap_interval(lambda i, v=values: v[i].mean(), 50, draws=100, seed=trial)
        boot += drawn.low < 1.0 < drawn.high
    assert 0.90 < inside / 300 < 0.98
    assert 0.87 < boot / 300 < 0.98


def test_paired_difference_is_tighter_than_two_intervals():
    base = np.random.default_rng(0).normal(0.8, 0.2, 512)
    difference = metrics.paired_difference(base - 0.03, base)
    assert difference.value == pytest.approx(-0.03)
    assert difference.high - difference.low < 1e-6
    with pytest.raises(ValueError, match="same clips"):
        metrics.paired_difference(base, base[:10])


def test_frechet_of_gaussians_equals_the_closed_form():
    """Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2. The sample is whitened, so the moments are exact."""
    rng = np.random.default_rng(0)
    white = rng.normal(size=(500, 6))
    white = (white - white.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    first, second = np.array([1, 2, 3, 0.5, 0.1, 4.0]), np.array([2, 2, 1, 0.2, 0.3, 1.0])
    shift = np.array([0.5, 0, -1, 0, 0, 2.0])
    a, b = (white * first) @ basis, (white * second + shift) @ basis
    expected = (shift**2).sum() + ((first - second) ** 2).sum()
    assert metrics.frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet(b, a) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_is_safe_when_covariances_are_singular():
    rng = np.random.default_rng(0)
    few = rng.normal(size=(5, 64))
    value = metrics.frechet(few, rng.normal(size=(5, 64)))
    assert np.isfinite(value) and value > 0
    flat = np.zeros((10, 8))
    assert metrics.frechet(flat, flat + 2) == pytest.approx(32)
    with pytest.raises(ValueError, match="N >= 2"):
        metrics.frechet(few[:1], few)
    with pytest.raises(ValueError, match="width"):
        metrics.frechet(few, few[:, :10])


def test_frechet_of_clips_has_an_interval_around_its_value():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 3, 4)), rng.normal(0.5, 1, size=(60, 3, 4))
    estimate = metrics.frechet_of_clips(a, b, draws=50)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.value == pytest.approx(1.0, abs=0.35)
    assert estimate == metrics.frechet_of_clips(a, b, draws=50)


def test_auc_and_verification():
    rng = np.random.default_rng(0)
    same, different = rng.normal(2, 1, 4000), rng.normal(0, 1, 4000)
    assert metrics.roc_auc(same, different) == pytest.approx(0.921, abs=0.01)  # Phi(2 / sqrt 2)
    assert metrics.verification_accuracy(same, different) == pytest.approx(0.841, abs=0.015)  # Phi(1)
    assert metrics.roc_auc(np.ones(3), np.ones(4)) == 0.5


def test_agreement_counts_stated_attributes_only():
    found = [{"nod": "nods", "smile": "serious"}, {"nod": "none", "smile": "smiling"}]
    share = metrics.agreement(found, [{"nod": "nods", "smile": "smiling"}, {}])
    assert share[0] == 0.5 and np.isnan(share[1])
    with pytest.raises(ValueError, match="brows"):
        metrics.agreement(found, [{"brows": "raised"}, {}])


def noise_frames(shape=(2, 6, 32, 32, 3), seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error():
    first = torch.full((2, 3, 16, 16, 3), 100, dtype=torch.uint8)
    second = first + 16
    np.testing.assert_allclose(metrics.psnr(first, second), 20 * np.log10(255 / 16), rtol=1e-5)
    assert metrics.psnr(first, first).tolist() == [100, 100]
    with pytest.raises(ValueError, match="uint8"):
        metrics.psnr(first.float(), second)


def test_ssim_is_one_for_equals_low_for_noise_and_falls_with_damage():
    frames = noise_frames()
    np.testing.assert_allclose(metrics.ssim(frames, frames), 1, atol=1e-5)
    assert metrics.ssim(frames, noise_frames(seed=1)).max() < 0.1
    flat = torch.full_like(frames, 100)
    a, b = 100 / 255, 140 / 255
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    np.testing.assert_allclose(metrics.ssim(flat, flat + 40), expected, rtol=1e-3)


def test_sharpness_of_an_impulse_and_of_a_flat_frame():
    frame = torch.zeros(1, 1, 5, 5, 3, dtype=torch.uint8)
    assert metrics.sharpness(frame).item() == 0
    frame[0, 0, 2, 2] = 255
    laplacian = np.zeros(9)
    laplacian[[1, 3, 5, 7]], laplacian[4] = 255, -1020
    assert metrics.sharpness(frame).item() == pytest.approx(laplacian.var(ddof=1), rel=1e-4)


def test_flicker_forgives_steady_change_and_sees_flashing():
    ramp = torch.arange(10).view(1, 10, 1, 1, 1).expand(1, 10, 8, 8, 3).mul(10).to(torch.uint8)
    flash = ramp.clone()
    flash[:, 5] += 40
    assert metrics.flicker(ramp).item() == pytest.approx(0, abs=1e-3)
    assert metrics.flicker(flash).item() == pytest.approx((40 + 80 + 40) / 8, rel=1e-3)


def test_black_flat_frozen_and_clipped_frames_are_counted():
    frames = noise_frames((1, 8, 16, 16, 3)).clamp(1, 254)
    assert metrics.black_frames(frames).item() == 0 and metrics.frozen_share(frames).item() == 0
    assert metrics.saturation(frames).item() == 0
    frames[:, 2:4] = 0
    assert metrics.black_frames(frames).item() == 0.25
    assert metrics.frozen_share(frames).item() == pytest.approx(1 / 7)
    assert metrics.saturation(frames).item() == 0.25


def test_seams_show_only_where_they_are():
    ramp = torch.arange(12).view(1, 12, 1, 1, 1).expand(1, 12, 4, 4, 3).mul(4).to(torch.uint8)
    jump = ramp.clone()
    jump[:, 6:] += 12
    assert metrics.seam_difference(ramp, [6]).item() == pytest.approx(1, rel=1e-4)
    assert metrics.seam_difference(jump, [6]).item() == pytest.approx(4, rel=1e-4)
    for seams in ([0], [12], []):
        with pytest.raises(ValueError, match="seam"):
            metrics.seam_difference(jump, seams)


def test_variance_ratio_of_dying_motion():
    truth = curves(clips=100)
    ratio = metrics.variance_ratio(0.5 * truth, truth)
    assert ratio.value == pytest.approx(0.25)
    assert ratio.low <= ratio.value <= ratio.high


@pytest.mark.parametrize("truth", [[0.0, 0.0, 0.0], [-0.1, 0.05, -0.02]])
def test_nothing_is_a_share_of_nothing(truth):
    """No blinks to be compared with, or lips that followed no sound from the start: not known, instead of millions."""
    found = metrics.mean_ratio(np.array([0.3, 0.2, 0.1]), np.array(truth))
    assert math.isnan(found.value) and math.isnan(found.low)


def test_no_lag_is_known_where_nobody_speaks():
    silent = np.zeros((2, 20))
    assert not metrics.av_correlation(silent, silent, silent > 0).known
