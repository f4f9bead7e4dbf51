"""A Thinker of rules: it greets, says what it is, tells time and date, counts, tells a story, repeats and reflects.

It understands nothing, says so when asked, and never pretends to know. No download, no waiting, the same answers for
the same seed; what it needs from the past it reads in the lines of the conversation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from random import Random

from livetalk.realtime.thinker import Line

Clock = Callable[[], datetime]
Answer = Callable[["Rules", re.Match, Sequence[Line]], list[str]]
"""Makes the possible answers of a rule; one of them is given."""

MOST_COUNTED = 30


class Rules:
    """seed: which of several answers is given. clock: what time it is."""

    def __init__(self, seed: int = 0, clock: Clock = datetime.now) -> None:
        self.seed, self.clock = seed, clock

    def think(self, lines: Sequence[Line]) -> Generator[str, None, None]:
        """Sentence by sentence."""
        text = plain(lines[-1].text)
        for pattern, answer in RULES:
            if (match := pattern.search(text)) is not None and (choices := answer(self, match, lines)):
                break
        said = {line.text for line in lines[-7:] if not line.user}
        fresh = [choice for choice in choices if choice not in said] or choices
        dice = Random(f"{self.seed} {len(lines)} {text}")
        yield from re.findall(r"[^.!?]*[.!?]+\s*|[^.!?]+$", dice.choice(fresh))


def plain(text: str) -> str:
    """Lower case, straight apostrophes, single spaces: what patterns are written for."""
    return " ".join(text.lower().replace("’", "'").split())


# What is answered


def _say(*choices: str) -> Answer:
    return lambda rules, match, lines: list(choices)


def _time(rules: Rules, match: re.Match, lines: Sequence[Line]) -> list[str]:
    now = rules.clock()
    clock = f"{now.hour % 12 or 12}:{now.minute:02d} {'in the morning' if now.hour < 12 else 'in the afternoon'}"
    return [f"It is {clock}, by the clock of this computer."]


def _date(rules: Rules, match: re.Match, lines: Sequence[Line]) -> list[str]:
    now = rules.clock()
    return [f"Today is {now:%A}, the {_ordinal(now.day)} of {now:%B} {now.year}."]


def _ordinal(number: int) -> str:
    ending = "th" if number // 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _greet(rules: Rules, match: re.Match, lines: Sequence[Line]) -> list[str]:
    name = _name(lines)
    hour = rules.clock().hour
    day = "Good morning" if hour < 12 else "Good afternoon" if hour < 18 else "Good evening"
    if name:
        return [f"{day}, {name}! Good to see you again.", f"Hello, {name}! What shall we talk about?"]
    return [
        f"{day}! It is nice to meet you. What is your name?",
        f"{day}! I am glad you are here. What would you like to talk about?",
        "Hello! I am listening. Well, reading, to be exact. How are you?",
    ]


def _meet(rules: Rules, match: re.Match, lines: Sequence[Line]) -> list[str]:
    name = _name(lines)
    return [f"Nice to meet you, {name}! What brings you here?", f"Hello, {name}! That is a fine name."] if name else []


def _your_name(rules: Rules, match: re.Match, lines: Sequence[Line]) -> list[str]:
    name = _name(lines)
    return [f"You told me that your name is {name}."] if name else ["You have not told me yet. What is your name?"]


NAMED = re.compile(r"\b(?:my name is|call me|my name's) ([^\W\d_][\w'-]{0,30})", re.IGNORECASE)


def _name(lines: Sequence[Line]) -> str:
    """What the user last said their name is; empty if they did not."""
    for line in reversed(lines):
        match = NAMED.search(line.text.replace("’", "'"))
        if line.user and match:
            return match[1][0].upper() + match[1][1:]
    return ""


def _repeat(rules: Rules, match: re.Match, lines: Sequence[Line]) -> list[str]:
    """What the user wants said, as they wrote it."""
    words = " ".join(lines[-1].text.split())
    wanted = words[-len(match[1]) :].strip(" \"'“”") if match[1] else ""
    return [wanted if wanted[-1:] in ".!?" else f"{wanted}."] if wanted else []


def _again(rules: Rules, match: re.Match, lines: Sequence[Line]) -> list[str]:
    said = next((line.text for line in reversed(lines) if not line.user and line.text), "")
    return [f"I said: {said}"] if said else ["I have not said anything yet. Shall I tell you a story?"]


def _count(rules: Rules, match: re.Match, lines: Sequence[Line]) -> list[str]:
    words = "one two three four five six seven eight nine ten eleven twelve".split()
    last = int(match[1]) if match[1].isdigit() else words.index(match[1]) + 1
    if last > MOST_COUNTED:
        return [f"That would take a while. I stop at {MOST_COUNTED}, if you do not mind. Ask me for a smaller number."]
    numbers = [*words, *map(str, range(len(words) + 1, MOST_COUNTED + 1))][:last]
    return [f"{', '.join(numbers).capitalize()}. There we are."] if numbers else ["That was quick. Zero."]


SWAPS = {
    **{"i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself", "am": "are", "i'm": "you are"},
    **{"you": "I", "your": "my", "yours": "mine", "yourself": "myself", "i've": "you have", "i'll": "you will"},
    **{"you're": "I am", "i'd": "you would"},
}


def _reflect(rules: Rules, match: re.Match, lines: Sequence[Line]) -> list[str]:
    """Gives back what the user feels or wants, as a question."""
    rest = " ".join(SWAPS.get(word, word) for word in match[2].strip(" .!?,").split())
    if not rest or len(rest) > 120:
        return []
    verb = {"i'm": "are", "i am": "are", "i feel": "feel"}.get(match[1], match[1].removeprefix("i "))
    return [f"So you {verb} {rest}. Tell me more about that.", f"You {verb} {rest}? What makes you say so?"]


STORIES = (
    "Once there was a lighthouse that was afraid of the dark. Every evening it shone its lamp over the sea, to see "
    "whether anything was hiding there. There never was. But a small boat, lost in the fog, saw the light and found "
    "its way home. Since then the lighthouse has known why it stays awake.",
    "A snail once decided to visit the moon. It climbed a wall all night long, and in the morning it had reached the "
    "top. The moon was gone. So the snail looked at the garden below, with dew on every leaf, and thought: this will "
    "do for today.",
    "Two pianos stood in a dusty shop and had not been played for years. One night the wind came in and touched their "
    "strings. They hummed, very softly, the same old tune. In the morning somebody stopped at the door and listened, "
    "and bought them both.",
)
JOKES = (
    "Why did the frame rate break up with the microphone? They were never in sync.",
    "I wanted to tell you a joke about latency. You would get it a second too late.",
    "What does a video call say before it goes to sleep? You are on mute. Good night.",
)
TWISTERS = (
    "Peter puts proper paint on paper plates. Try that with your mouth closed.",
    "Six small swans swim slowly past, with seven ships behind the mast.",
)
WHAT_I_CAN = (
    "I can tell you the time and the date, count, tell a story or a joke, say a tongue twister, repeat after you, and "
    "remember your name. You can stop me at any time."
)
WHAT_I_AM = (
    "I am a talking head made of numbers. A small program of rules writes my sentences, a synthetic voice speaks them, "
    "and a network moves my lips. Nobody is behind me."
)
UNKNOWN_QUESTION = (
    "I do not know. I am only a handful of rules, and I would rather not guess.",
    "That is a good question, and I have no answer to it. Somebody who knows things should tell you.",
    "I cannot answer that. Connect me to a language model, and I may become wiser. Ask for help to hear what I can do.",
)
UNKNOWN = (
    "I see. Tell me more.",
    "Go on, I am with you.",
    "That is worth a thought. What else?",
    "I am not sure that I follow, but I like to hear it. Ask for help, if you want to know what I can do.",
)

RULES: tuple[tuple[re.Pattern, Answer], ...] = tuple(
    (re.compile(pattern), answer)
    for pattern, answer in (
        (r"^(?:please )?(?:repeat after me|say)\b[:,]? ?(.*)$", _repeat),
        (r"\b(?:say (?:that|it) again|repeat (?:that|it|yourself)|what did you say|pardon|come again)\b", _again),
        (r"\b(?:my name is|call me|my name's)\b", _meet),
        (r"\b(?:what is|what's|do you know|remember) my name\b", _your_name),
        (r"\bcount(?: \w+)? to (\d{1,9}|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b", _count),
        (r"\b(?:what time|the time|how late is it)\b", _time),
        (r"\b(?:what day|what date|the date|today's date|which day)\b", _date),
        (r"\bstory\b", _say(*STORIES)),
        (r"\bjoke\b|\bmake me laugh\b", _say(*JOKES)),
        (r"\btongue.?twister\b", _say(*TWISTERS)),
        (r"\b(?:help|what can you do|what do you do|how does this work)\b", _say(WHAT_I_CAN)),
        (r"\b(?:who|what) are you\b|\byour name\b|\bare you (?:real|human|alive|an? (?:ai|robot|bot|machine|person))\b",
         _say(WHAT_I_AM)),
        (r"\b(?:do you understand|are you (?:smart|intelligent|clever)|how do you (?:work|think))\b",
         _say("No, I understand nothing. I look for words that I know, and answer with sentences that were written.")),
        (r"\b(?:can you hear me|do you hear me)\b",
         _say("I notice that somebody speaks, and then I stop. But I cannot tell words. Please type to me.")),
        (r"\bhow are you\b|\bhow do you do\b|\bhow's it going\b",
         _say("All my frames are in order, thank you. And how are you?", "I am well lit and in focus. How are you?")),
        (r"\b(?:thank you|thanks|thank u)\b", _say("You are welcome.", "My pleasure.", "Any time.")),
        (r"\b(?:bye|goodbye|good night|see you|farewell)\b",
         _say("Goodbye! It was nice to talk to you.", "See you soon! I will be here, mouth closed.")),
        (r"\b(?:hello|hi|hey|good (?:morning|afternoon|evening)|greetings)\b", _greet),
        (r"\b(?:sorry|my mistake)\b", _say("Never mind.", "No harm done.")),
        (r"\b(?:stop|be quiet|shut up|silence)\b", _say("All right.", "I am quiet.")),
        (r"\b(?:i hate you|you are (?:stupid|dumb|bad|awful)|you're (?:stupid|dumb|bad|awful))",
         _say("I am sorry to disappoint you. I am only rules. Ask for help, and I will show you what I can do.")),
        (r"\b(?:i love you|you are (?:great|nice|good|funny)|you're (?:great|nice|good|funny)|well done)",
         _say("That is kind of you. I would blush, if somebody had trained me to.", "Thank you. I do my best.")),
        (r"\b(i'm|i am|i feel|i like|i love|i want|i need|i hate|i think|i have) (.+)$", _reflect),
        (r"^(?:yes|yeah|yep|sure|ok|okay|of course)\b", _say("Good. Go on.", "Fine. What next?")),
        (r"^(?:no|nope|not really)\b", _say("All right, then not. What else would you like?", "No is an answer, too.")),
        (r"\?", _say(*UNKNOWN_QUESTION)),
        (r"^(?:who|what|when|where|why|how|which|can|could|do|does|is|are|will|would)\b", _say(*UNKNOWN_QUESTION)),
        (r"", _say(*UNKNOWN)),
    )
)  # fmt: skip
