"""Grammar: a world's captions as an ordered list of phrases, said and read back; and what every world checks."""

from difflib import get_close_matches
from typing import NamedTuple

import numpy as np


class Attribute(NamedTuple):
    """One thing that a caption may name: its `words`, the `part` of the picture that it is about ("subject",
    "companion", "ground" or "whole"), and the `phrase` by which an evaluator is asked for a word, "{}" in its place.
    """

    words: tuple[str, ...]
    part: str
    phrase: str


LAYOUT = ("size", "place")  # attributes of a subject that say where it is and not what


def readable(world, part: str | None = None) -> dict[str, Attribute]:
    """The attributes that evaluators read, of one part or of all: without the companion's, which half of the scenes
    have not.
    """
    return {n: a for n, a in world.ATTRIBUTES.items() if a.part != "companion" and part in (None, a.part)}


def check(scene, attributes: dict[str, Attribute], optional) -> None:
    """Raise ValueError, with the nearest words, for a scene with a word that is unknown, or without one that is not
    `optional`.
    """
    for name, attribute in attributes.items():
        word = getattr(scene, name)
        if word not in attribute.words and not (word is None and name in optional):
            raise ValueError(f"{name} {word!r} is unknown; allowed: {nearest(str(word), attribute.words)}")


def check_split(split: str, *allowed: str) -> None:
    """Raise ValueError for another split."""
    if split not in allowed:
        raise ValueError(f"split {split!r} is unknown; allowed: {', '.join(allowed)}")


def draw_pairs(world, n: int, names, seed: int) -> list[tuple]:
    """n pairs of scenes of the test split that name `names`, differ in each, and whose subjects can change places; no
    scene comes twice.
    """
    about = {name for name in readable(world, "subject") if name not in LAYOUT}
    rng, drawn, used = np.random.default_rng(seed), [], set()
    while len(drawn) < n:
        two = {name: [str(w) for w in rng.choice(world.ATTRIBUTES[name].words, 2, replace=False)] for name in names}
        try:
            pair = tuple(world.Scene(**{name: words[i] for name, words in two.items()}) for i in (0, 1))
            [world.Scene(**{name: words[i ^ (name in about)] for name, words in two.items()}) for i in (0, 1)]
        except ValueError:  # words that cannot stand together
            continue
        if {world.split_of(scene) for scene in pair} == {"test"} and not {*pair} & used:
            drawn.append(pair)
            used |= {*pair}
    return drawn


def phrases(world, scene, part: str) -> list[str]:
    """What a caption says of a part, without size and place: each phrase from its first word about the part on.

    >>> from massact_utils.worlds import toyworld
    >>> phrases(toyworld, toyworld.parse("a small red star at the left on a blue plain ground"), "ground")
    ['blue plain ground']
    """
    words = {name: getattr(scene, name) for name in world.ATTRIBUTES}
    names = {n for n in readable(world, part) if n not in LAYOUT and words[n] is not None}
    found = []
    for phrase in world.GRAMMAR:
        slots = phrase.removeprefix("? ").split()
        about = [i for i, slot in enumerate(slots) if slot.strip("{},") in names and slot[0] == "{"]
        found += [" ".join(slots[about[0] :]).format(**words)] if about else []
    return found


def say(grammar: tuple[str, ...], words: dict) -> str:
    """The caption of `words` (attribute -> word, None where it is left open) by a grammar.

    A phrase that begins with "?" is left out where one of its words is open.

    >>> say(("a {thing}", "? in {style} style"), {"thing": "fox", "style": None})
    'a fox'
    """
    parts = [part for part in grammar if not (part[0] == "?" and any(words[name] is None for name in _slots(part)))]
    return " ".join(part.removeprefix("? ").format(**words) for part in parts)


def read(grammar: tuple[str, ...], attributes: dict[str, Attribute], text: str) -> dict:
    """The words that a caption names, {attribute: word}.

    Upper and lower case are one. Raises ValueError that names the first word out of place and what may stand there.

    >>> words = {"thing": ("polar bear",), "style": ("Noto",)}
    >>> named = {name: Attribute(some, "subject", "a {}") for name, some in words.items()}
    >>> read(("a {thing}", "? in {style} style"), named, "a polar bear in noto style")
    {'thing': 'polar bear', 'style': 'Noto'}
    """
    text = " ".join(text.lower().replace(",", " ").split())
    spelt = {name: {word.lower().replace(" ", "_"): word for word in a.words} for name, a in attributes.items()}
    joined = text
    for word in {word for allowed in spelt.values() for word in allowed if "_" in word}:
        joined = joined.replace(word.replace("_", " "), word)
    tokens, named, at, skipped = joined.split(), {}, 0, []
    for part in grammar:
        slots = part.removeprefix("? ").replace(",", "").split()
        for i, slot in enumerate(slots):
            name = slot.strip("{}") if slot[0] == "{" else None
            allowed = list(spelt[name]) if name else [slot]
            token = tokens[at] if at < len(tokens) else "(nothing)"
            if token not in allowed:
                if i == 0 and part[0] == "?":
                    skipped += allowed
                    break
                allowed = [*(skipped if i == 0 else []), *allowed]
                raise ValueError(f"word {at + 1} of {text!r} is {token!r}; allowed there: {nearest(token, allowed)}")
            named |= {name: spelt[name][token]} if name else {}
            at += 1
        else:
            skipped = []
    if at < len(tokens):
        more = f"; allowed there: {', '.join(skipped)}, or nothing" if skipped else "; a caption ends there"
        raise ValueError(f"word {at + 1} of {text!r} is {tokens[at]!r}{more}")
    return named


def nearest(word: str, allowed, most: int = 12) -> str:
    """The allowed words as text; of many, the few that are spelt most like `word`.

    >>> nearest("foks", ["ant", "fox", "owl"], most=2)
    'fox, ... (3 in all)'
    """
    allowed = list(allowed)
    if len(allowed) <= most:
        return ", ".join(allowed)
    close = get_close_matches(word, allowed, n=5, cutoff=0.4) or allowed[:5]
    return f"{', '.join(close)}, ... ({len(allowed)} in all)"


def _slots(part: str) -> list[str]:
    return [word.strip("{},") for word in part.split() if word[0] == "{"]
