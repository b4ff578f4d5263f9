"""A world of one's own: captions with their words in columns; nothing is drawn, and nothing is composed."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from .grammar import Attribute, nearest

PARTS = {  # a column's name -> the part that its words are about, and how an evaluator is asked for one of them
    "subject": ("subject", "a {}"),
    "companion": ("companion", "a {}"),
    "colour": ("subject", "a {} thing"),
    "ground": ("ground", "a scene {}"),
    "light": ("whole", "a scene {}"),
    "style": ("whole", "{}"),
}


class TableWorld:
    """The world of a table with a column "caption" and columns of words (`PARTS`), empty where a caption names none.

    Raises ValueError for a table without words, and for a word that its caption does not contain.

    >>> table = pd.DataFrame({"caption": ["a fox in the snow"], "subject": ["fox"], "ground": ["in the snow"]})
    >>> TableWorld(table).parse("a fox in the snow").subject
    'fox'
    """

    render = None
    OWN = None

    def __init__(self, table: pd.DataFrame):
        names = [name for name in PARTS if name in table]
        if not names:
            raise ValueError(f"no column of words; a world of one's own has some of: {', '.join(PARTS)}")
        words = table[names].fillna("").astype(str)
        for name in names:
            for i, (caption, word) in enumerate(zip(table.caption, words[name], strict=True)):
                if word.lower() not in str(caption).lower():
                    raise ValueError(f"row {i + 1}: the caption {caption!r} does not contain its {name}, {word!r}")
        self.ATTRIBUTES = {name: Attribute(tuple(sorted(set(words[name]) - {""})), *PARTS[name]) for name in names}
        self.GRAMMAR = tuple(f"{{{name}}}" for name in names)
        rows = words.to_dict("records")
        self._scenes = {
            caption: SimpleNamespace(caption=caption, **{name: word or None for name, word in row.items()})
            for caption, row in zip(table.caption, rows, strict=True)
        }

    def parse(self, text: str):
        """The words of a caption of the table. Raises ValueError, with the nearest ones, for another caption."""
        if text not in self._scenes:
            raise ValueError(f"{text!r} is no caption of this table; it has: {nearest(text, self._scenes)}")
        return self._scenes[text]

    def caption(self, scene) -> str:
        """The caption of a scene."""
        return scene.caption

    def split_of(self, scene) -> str:
        """ "test": no embedded model has seen these captions."""
        return "test"

    def pairs(self, n: int, *, seed: int = 0) -> list[tuple]:
        """n pairs of scenes of the table that name the same and differ in every word; no scene comes twice. Raises
        ValueError where the table has not as many.
        """
        left, drawn = self.sample(len(self._scenes), seed=seed), []
        while left and len(drawn) < n:
            source = left.pop()
            fits = [i for i, other in enumerate(left) if _differ(vars(source), vars(other))]
            drawn += [(source, left.pop(fits[0]))] if fits else []
        if len(drawn) < n:
            raise ValueError(f"the table has {len(drawn)} pairs that differ in every word, and {n} are asked for")
        return drawn

    def sample(self, n: int, *, seed: int = 0, split: str = "all") -> list:
        """n scenes of the table, drawn without repetition while it lasts."""
        scenes, rng = list(self._scenes.values()), np.random.default_rng(seed)
        return [scenes[i] for i in np.resize(rng.permutation(len(scenes)), n)]


def _differ(a: dict, b: dict) -> bool:
    """Whether two scenes name the same and differ in every word."""
    return all((a[name] is None) == (b[name] is None) and (a[name] is None or a[name] != b[name]) for name in a)
