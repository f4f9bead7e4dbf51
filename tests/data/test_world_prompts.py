from dataclasses import asdict

import numpy as np
import pytest

from livetalk.data.world.channels import CHANNEL
from livetalk.data.world.motion import make_motion
from livetalk.data.world.prompts import _PHRASES, VALUES, Attributes, blink_count, describe, measure
from livetalk.data.world.speech import Phone

COUNT = 200


def tracks(motion):
    pitch, yaw, _ = motion.head_rotation.T
    channels = {"smile": "mouthSmile_L", "blink": "eyeBlink_L", "brow": "browInnerUp_L"}
    return {"pitch": pitch, "yaw": yaw, **{k: motion.expression[:, CHANNEL[name]] for k, name in channels.items()}}


def words(seconds):
    """Stressed syllables, one in 0.3 s."""
    starts = np.arange(0.1, seconds, 0.3)
    return [p for t in starts for p in (Phone(t, t + 0.1, "b"), Phone(t + 0.1, t + 0.28, "ˈɑː"))]


@pytest.mark.parametrize("frames", [81, 241])
def test_attributes_are_found_in_tracks(frames):
    wrong = dict.fromkeys(VALUES, 0)
    for i in range(COUNT):
        rng = np.random.default_rng(i)
        wanted = Attributes.sample(rng)
        found = measure(tracks(make_motion(words(frames / 16), frames, wanted, rng)))
        for name, value in asdict(wanted).items():
            wrong[name] += found[name] != value
    assert max(wrong.values()) <= 0.05 * COUNT, wrong


@pytest.mark.parametrize("noise", [1.0])
def test_attributes_survive_a_judge_that_errs(noise):
    right = 0
    for i in range(60):
        rng = np.random.default_rng(i)
        wanted = Attributes.sample(rng)
        seen = tracks(make_motion(words(5), 81, wanted, rng))
        seen = {k: v + rng.normal(0, noise * (0.5 if k in ("pitch", "yaw") else 0.05), 81) for k, v in seen.items()}
        right += sum(measure(seen)[name] == value for name, value in asdict(wanted).items())
    assert right >= 0.95 * 60 * len(VALUES)


def test_measure_leaves_out_what_it_cannot_see():
    assert measure({"smile": np.ones(81)}) == {"smile": "smiling"}


def test_blinks_are_counted():
    lids = np.zeros(81)
    lids[[0, 10, 11, 40]] = 1.0
    assert blink_count(lids) == 3


def test_text_says_every_attribute_that_is_no_default():
    default = Attributes()
    texts = set()
    for i in range(300):
        rng = np.random.default_rng(i)
        wanted = Attributes.sample(rng)
        text = describe(wanted, rng)
        texts.add(text)
        for name, value in asdict(wanted).items():
            said = [v for v in VALUES[name] if any(phrase in text.lower() for phrase in _PHRASES[name, v])]
            if value != getattr(default, name):
                assert value in said, (text, name)
            if name == "pose":
                assert set(said) <= {value}, text
    assert len(texts) > 285


def test_phrases_are_distinct_and_complete():
    phrases = [phrase for options in _PHRASES.values() for phrase in options]
    assert len(phrases) == len(set(phrases))
    assert set(_PHRASES) == {(name, value) for name in VALUES for value in VALUES[name]}


def test_nods_need_words_and_a_head_that_moves():
    for i in range(100):
        assert Attributes.sample(np.random.default_rng(i), speaking=False).nod == "none"
        drawn = Attributes.sample(np.random.default_rng(i))
        assert drawn.nod == "none" or drawn.activity != "still"
    with pytest.raises(ValueError, match="'grinning'"):
        Attributes(smile="grinning")
