import numpy as np
import pytest

from livetalk.data.world.channels import CHANNEL
from livetalk.data.world.face_model import FaceModel
from livetalk.data.world.motion import GRID, Style, blinks, make_motion, mouth_curves, segments
from livetalk.data.world.prompts import Attributes
from livetalk.data.world.speech import Phone

MOUTH = ("jawOpen", "mouthPucker", "mouthFunnel", "mouthStretch_L", "mouthLowerDown_L", "mouthUpperUp_L")


def say(*sounds, start=0.3, length=0.1):
    return [Phone(start + i * length, start + (i + 1) * length, ipa) for i, ipa in enumerate(sounds)]


def channel(motion, name):
    return motion.expression[:, CHANNEL[name]]


def at(curves, name, seconds):
    return curves[name][round(seconds * GRID)]


def speak(phones, frames=81, seed=0, wanted=None):
    return make_motion(phones, frames, wanted or Attributes(), np.random.default_rng(seed))


def grid(seconds=2.0):
    return np.arange(round(seconds * GRID)) / GRID


def inner_gap(motion):
    """Height between the inner lips of the tiny head, over its own length at rest: [T]."""
    model = FaceModel.tiny()
    upper, lower = model.landmarks[62], model.landmarks[66]
    moved = model.neutral[upper] - model.neutral[lower]
    moved = moved + np.tensordot(motion.expression, model.expression[:, upper] - model.expression[:, lower], 1)
    return moved[:, 1]


@pytest.mark.parametrize("phase", np.linspace(0, 0.0625, 7))
@pytest.mark.parametrize("sound", ["p", "b", "m"])
def test_lip_closures_survive_sampling(phase, sound):
    """Even a closure of 45 ms between open vowels shows in a frame, wherever it falls between frames."""
    phones = [
        Phone(0.3, 0.6 + phase, "ˈɑː"),
        Phone(0.6 + phase, 0.645 + phase, sound),
        Phone(0.645 + phase, 0.9, "ˈɑː"),
    ]
    motion = speak(phones, frames=24)
    inside = slice(9, 13)
    jaw, close = channel(motion, "jawOpen")[inside], channel(motion, "mouthClose")[inside]
    best = int(np.argmin(jaw - close))
    assert jaw[best] - close[best] < 0.005 and jaw[best] < 0.2
    assert channel(motion, "mouthLowerDown_L")[inside][best] < 0.02
    assert channel(motion, "jawOpen")[7:9].max() > 0.3  # and the vowel before is open


def test_tiny_head_closes_on_bilabials():
    gaps = inner_gap(speak(say("ˈɑː", "p", "ˈɑː", "m", "ˈɑː", "b", "ˈɑː", length=0.125), frames=24))
    rest = inner_gap(speak([], frames=4))[0]
    times = np.arange(24) / 16
    for start in (0.425, 0.675, 0.925):
        closed = gaps[(times >= start - 0.02) & (times < start + 0.125)].min()
        assert closed < rest + 0.15 * (gaps.max() - rest)


def test_vowels_shape_the_lips():
    seconds, style = grid(), Style()
    shapes = {v: mouth_curves([Phone(0.5, 0.8, v)], seconds, style) for v in ("ɑː", "iː", "uː", "æ")}
    jaw = {v: at(c, "jawOpen", 0.65) for v, c in shapes.items()}
    assert jaw["ɑː"] > 0.35 and jaw["æ"] > 0.35 and max(jaw["iː"], jaw["uː"]) < 0.2
    assert at(shapes["uː"], "mouthPucker", 0.65) > 0.7 > 0.1 > at(shapes["iː"], "mouthPucker", 0.65)
    assert at(shapes["iː"], "mouthStretch", 0.65) > 0.5 > 0.1 > at(shapes["uː"], "mouthStretch", 0.65)
    lip = mouth_curves([Phone(0.4, 0.6, "ɑː"), Phone(0.6, 0.7, "f"), Phone(0.7, 0.9, "ɑː")], seconds, style)
    assert at(lip, "mouthRollLower", 0.65) > 0.5 > 0.05 > at(lip, "mouthRollLower", 0.5)


