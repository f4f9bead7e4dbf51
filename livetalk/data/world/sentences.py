"""Endless English sentences by grammar, in three disjoint splits.

Every sentence holds a noun and a verb, and the nouns and verbs of a split belong to it alone: a content word goes to
train, dev or test by a hash of its spelling. So no sentence, and no such word, occurs in two splits.
"""

from __future__ import annotations

from functools import cache
from zlib import crc32

import numpy as np

SPLITS = ("train", "dev", "test")

_NOUNS = """
apple bridge garden window river mountain puppy kitten bottle basket pepper bubble camera market paper table chair
harbour village island forest valley meadow thunder feather leather measure treasure pleasure machine station kitchen
vision sugar ocean jacket judge engine orange village cabbage baby robin ribbon rabbit tomato potato banana mango
melon lemon lamp map pump bump shoe fish dish wish watch church peach beach coach boat coat goat road home phone stone
moon spoon room boot fruit juice blue-print voice coin toy boy oyster house mouse cloud crown flower tower shower
hour bird nurse shirt turtle purple-finch earth girl word world worker book cook wood wolf woman bull bush push-cart
father mother brother feather-bed weather cloth tooth path bath mouth month thumb thread throne leaf knife wave glove
stove cave valve vase van violin village-hall visitor evening seven-piece office coffee photo elephant dolphin giraffe
wagon wheel winter water waiter whistle queen square quilt yard yellow-bird yogurt onion canyon lawyer uniform
hammer summer farmer problem system poem album comb ship chip cup cap top shop map-maker lip ladder letter button
planet pencil palace picture parcel package pocket puzzle bicycle balloon bakery bargain barrel battery blanket
teacher doctor painter pilot sailor singer dancer driver captain neighbour uncle cousin zebra lizard prize maze breeze
rose nose cheese museum music magician mirror drawer corner story floor door horse fork storm north-wind sport
""".split()
_VERBS = """
paints moves makes buys brings builds bakes beats borrows opens paints packs picks pushes pulls promises proves
finds follows fixes fills forgets offers leaves loves saves serves visits drives gives watches washes wishes catches
reaches teaches touches chooses chews shares shows shakes pleases measures treasures joins judges manages imagines
throws thanks gathers breathes bathes thinks-about reads writes wraps remembers repairs rolls carries borrows hurries
likes lifts calls tells holds takes keeps cooks cuts counts covers hides hears helps hugs wants warms waters weighs
swallows swaps speaks-of sweeps studies sees sings-about admires mentions notices needs knows burns turns learns
enjoys points-at employs counts-on shouts-at draws drops dreams-of trades tries mends mixes moulds
greets grows grabs guards guesses uses views refuses values yearns-for sells sends smells spots stops zooms-past
""".split()
_ADJECTIVES = """
big small blue brown purple yellow old new warm cold happy busy pretty broken smooth round heavy funny famous clever
quiet noisy strange wooden golden simple perfect empty massive tiny modern useful fresh frozen early other
""".split()
_NAMES = """
Bob Mary Peter Paula Tom Moira Victor Sophie Joe Ruth George Zoe Huw Amy Philip Beth Ravi Yusuf Wendy Charlotte Marcus
Fiona Pam Abby Joyce Theo
""".split()
_ADVERBS = "slowly quickly often never always maybe today tomorrow again quietly everywhere somehow".split()
_PLACES = (
    "at home",
    "in the park",
    "by the old pump",
    "on the boat",
    "above the shop",
    "before five",
    "for a while",
    "with both hands",
    "at the museum",
    "under a big umbrella",
    "in a few months",
    "near my house",
)
_OPENERS = (
    "I believe that",
    "We hope that",
    "People say that",
    "You may have heard that",
    "It seems that",
    "My father thinks that",
    "Of course",
    "By the way,",
    "Maybe",
    "Well,",
)
_NUMBERS = "two three four five six seven eight nine ten eleven twelve forty fifty".split()
_PATTERNS = (
    "{name} {verb} the {adj} {noun} {place}.",
    "{opener} {name} {verb} a {noun} and {verb} the {noun}.",
    "The {adj} {noun} {verb} my {noun}.",
    "Who {verb} the {noun} {place}?",
    "{name} {adverb} {verb} {number} {adj} boxes for the {noun}.",
    "Why is it that every {noun} {verb} us {place}?",
    "Oh, look, {name} {verb} that {adj} {noun}!",
    "Our {noun} is {adj}, but the other {noun} {verb} me more.",
    "{opener} the {noun} {verb} {name}, and the {noun} {verb} you.",
    "If a {noun} {verb} you, give {number} coins to {name}.",
    "{place}, {name} {adverb} {verb} a very {adj} {noun}.",
    "He {verb} it, she {verb} the {noun}, and we move on.",
)


def _split_of(word: str) -> str:
    bucket = crc32(word.encode()) % 6
    return "dev" if bucket == 0 else "test" if bucket == 1 else "train"


@cache
def vocabulary(split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Nouns and verbs of a split, in a fixed order. Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    chosen = (sorted({w for w in words if _split_of(w) == split}) for words in (_NOUNS, _VERBS))
    nouns, verbs = (tuple(word.replace("-", " ") for word in words) for words in chosen)
    return nouns, verbs


def sentence(split: str, rng: np.random.Generator) -> str:
    """One sentence of a split, drawn with `rng`."""
    nouns, verbs = vocabulary(split)
    banks = {
        **{"noun": nouns, "verb": verbs, "adj": _ADJECTIVES, "name": _NAMES, "adverb": _ADVERBS},
        **{"place": _PLACES, "opener": _OPENERS, "number": _NUMBERS},
    }
    words = []
    for piece in _PATTERNS[rng.integers(len(_PATTERNS))].split():
        field = piece.strip("{},.?!")
        drawn = banks[field][rng.integers(len(banks[field]))] if piece.startswith("{") else None
        words.append(piece if drawn is None else piece.replace("{" + field + "}", drawn))
    text = " ".join(words).replace(",,", ",")
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}")
    return text[0].upper() + text[1:]
