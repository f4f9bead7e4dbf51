"""Disturbed sound says the same things at the same times, otherwise."""

from dataclasses import replace
from math import pi

import pytest
import torch

from livetalk.geometry import SAMPLE_RATE
from livetalk.training.disturb import (
    HOP,
    SIZE,
    Disturbances,
    Draws,
    _overlapped,
    disturbed,
    level,
    noisy,
    other_line,
    other_voice,
    stretched,
)

STILL = Disturbances(voice=0, line=0, noise=0, quietest=0, loudest=0)
NOTHING = Disturbances(formants=0, whispered=0, equaliser=0, narrow=0, rooms=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(count):
    return Draws(count, generator(), torch.device("cpu"))


def vowel(pitch=120.0, formants=(600.0, 1400.0), seconds=1.0):
    """[1, S]: harmonics of a pitch under two resonances."""
    time = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    harmonics = pitch * torch.arange(1, int(7000 / pitch))
    gains = sum(1 / (1 + ((harmonics - formant) / 100) ** 2) for formant in formants)
    return 0.05 * (gains[:, None] * torch.sin(2 * pi * harmonics[:, None] * time)).sum(0, keepdim=True)


def peak(sound, low, high):
    """Hz of the strongest component between two frequencies, over a smooth spectrum."""
    power = torch.fft.rfft(sound[0]).abs()
    hertz = torch.linspace(0, SAMPLE_RATE / 2, len(power))
    return hertz[(power * ((hertz > low) & (hertz < high))).argmax()].item()


def test_the_same_draw_gives_the_same_sound_and_others_another():
    sound = 0.1 * torch.randn(4, 20_000, generator=generator(1))
    one, again, other = (disturbed(sound, Disturbances(), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.allclose(one, other)
    assert one.shape == sound.shape and one.abs().max() <= 1 and one.isfinite().all()


def test_without_disturbances_nothing_changes():
    sound = 0.1 * torch.randn(3, 20_000, generator=generator(1))
    torch.testing.assert_close(disturbed(sound, STILL, generator()), sound)
    torch.testing.assert_close(
        disturbed(sound, replace(Disturbances(), plain=1, quietest=0, loudest=0), generator()), sound
    )


def test_loudness_stays_within_its_limits():
    sound = 0.01 * torch.randn(64, 20_000, generator=generator(1))
    changed = disturbed(sound, replace(STILL, voice=1, line=1, quietest=-20, loudest=10), generator())
    gain = 20 * torch.log10(level(changed) / level(sound))
    assert -20.1 < gain.min() < -15 and 5 < gain.max() < 10.1


def test_silence_without_noise_stays_silent():
    assert not disturbed(torch.zeros(4, 16_000), replace(Disturbances(), noise=0), generator()).any()


def test_a_click_stays_where_it_is():
    sound = torch.zeros(8, 16_000)
    sound[:, 8000] = 0.5
    for changed in (other_voice(sound, NOTHING, draws(8)), other_line(sound, Disturbances(), draws(8))):
        loudest = changed.abs().argmax(1)
        assert (loudest - 8000).abs().max() < 0.004 * SAMPLE_RATE, loudest


def test_formants_move_and_the_pitch_stays():
    sound = vowel()
    moves = Disturbances(formants=0.3, whispered=0)
    for seed in range(4):
        draw = Draws(1, generator(seed), sound.device)
        factor = torch.exp(Draws(1, generator(seed), sound.device).between(-0.3, 0.3)).item()
        changed = other_voice(sound, moves, draw)
        found = peak(changed, 1000, 2200)
        assert abs(found - 1400 * factor) < 120, (found, factor)
        assert abs(found / 120 - round(found / 120)) < 0.05, "still a harmonic of the same pitch"


def test_the_same_voice_comes_back_where_nothing_moves():
    sound = vowel()
    quiet = replace(NOTHING, whispered=0)
    changed = other_voice(sound.expand(16, -1), quiet, draws(16))
    same = [(one - sound[0]).abs().max() < 1e-4 for one in changed]
    assert any(same) and not all(same), "the source's strength changes in half of them"


def test_a_whisper_has_no_pitch():
    whisper = other_voice(vowel(), Disturbances(formants=0, whispered=1), draws(1))
    power = torch.fft.rfft(whisper[0]).abs().square()
    voiced = torch.fft.rfft(vowel()[0]).abs().square()
    # One component of a second's spectrum is one hertz wide: harmonics hold almost all of a voice's power.
    harmonics = torch.arange(120, 7000, 120)
    assert voiced[harmonics].sum() > 0.9 * voiced.sum() and power[harmonics].sum() < 0.2 * power.sum()


def test_stretching_moves_a_peak_by_its_factor():
    shape = torch.exp(-((torch.arange(257.0) - 60) ** 2) / 50)[None, :, None]
    for factor in (0.8, 1.0, 1.25):
        moved = stretched(shape, torch.tensor([[factor]]))
        assert moved[0, :, 0].argmax().item() == pytest.approx(60 * factor, abs=1)


def test_a_line_ends_where_it_is_said_to():
    narrow = replace(NOTHING, narrow=1)
    sound = 0.1 * torch.randn(32, 32_000, generator=generator(2))
    power = torch.fft.rfft(other_line(sound, narrow, draws(32))).abs().square()
    high = power[:, -200:].mean(1) / power[:, 2000:4000].mean(1)  # near 8 kHz, and 1 to 2 kHz
    assert high.median() < 1e-3
    wide = torch.fft.rfft(other_line(sound, NOTHING, draws(32))).abs().square()
    assert (wide[:, -200:].mean(1) / wide[:, 2000:4000].mean(1)).median() > 0.5


def test_noise_is_as_loud_as_said():
    sound = torch.zeros(64, 16_000)
    sound[:, 4000:12_000] = 0.1 * torch.randn(64, 8000, generator=generator(3))
    changed = noisy(sound, replace(Disturbances(), babble=0, loudest_noise=10), draws(64))
    ratio = 20 * torch.log10(level(sound) / level(changed - sound))
    assert 10 <= ratio.min() < 15 and 45 < ratio.max() <= 50


@pytest.mark.parametrize(
    "wrong", [{"voice": 1.5}, {"noise": -0.1}, {"reverberation": 2.0}, {"quietest": 3.0, "loudest": 0.0}]
)
def test_shares_and_limits_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Disturbances(**wrong)


def test_overlapping_is_the_inverse_of_taking_apart():
    sound, window = torch.randn(2, 10_000, generator=generator()), torch.hann_window(SIZE)
    spectrum = torch.stft(sound, SIZE, HOP, window=window, return_complex=True)
    pieces = torch.fft.irfft(spectrum, dim=1)
    torch.testing.assert_close(_overlapped(pieces, window, 10_000)[:, :9900], sound[:, :9900])
    changed = spectrum * (1 + torch.rand(spectrum.shape, generator=generator()))
    theirs = torch.istft(changed, SIZE, HOP, window=window, length=10_000)
    torch.testing.assert_close(_overlapped(torch.fft.irfft(changed, dim=1), window, 10_000)[:, :9900], theirs[:, :9900])
