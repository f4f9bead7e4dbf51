from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from livetalk import espeak

SENTENCE = "Bob said 25 boats, café!"


@pytest.fixture(autouse=True)
def installed():
    pytest.importorskip("espeakng_loader")


def test_words_are_told_by_place_and_time():
    spoken = espeak.speak(SENTENCE, "en-us+f3", 165)
    words = [SENTENCE[at : at + letters] for _, at, letters in spoken.words]
    assert [word.strip() for word in words if word.strip() in SENTENCE.split()][:2] == ["Bob", "said"]
    samples = [sample for sample, _, _ in spoken.words]
    assert samples == sorted(samples) and samples[-1] < len(spoken.pcm)
    assert spoken.pcm.dtype == np.float32 and 0.1 < np.abs(spoken.pcm).max() <= 1


def test_threads_take_turns():
    """Each gets the samples that it would get alone."""
    texts = [f"This is sentence {number}, spoken by a thread." for number in range(12)]
    alone = [espeak.speak(text, "en-us+m3", 165).pcm for text in texts]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda text: espeak.speak(text, "en-us+m3", 165).pcm, texts))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_nothing_to_say_is_silent():
    assert len(espeak.speak("...", "en-us+m3", 165).pcm) < 22_050


def test_an_unknown_voice_is_named():
    with pytest.raises(ValueError, match="'xx-nobody'"):
        espeak.speak("hello", "xx-nobody", 165)
