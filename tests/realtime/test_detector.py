"""The voice detector on synthetic speech in noise, and that cutting the sound changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetalk.geometry import SAMPLE_RATE
from livetalk.realtime.detector import HOP, DetectorConfig, VoiceDetector
from livetalk.realtime.ear import Ear


def noise(colour: str, samples: int, seed: int = 0) -> np.ndarray:
    """Of unit power; the power of pink and brown noise falls with the frequency and its square."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=samples))
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 20)
    shaped = np.fft.irfft(spectrum / frequency ** {"white": 0, "pink": 0.5, "brown": 1}[colour], samples)
    return (shaped / shaped.std()).astype(np.float32)


def voices() -> list[np.ndarray]:
    import soxr

    from livetalk.espeak import speak

    says = [("Hello, can you hear me now?", "en-us+f3"), ("Wait, please, that is enough.", "en-gb-x-rp+m1")]
    says += [("What is the weather in Paris today?", "en-us+Michael"), ("Stop, please, that is enough.", "en+f1")]
    spoken = [speak(text, voice, 165) for text, voice in says]
    return [soxr.resample(one.pcm, one.rate, SAMPLE_RATE) for one in spoken]


def scene(speech: np.ndarray, colour: str, snr: float) -> np.ndarray:
    """Three seconds of noise, the same with speech, two seconds of noise. snr: dB, of where there is speech."""
    power = (speech[np.abs(speech) > 0.01] ** 2).mean()
    whole = np.concatenate([np.zeros(3 * SAMPLE_RATE), speech, np.zeros(2 * SAMPLE_RATE)])
    return (0.3 * (whole + noise(colour, len(whole)) * np.sqrt(power / 10 ** (snr / 10)))).astype(np.float32)


@pytest.mark.parametrize("colour", ["white", "pink", "brown"])
@pytest.mark.parametrize("snr", [20, 5])
def test_speech_in_noise_is_noticed_soon_and_its_end_too(colour, snr):
    pytest.importorskip("espeakng_loader")
    for speech in voices():
        detector, late = VoiceDetector(), []
        sound = scene(speech, colour, snr)
        for at in range(0, len(sound), HOP):
            late += [(voice, (at + HOP) / SAMPLE_RATE) for voice in detector.push(sound[at : at + HOP])]
        assert [voice.started for voice, _ in late] == [True, False]
        (began, noticed), (ended, over) = late
        end = 3 + len(speech) / SAMPLE_RATE
        assert 2.9 < began.at / SAMPLE_RATE < noticed < 3.5, "it begins when speech does, and is noticed within words"
        assert end - 0.6 < ended.at / SAMPLE_RATE < end + 0.8 and over < end + 1.4


@pytest.mark.parametrize("colour", ["white", "pink", "brown"])
@pytest.mark.parametrize("level", [-60, -40, -20])
def test_noise_is_no_voice_even_where_it_swells(colour, level):
    quiet = noise(colour, 10 * SAMPLE_RATE) * 10 ** (level / 20)
    assert VoiceDetector().push(np.concatenate([quiet, 4 * quiet, quiet])) == []


def test_neither_silence_nor_a_constant_nor_clicks_are_a_voice():
    clicks = np.zeros(10 * SAMPLE_RATE, np.float32)
    clicks[:: SAMPLE_RATE // 3] = 1.0
    for sound in (np.zeros(SAMPLE_RATE, np.float32), np.full(SAMPLE_RATE, 0.5, np.float32), clicks):
        assert VoiceDetector().push(sound) == []


def test_a_voice_that_is_there_from_the_first_sample():
    pytest.importorskip("espeakng_loader")
    speech = voices()[0]
    noticed = VoiceDetector().push(np.concatenate([speech, np.zeros(SAMPLE_RATE, np.float32)]))
    assert [voice.started for voice in noticed] == [True, False] and noticed[0].at < 0.3 * SAMPLE_RATE


def test_release_ends_a_voice_at_once():
    pytest.importorskip("espeakng_loader")
    detector = VoiceDetector()
    assert detector.end() == []
    assert [voice.started for voice in detector.push(voices()[0][:SAMPLE_RATE])] == [True]
    assert [voice.started for voice in detector.end()] == [False] and not detector.speaking


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=30), st.sampled_from([16_000, 24_000, 48_000]))
def test_pieces_change_nothing(sizes, rate):
    tone = np.sign(np.sin(2 * np.pi * 140 * np.arange(rate) / rate)).astype(np.float32) * 0.2
    sound = np.concatenate([np.zeros(rate // 2, np.float32), tone, np.zeros(rate, np.float32)])
    whole, pieces = Ear(DetectorConfig()), Ear(DetectorConfig())
    wanted = whole.push(sound, rate)
    at, got, noticed = 0, [], []
    while at < len(sound):
        size = sizes[len(got) % len(sizes)]
        new, voices = pieces.push(sound[at : at + size], rate)
        got.append(new)
        noticed += voices
        at += size
    assert noticed == wanted[1] and len(noticed) == 2
    assert np.array_equal(np.concatenate(got), wanted[0])
    assert np.array_equal(pieces.sound(pieces.heard - 100), wanted[0][-100:])


def test_the_ear_keeps_only_the_latest():
    ear = Ear(DetectorConfig())
    for _ in range(100):
        ear.push(np.zeros(4800, np.int16), 48_000)
    assert len(ear.sound(0)) < 3 * SAMPLE_RATE and len(ear.sound(ear.heard + 5)) == 0
    with pytest.raises(ValueError, match="finite"):
        ear.push(np.full(10, np.nan, np.float32), 16_000)


@pytest.mark.parametrize(
    "wrong", [{"below_db": 9.0}, {"above_db": 99.0}, {"onset_ms": 1}, {"quiet_ms": 1}, {"least_db": 3.0}]
)
def test_impossible_settings(wrong):
    with pytest.raises(ValueError, match=f"detector.*{next(iter(wrong.values()))}"):
        DetectorConfig(**wrong)
