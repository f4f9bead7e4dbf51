from datetime import datetime

import pytest

from livetalk.realtime.rules import RULES, STORIES, UNKNOWN, UNKNOWN_QUESTION, Rules, plain
from livetalk.realtime.thinker import Line


def now():
    return datetime(2026, 11, 22, 14, 5)


def talk(*texts: str, seed: int = 0) -> list[str]:
    rules, lines = Rules(seed, now), []
    for text in texts:
        lines.append(Line(True, text))
        lines.append(Line(False, "".join(rules.think(lines)).strip()))
    return [line.text for line in lines if not line.user]


def test_it_speaks_sentence_by_sentence():
    sentences = list(Rules(0, now).think([Line(True, "Tell me a story, please")]))
    assert len(sentences) >= 4 and "".join(sentences) in STORIES


def test_the_same_seed_gives_the_same_answers_and_others_differ():
    texts = ("hello", "tell me a joke", "why?", "I bought a boat", "a story please")
    assert talk(*texts) == talk(*texts)
    assert len({tuple(talk(*texts, seed=seed)) for seed in range(8)}) > 3


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("What time is it?", "It is 2:05 in the afternoon, by the clock of this computer."),
        ("what’s the date today", "Today is Sunday, the 22nd of November 2026."),
        ("Say: Bob's boat is BIG", "Bob's boat is BIG."),
        ('repeat after me "Good night!"', "Good night!"),
        ("Please count to three", "One, two, three. There we are."),
        (
            "count to 14",
            "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, 13, 14. There we are.",
        ),
        ("count to 0", "That was quick. Zero."),
    ],
)
def test_exact_answers(text, wanted):
    assert talk(text) == [wanted]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Hello!", "Good afternoon|Hello"),
        ("who are you", "made of numbers"),
        ("Are you a robot?", "made of numbers"),
        ("can you hear me?", "type"),
        ("help", "tongue twister"),
        ("I am tired of my work.", "You are tired of your work\\?|So you are tired of your work\\."),
        ("I want you to smile", "want me to smile|want I to smile"),
        ("count to 100000", "I stop at 30"),
        ("Thanks a lot", "welcome|pleasure|Any time"),
        ("goodbye", "Goodbye|See you"),
    ],
)
def test_answers_by_what_they_hold(text, part):
    assert __import__("re").search(part, talk(text)[0]), talk(text)


def test_it_remembers_within_the_conversation_only():
    assert "Ada" in talk("My name is ada.", "what is my name?")[1]
    assert talk("what's my name")[0] == "You have not told me yet. What is your name?"
    assert talk("what did you say?")[0].startswith("I have not said anything")
    assert talk("thanks", "pardon?")[1].startswith("I said: ")


def test_it_does_not_pretend_to_know():
    assert talk("Why is the sky blue?")[0] in UNKNOWN_QUESTION and talk("The sky is blue.")[0] in UNKNOWN


def test_it_does_not_say_the_same_twice_in_a_row():
    jokes = talk("joke", "joke", "joke")
    assert len(set(jokes)) == 3


@pytest.mark.parametrize(
    "text", ["?", "...", "say", "say ...", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🎉", "i am " + "x" * 500, "a" * 2000, "my name is !"]
)
def test_there_is_always_an_answer(text):
    assert talk(text)[0]


def test_the_last_rule_takes_everything():
    assert RULES[-1][0].search("") and plain("  It’s\nME ") == "it's me"
