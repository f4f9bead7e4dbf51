import shutil
from itertools import pairwise

import numpy as np
import pytest

from livetalk.data.world.sentences import SPLITS, sentence, vocabulary
from livetalk.data.world.speech import Phone, Speaker, Voice, _arpabet_phones, _with_closures, voices

RATE = 16_000


def level(pcm, start, end):
    return float(np.sqrt(np.mean(pcm[round(start * RATE) : round(end * RATE)] ** 2)))


def test_tone_times_are_exact():
    utterance = Speaker("tone").say("Pat sees a boat.", Voice("mid"))
    names = [phone.ipa for phone in utterance.phones]
    assert names == ["p", "æ", "t", "s", "ˈiː", "s", "æ", "b", "ˈɑː", "æ", "t"]
    for phone in utterance.phones:
        loud = level(utterance.pcm, phone.start, phone.end)
        assert (loud < 1e-6) if phone.ipa in ("p", "t") else (loud > 1e-3), phone
    assert all(a.end <= b.start for a, b in pairwise(utterance.phones))


@pytest.mark.parametrize("engine", ["espeak", "tone"])
def test_same_words_same_sound_whatever_came_before(engine):
    if engine == "espeak":
        pytest.importorskip("espeakng_loader")
    speaker = Speaker(engine)
    voice = speaker.voices("dev")[1]
    first = speaker.say("Maybe Bob moves the boat.", voice)
    speaker.say("Something else was said, very slowly.", speaker.voices("train")[0], rate=120)
    second = speaker.say("Maybe Bob moves the boat.", voice)
    assert np.array_equal(first.pcm, second.pcm) and first.phones == second.phones
    assert first.pcm.dtype == np.float32 and np.abs(first.pcm).max() <= 1.0


def test_espeak_closures_are_silent_and_vowels_loud():
    pytest.importorskip("espeakng_loader")
    utterance = Speaker("espeak").say("A puppy took a happy copy.", Voice("en-us+m3"))
    stops = [p for p in utterance.phones if p.ipa == "p"][:4]
    assert len(stops) == 4
    vowels = [level(utterance.pcm, p.start, p.end) for p in utterance.phones if "ˈ" in p.ipa]
    for stop in stops:
        # the first 25 ms of a stop are its closure, not the end of the vowel before
        assert level(utterance.pcm, stop.start + 0.005, stop.start + 0.025) < 0.1 * np.mean(vowels)
        assert 0.05 < stop.end - stop.start < 0.13
    assert all(a.end <= b.start + 1e-9 and a.end > a.start for a, b in pairwise(utterance.phones))
    assert "puppy" in [word for _, word in utterance.words]


def test_closure_is_taken_from_the_sound_before():
    rate = 16_000
    pcm = np.ones(rate, np.float32)
    pcm[4160:4800] = 0.0  # silence from 0.26 to 0.30
    pcm[8000:9600] = 0.0  # the pause before a second stop
    phones = [Phone(0.1, 0.3, "a"), Phone(0.3, 0.35, "p"), Phone(0.35, 0.5, "i"), Phone(0.6, 0.65, "t")]
    fixed = _with_closures(phones, pcm, rate)
    assert fixed[0].end == fixed[1].start == pytest.approx(0.26, abs=0.006)
    assert 0.53 <= fixed[3].start <= 0.57 and fixed[2] == phones[2]


def test_voices_of_splits_differ():
    for engine in ("espeak", "flite", "tone"):
        pools = [{voice.name.split("+")[-1] for voice in voices(engine, split)} for split in ("train", "dev", "test")]
        assert all(pools) and not (pools[0] & pools[1] or pools[0] & pools[2] or pools[1] & pools[2])
    assert len(voices("espeak", "train")) > 1000


def test_every_espeak_voice_speaks():
    pytest.importorskip("espeakng_loader")
    speaker = Speaker("espeak")
    timbres = {v.name.split("+")[1]: v for split in ("train", "dev", "test") for v in speaker.voices(split)}
    for voice in timbres.values():
        assert level(speaker.say("Hello.", voice).pcm, 0.05, 0.3) > 1e-3, voice


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match="'mbrola'"):
        Speaker("mbrola")
    with pytest.raises(ValueError, match="empty"):
        Speaker("tone").say(" ", Voice("mid"))
    with pytest.raises(ValueError, match="'basso'"):
        Speaker("tone").say("hello", Voice("basso"))
    monkeypatch.setattr("livetalk.data.world.speech.which", lambda name: None)
    with pytest.raises(ValueError, match="apt-get install flite"):
        Speaker("flite").say("hello", Voice("slt"))
    with pytest.raises(ValueError, match="apt-get install festival"):
        Speaker("festival").say("hello", Voice("ked_diphone"))
    monkeypatch.setitem(__import__("sys").modules, "espeakng_loader", None)
    with pytest.raises(ValueError, match=r"pip install -e .\[data\]"):
        Speaker("espeak").say("hello", Voice("en-us"))


def test_phones_of_a_listing():
    listing = [("pau", 0.222), ("ax", 0.275), ("p", 0.354), ("ah", 0.443), ("pau", 2.360), ("ch", 2.5)]
    phones = _arpabet_phones(listing)
    assert phones == (
        Phone(0.222, 0.275, "ə"),
        Phone(0.275, 0.354, "p"),
        Phone(0.354, 0.443, "ˈʌ"),
        Phone(2.36, 2.5, "tʃ"),
    )


@pytest.mark.skipif(shutil.which("flite") is None, reason="the flite program is not installed")
def test_flite_speaks():
    utterance = Speaker("flite").say("Maybe Bob moves the boat.", Voice("slt"))
    assert [p.ipa for p in utterance.phones][:4] == ["m", "ˈeɪ", "b", "i"]
    assert utterance.phones[-1].end <= len(utterance.pcm) / RATE


def test_sentences_of_splits_are_disjoint_and_varied():
    words = [set(nouns) | set(verbs) for nouns, verbs in map(vocabulary, SPLITS)]
    assert not (words[0] & words[1] or words[0] & words[2] or words[1] & words[2])
    drawn = {split: {sentence(split, np.random.default_rng(i)) for i in range(300)} for split in SPLITS}
    for split, others in (("dev", ("train", "test")), ("test", ("train", "dev"))):
        assert not any(drawn[split] & drawn[other] for other in others)
    assert all(len(sentences) > 280 for sentences in drawn.values())
    assert not any("{" in text or "  " in text for texts in drawn.values() for text in texts)


def test_sentences_cover_the_sounds_of_english():
    pytest.importorskip("espeakng_loader")
    speaker, voice = Speaker("espeak"), Voice("en-us+m3")
    for split in SPLITS:
        rng = np.random.default_rng(0)
        text = " ".join(sentence(split, rng) for _ in range(60))
        heard = "".join(p.ipa for p in speaker.say(text, voice).phones)
        assert not set("pbmfvθðszʃʒtdnlɹkɡŋhjwæɛɪiʌəɑɔʊu") - set(heard), split
