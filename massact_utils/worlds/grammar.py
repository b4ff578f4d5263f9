"""Grammar: a world's captions as an ordered list of phrases, said and read back."""

from difflib import get_close_matches
from typing import NamedTuple


class Attribute(NamedTuple):
    """One thing that a caption may name: its `words`, the `part` of the picture that it is about ("subject",
    "companion", "ground" or "whole"), and the `phrase` by which an evaluator is asked for a word, "{}" in its place.
    """

    words: tuple[str, ...]
    part: str
    phrase: str


def say(grammar: tuple[str, ...], words: dict) -> str:
    """The caption of `words` (attribute -> word, None where it is left open) by a grammar.

    A phrase that begins with "?" is left out where one of its words is open.

    >>> say(("a {thing}", "? in {style} style"), {"thing": "fox", "style": None})
    'a fox'
    """
    parts = [part for part in grammar if not (part[0] == "?" and any(words[name] is None for name in _slots(part)))]
    return " ".join(part.removeprefix("? ").format(**words) for part in parts)


def read(grammar: tuple[str, ...], words: dict, text: str) -> dict:
    """The words that a caption names, {attribute: word}; `words` are the allowed ones by attribute.

    Upper and lower case are one. Raises ValueError that names the first word out of place and what may stand there.

    >>> words = {"thing": ["polar bear"], "style": ["Noto"]}
    >>> read(("a {thing}", "? in {style} style"), words, "a polar bear in noto style")
    {'thing': 'polar bear', 'style': 'Noto'}
    """
    text = " ".join(text.lower().replace(",", " ").split())
    spelt = {name: {word.lower().replace(" ", "_"): word for word in allowed} for name, allowed in words.items()}
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
