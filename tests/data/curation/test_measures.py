"""Lag, speech, sharpness, head and smile: closed forms, and pictures whose truth is known."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from livetalk.data.curation import motion, picture, sync
from livetalk.data.curation.voice import Energy, Silero
from livetalk.data.world.prompts import VALUES
from livetalk.faces import mouth_opening, named
from livetalk.geometry import FPS, SAMPLE_RATE
from livetalk.media import read_audio
from livetalk.pipeline import EXAMPLE_AUDIO
from tests.data.curation.cartoon import Faces, draw, voice

FRAMES = 97


def moved(pcm, seconds):
    return np.roll(pcm, round(seconds * SAMPLE_RATE))


@pytest.mark.parametrize("seed", range(4))
def test_a_shift_of_the_sound_is_measured(seed):
    pcm, wide = voice(FRAMES, seed)
    for lag in (-0.3, -0.2, 0.0, 0.2, 0.3):
        found = sync.measure(wide, moved(pcm, lag))
        assert abs(found.lag - lag) < 0.03 and found.correlation > 0.6 and found.confidence > 0.3


def test_another_sound_is_no_match():
    own = [sync.measure(voice(FRAMES, seed)[1], voice(FRAMES, seed)[0]).correlation for seed in range(6)]
    others = [sync.measure(voice(FRAMES, seed)[1], voice(FRAMES, seed + 10)[0]).correlation for seed in range(6)]
    assert min(own) > 0.6 > max(others) + 0.1


def test_a_closed_mouth_and_silence_tell_nothing():
    pcm, wide = voice(FRAMES)
    assert sync.measure(np.zeros(FRAMES), pcm).correlation == 0
    assert sync.measure(wide, np.zeros_like(pcm)).correlation == 0


def test_loudness_hears_its_band_alone():
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    level = [sync.loudness(0.1 * np.sin(2 * np.pi * f * seconds)).max() for f in (50, 800, 6000)]
    assert level[1] == pytest.approx(10 * np.log10(0.005), abs=0.2) and max(level[0], level[2]) < level[1] - 15


@pytest.mark.parametrize("kind", [Energy, Silero])
def test_speech_is_found_where_it_is(kind):
    if kind is Silero:
        pytest.importorskip("silero_vad")
    spoken = read_audio(EXAMPLE_AUDIO)
    quiet = 0.0003 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE).astype(np.float32)
    pcm = np.concatenate([quiet, spoken, quiet])
    frames = -(-len(pcm) // 1000)
    speech = kind()(pcm, frames)
    assert speech.shape == (frames,) and speech.dtype == bool
    assert speech[: FPS * 2 - 1].mean() < 0.1 and speech[-FPS * 2 + 2 :].mean() < 0.1
    assert speech[2 * FPS + 4 : -2 * FPS - 4].mean() > 0.6
    assert not kind()(np.zeros(SAMPLE_RATE, np.float32), 16).any()


def test_loudness_alone_hears_no_speech_in_steady_noise():
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * SAMPLE_RATE).astype(np.float32)
    assert not Energy()(noise, 64).any()


def test_blur_grows_with_blurring_and_ignores_light():
    sharp = Image.fromarray(draw(0.5, size=(256, 256)))
    found = []
    for radius in (0, 1, 2, 4):
        face = np.asarray(sharp.filter(ImageFilter.GaussianBlur(radius))) @ picture.LUMA / 255
        found.append(picture.blur(face))
        assert picture.blur(0.3 * face + 0.1) == pytest.approx(found[-1], abs=1e-6)
    assert found == sorted(found) and 0 <= found[0] < 0.2 and 0.5 < found[3] <= 1


def test_exposure():
    assert picture.exposure(np.full((8, 8), 0.5)) == (0.5, 0)
    half = np.concatenate([np.ones((4, 8)), np.full((4, 8), 0.5)])
    assert picture.exposure(half) == (0.75, 0.5)


def test_a_covered_mouth_has_no_detail():
    shown = draw(0.6, size=(256, 256))
    finder = Faces()
    points = finder.points(shown, finder.find(shown)[0])
    covered = shown.copy()
    low, high = points[48:68].min(axis=0).astype(int) - 6, points[48:68].max(axis=0).astype(int) + 6
    covered[low[1] : high[1], low[0] : high[0]] = 180
    assert picture.mouth_detail(shown, points) > 0.4 and picture.mouth_detail(covered, points) < 0.1


def test_landmarks_that_follow_the_box_tremble():
    class Held:
        def points(self, picture, box):
            return fixed

    class Lost:
        def points(self, picture, box):
            return fixed + box[:2]

    fixed, box = np.random.default_rng(0).uniform(0, 50, (68, 2)), np.array([10.0, 10, 60, 60])
    shown = np.zeros((80, 80, 3), np.uint8)
    assert picture.mouth_trembles(Held(), shown, box, fixed) == 0
    at = fixed + box[:2]
    assert picture.mouth_trembles(Lost(), shown, box, at) == pytest.approx(picture.NUDGE)


def turned(pitch, yaw, roll):
    """The rotation that the world gives a head, in degrees."""
    pitch, yaw, roll = np.radians([pitch, yaw, roll])
    x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    z = np.array([[np.cos(roll), np.sin(roll), 0], [-np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return y @ x @ z


@pytest.mark.parametrize("angles", [(0, 0, 0), (0, 20, 0), (0, -35, 0), (10, 0, 0), (-12, 0, 0), (0, 0, 8)])
def test_the_head_is_read_from_its_projection(angles):
    """Under a camera far away exactly, but for the gains that stand for a near one."""
    shown = np.zeros((1, 68, 2))
    shown[0, list(motion.RIGID)] = 40 * (motion.HEAD @ turned(*angles).T)[:, :2] * (1, -1) + (300, 200)
    wanted = np.array(angles) / (motion.PITCH_GAIN, motion.YAW_GAIN, 1)
    assert np.allclose(motion.angles(shown)[0], wanted, atol=1e-6)


def test_a_drawn_mouth_is_read():
    finder, wide = Faces(), [0.0, 0.3, 0.6, 0.9]
    openings = [mouth_opening(finder.points(shown, finder.find(shown)[0])) for shown in map(draw, wide)]
    assert np.corrcoef(wide, openings)[0, 1] > 0.98


def test_a_prompt_says_what_was_measured_and_no_more():
    still = {name: np.zeros(97) for name in ("pitch", "yaw", "roll", "blink", "smile")}
    lively = still | {"yaw": 12 + 6 * np.sin(np.arange(97) / 6), "smile": np.full(97, 0.5)}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        said = motion.prompt_of(still, rng).lower()
        assert "brow" not in said and " wall" not in said and "studio" not in said and "video call" not in said
        said = motion.prompt_of(lively, rng).lower()
        assert "left" in said and ("smil" in said or "cheerful" in said)
    assert "brows" in VALUES


def test_names_of_users_own_functions(monkeypatch):
    assert named("tests.data.curation.cartoon:brighter", "improve", {})(Image.new("RGB", (4, 4))).size == (8, 8)
    assert isinstance(named("tests.data.curation.cartoon:Faces", "faces", {}), Faces)
    assert named("a", "faces", {"a": lambda: 3}) == 3
    with pytest.raises(ValueError, match="use a, or name your own"):
        named("b", "faces", {"a": int})
    for name in ("none_of_the_kind:x", "math:none_of_the_kind"):
        with pytest.raises(ValueError, match="cannot be imported.*PYTHONPATH"):
            named(name, "faces", {})
