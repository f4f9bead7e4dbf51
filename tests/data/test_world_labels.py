import numpy as np
import pytest

from livetalk.data.world.labels import (
    ATTRIBUTES,
    OTHER,
    SILENCE,
    SOUND_CLASSES,
    attribute_vector,
    sound_classes,
)
from livetalk.data.world.prompts import VALUES, Attributes
from livetalk.data.world.speech import Phone
from livetalk.geometry import FPS


def test_a_frame_is_named_by_the_sound_at_its_own_time():
    """Frame j shows at j / 16 s: a sound from 2/16 s up to, not including, 5/16 s is said on frames 2, 3 and 4."""
    classes = sound_classes([Phone(2 / FPS, 5 / FPS, "m"), Phone(5 / FPS, 6.5 / FPS, "ɑ")], 10)
    assert classes.dtype == np.int64
    assert (classes == SILENCE).tolist() == [True, True, False, False, False, False, False, True, True, True]
    assert len(set(classes[2:5])) == 1 and classes[5] == classes[6] != classes[4]


def test_stress_and_length_marks_do_not_change_the_sound_and_diphthongs_are_two():
    plain = sound_classes([Phone(0, 1, "i")], 16)
    assert np.array_equal(sound_classes([Phone(0, 1, "ˈiː")], 16), plain)
    glide = sound_classes([Phone(0, 1, "aɪ")], 16)
    assert glide[0] == sound_classes([Phone(0, 1, "a")], 1)[0] and glide[15] == sound_classes([Phone(0, 1, "ɪ")], 1)[0]


def test_every_letter_has_a_class_of_its_own_and_unknown_ones_share_one():
    letters = "ɑaæʌəɜɛeiɪɔoʊuɐɒɚᵻwɹjlɫtdnɾszʃʒθðkɡŋhʔpbmfv"
    classes = [sound_classes([Phone(0, 1, letter)], 1)[0] for letter in letters]
    assert sorted(classes) == list(range(2, SOUND_CLASSES))
    assert sound_classes([Phone(0, 1, "ʘ")], 1)[0] == OTHER
    assert not sound_classes([], 5).any(), "nothing said is silence"


def test_each_attribute_raises_its_own_flag():
    assert not attribute_vector(Attributes()).any()
    for name, values in VALUES.items():
        for value in values[1:]:
            flags = attribute_vector(Attributes(**{name: value}))
            assert flags.dtype == np.float32 and flags.shape == (len(ATTRIBUTES),)
            assert [ATTRIBUTES[i] for i in flags.nonzero()[0]] == [f"{name}: {value}"]


def test_flags_add_up():
    both = attribute_vector(Attributes(nod="nods", smile="smiling"))
    want = attribute_vector(Attributes(nod="nods")) + attribute_vector(Attributes(smile="smiling"))
    assert np.array_equal(both, want) and both.sum() == pytest.approx(2)
