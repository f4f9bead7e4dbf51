import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetalk.realtime.sentences import LONGEST, Sentences

TEXTS = st.text(st.sampled_from("abc Dr.?!…,;\n\"'1") | st.characters(), max_size=400)


def cut(text: str, sizes: list[int]) -> list[str]:
    sentences, out, at = Sentences(), [], 0
    for size in [*sizes, len(text) + 1]:
        out += sentences.push(text[at : at + size])
        at += size
    return out + sentences.flush()


@given(TEXTS, st.lists(st.integers(0, 30), max_size=40))
def test_pieces_change_nothing(text, sizes):
    whole = cut(text, [])
    assert cut(text, sizes) == whole
    assert " ".join(whole).split() == text.split() or max(map(len, whole)) == LONGEST
    assert all(whole) and all(len(sentence) <= LONGEST for sentence in whole)


@given(TEXTS)
def test_one_can_be_used_again(text):
    sentences = Sentences()
    first = sentences.push(text) + sentences.flush()
    assert sentences.push(text) + sentences.flush() == first


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Ada has 3.5 apples, e.g. red ones. Yes.", ["Dr. Ada has 3.5 apples,", "e.g. red ones.", "Yes."]),
        ('She said "stop!" Then she left... Gone.', ['She said "stop!"', "Then she left...", "Gone."]),
        ("Well, no. I think that, all in all, it is.", ["Well, no.", "I think that, all in all, it is."]),
        ("First line\nsecond line", ["First line", "second line"]),
        ("  \n ", []),
    ],
)
def test_sentences(text, wanted):
    assert cut(text, []) == wanted


def test_a_sentence_is_given_as_soon_as_it_is_whole():
    sentences = Sentences()
    assert sentences.push("I am here.") == [] and sentences.push(" ") == ["I am here."]
    assert sentences.push("And you") == [] and sentences.flush() == ["And you"]


def test_what_never_ends_is_cut_between_words():
    parts = cut("word " * 200, [])
    assert all(len(part) <= LONGEST for part in parts) and " ".join(parts) == ("word " * 200).strip()
    assert [len(part) for part in cut("x" * 1000, [])] == [240, 240, 240, 240, 40]