def test_lips_anticipate_more_than_they_linger():
    curves = mouth_curves([Phone(1.0, 1.2, "uː")], grid(), Style())
    pucker, seconds = curves["mouthPucker"], grid()
    early = 1.0 - seconds[np.argmax(pucker > 0.15)]
    late = seconds[len(pucker) - 1 - np.argmax(pucker[::-1] > 0.15)] - 1.2
    assert 0.02 < early < 0.15 and late < early


def test_silence_rests_and_a_short_gap_does_not():
    motion = speak(say("ˈɑː", "t", "ˈɑː") + say("ˈɑː", start=2.0, length=0.3))
    times = np.arange(81) / 16
    quiet = (times < 0.05) | ((times > 0.8) & (times < 1.75)) | (times > 2.55)
    for name in MOUTH:
        assert np.abs(channel(motion, name)[quiet]).max() < 0.01, name
    assert channel(motion, "jawOpen")[~quiet].max() > 0.3
    gap = mouth_curves([Phone(0.3, 0.5, "ɑː"), Phone(0.55, 0.8, "ɑː")], grid(), Style())
    assert at(gap, "jawOpen", 0.525) > 0.35
    silent = speak([])
    assert all(np.abs(channel(silent, name)).max() == 0.0 for name in MOUTH)
    assert 0 < channel(silent, "mouthClose").min() == channel(silent, "mouthClose").max() < 0.05


def test_the_mouth_depends_on_words_and_style_only():
    phones, seconds = say("m", "ˈeɪ", "b", "i"), grid()
    first, second = (mouth_curves(phones, seconds, Style.sample(np.random.default_rng(3))) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    wanted = Attributes(activity="lively", nod="nods", pose="left", blink="often", brows="raised")
    a, b = speak(phones, seed=5), speak(phones, seed=5, wanted=wanted)
    for name in MOUTH:
        assert np.array_equal(channel(a, name), channel(b, name))


def test_later_words_leave_earlier_lips_alone():
    phones = say("m", "ˈeɪ", "b", "i")
    long = phones + say("ˈuː", "p", start=1.5)
    a, b = speak(phones, frames=20), speak(long, frames=20)
    assert np.array_equal(channel(a, "jawOpen"), channel(b, "jawOpen"))


def test_blinks_last_and_recur_as_said():
    seconds = grid(60.0)
    for often, low, high in ((False, 10, 22), (True, 45, 76)):
        shut = blinks(seconds, often, np.random.default_rng(0)) > 0
        starts = np.flatnonzero(shut[1:] & ~shut[:-1])
        ends = np.flatnonzero(~shut[1:] & shut[:-1])
        assert low <= len(starts) <= high
        lengths = (ends - starts[: len(ends)]) / GRID
        assert 0.14 < lengths.min() and lengths.max() < 0.27
    sampled = blinks(seconds, True, np.random.default_rng(0))[::10]
    full = np.flatnonzero((sampled[1:] > 0.99) & (sampled[:-1] <= 0.99))
    assert len(full) >= 45  # every blink shows a shut eye in some frame


def test_shapes_ranges_and_motion():
    wanted = Attributes(activity="lively", nod="nods", smile="smiling")
    motion = speak(say(*["b", "ˈɑː"] * 20, length=0.12), wanted=wanted)
    for array, width in ((motion.expression, 53), (motion.head_rotation, 3), (motion.head_shift, 3), (motion.gaze, 2)):
        assert array.shape == (81, width) and array.dtype == np.float32 and np.isfinite(array).all()
    assert motion.expression.min() >= 0 and motion.expression.max() <= 1
    assert np.abs(motion.head_rotation).max() < 40 and np.abs(np.diff(motion.head_rotation, axis=0)).max() < 8
    assert np.std(np.diff(motion.gaze, axis=0)) > 0
    assert speak([], frames=1).expression.shape == (1, 53)


def test_ipa_is_cut_into_sounds():
    pieces = segments([Phone(0.0, 0.3, "ˈɑːɹ"), Phone(0.3, 0.4, "tʃ"), Phone(0.4, 0.5, "n̩"), Phone(0.5, 0.6, "t̪")])
    assert [piece[2] for piece in pieces] == ["ɑ", "ɹ", "t", "ʃ", "n", "t"]
    assert pieces[0][:2] == pytest.approx((0.0, 0.2)) and pieces[0][3] == 1.0 and pieces[1][3] == 0.0
