"""The ledger of claims: what was stated before a computation, what it found, and the tables of README and site.

Notebooks leave rows in claims.json by `Run.claim`; `published` brings them into the committed ledger and its pages.
"""

import json
import math
import re
from pathlib import Path

from .. import places
from ..measures import evidence

ROOT = places.PACKAGE.parent
PAPER = "2605.13974"
STATED = {"owner": "ours", "sentence": "", "measure": "", "threshold": None, "side": "above", "note": ""}
FOUND = ["value", "low", "high", "n"]
FIELDS = ["id", "owner", "sentence", "measure", *FOUND, "threshold", "side", "verdict", "note", "model", "notebook"]
HEADLINES = (  # the README's rows: the paper's three claims, then others that bear on them; a dozen at most
    "02.top-above-outside",
    "03.top-above-outside",
    "04.more-arrives",
    "02.top-above-bottom",
    "04.subject-follows",
    "02.pattern-is-the-subjects",
    "02.one-layer-keeps",
    "03.top-above-outside-anywhere",
    "03.top-above-caption",
    "04.level-is-around",
    "04.above-outside",
    "01.grows-toward-the-image",
)
BOXES = (  # what a notebook's box shows first, beside the README's rows
    "05.scalar-peak",
    "05.rotated-peak",
    "05.base-lead",
)
INTRODUCTION = """\
A claim is a sentence with an owner, a measure and a threshold that stands before the computation. What is found is a
mean over n prompts and its 95 % interval. The claim **holds** when the whole interval lies on the claimed side of the
threshold. It is **contradicted** when the interval lies on the other side, and **undecided** when the interval contains
the threshold or there is none. A claim that is contradicted stays. Of the small trainings of notebook 05 the range over
seeds stands in the place of the interval.

*Evidence* is what the notebooks found at the size that decides (`make evidence`); its tables stand in `docs/evidence/`.
It is *stale* when the code that made it has changed since. The other rows are from one default run of a notebook: a
demonstration of a minute, with too few images to decide much. `toy` is the embedded model; what it shows is no evidence
about a large one."""
UNDECIDABLE = 10_000  # prompts, beyond which a claim counts as one that more prompts will not decide


def row(id: str, model: str, old: dict | None = None, found=None, *, n=None, holds=None, **words) -> dict:
    """The row that comes in place of an `old` one: a statement where nothing is `found`, else what was found of it.

    `words` as in STATED, None for what is not said; `found` is (value, low, high), nan where there is none. A statement
    that is made again keeps what was found of it. Without a threshold the verdict is what `holds` says, as it was
    before thresholds were kept.

    Raises ValueError for an owner that is none, for a statement without a threshold, for a finding of which nothing was
    stated, and for one that moves the threshold or its side; TypeError for a word that is none of STATED.
    """
    if not words.keys() <= STATED.keys():
        raise TypeError(f"a claim has no {', '.join(words.keys() - STATED.keys())}; it has {', '.join(STATED)}")
    old, words = old or {}, {name: word for name, word in words.items() if word is not None}
    before = {name: old[name] for name in STATED if name in old}
    stated = STATED | (before if found else {}) | words
    if not re.fullmatch(r"paper|ours|\d{4}\.\d{4,5}", stated["owner"]):
        raise ValueError(f"{id} has the owner {stated['owner']!r}; write 'paper' ({PAPER}), 'ours' or an arXiv id")
    if stated["threshold"] is None and holds is None:
        raise ValueError(f"{id} has no threshold; state one before the computation, as in threshold=0, side='above'")
    if found:
        was, now = ((words.get("threshold"), words.get("side")) for words in (before, stated))
        if was[0] is not None and was != now:
            raise ValueError(
                f"{id} was stated {was[1]} {was[0]} and is found {now[1]} {now[0]}; state it anew, without a value"
            )
        numbers = dict(zip(FOUND, [*map(_finite, found), None if n is None else int(n)], strict=True))
    else:
        same = all(stated[name] == before.get(name) for name in STATED if name != "note")
        numbers = {name: old.get(name) if same else None for name in FOUND}
    if stated["threshold"] is None:
        said = "holds" if holds else "undecided"
    else:
        said = evidence.verdict(numbers["low"], numbers["high"], stated["threshold"], stated["side"])
    made = stated | numbers | {"id": id, "verdict": said, "model": model, "notebook": id.partition(".")[0]}
    return {name: made[name] for name in FIELDS} | ({} if holds is None else {"holds": bool(holds)})


def told(row: dict) -> str:
    """What was found, as in "0.54 (0.45 to 0.62), n = 6: holds"; of undecided, how many prompts would decide."""
    if row["value"] is None:
        return "not measured"
    value, low, high = (_number(row[part]) for part in ("value", "low", "high"))
    interval = "" if row["low"] is None or row["high"] is None else f" ({low} to {high})"
    size = "" if row["n"] is None else f", n = {row['n']}"
    verdict = row["verdict"] if row["verdict"] == "holds" else f"**{row['verdict']}**"
    return f"{value}{interval}{size}: {verdict}{_decided_by(row)}{', stale' * (row.get('made') == 'stale')}"


def sources(rows: list[dict]) -> str:
    """Where the numbers of each model are from, a sentence for each; rows have `made` as `published.ledger` says it."""
    words = {
        "evidence": "evidence",
        "stale": "stale evidence, made by code that has changed since",
        "default run": "a default run, a demonstration with few images",
    }
    told, several = [], len({row["notebook"] for row in rows}) > 1
    for model in _models(rows):
        mine, parts = [row for row in rows if row["model"] == model], []
        for made, word in words.items():
            numbers = sorted({row["notebook"] for row in mine if row.get("made") == made})
            parts += [f"{word} ({', '.join(numbers)})" if several else word] * bool(numbers)
        told += [f"The numbers on {model} are from {' and '.join(parts)}."] if parts else []
    return " ".join(told)


def collect(folder) -> list[dict]:
    """The rows of every claims.json at or under a folder; of two rows with one id and model the later-written stays."""
    files = sorted(Path(folder).rglob("claims.json"), key=lambda path: path.stat().st_mtime_ns)
    rows = {(row["id"], row["model"]): row for file in files for row in json.loads(file.read_text())}
    return [{name: rows[key][name] for name in FIELDS} for key in sorted(rows)]


def merge(old: list[dict], new: list[dict]) -> list[dict]:
    """The old rows, where `new` holds nothing of the same notebook and model, and the new ones, by id and model."""
    fresh = {(row["notebook"], row["model"]) for row in new}
    kept = [row for row in old if (row["notebook"], row["model"]) not in fresh]
    return sorted(kept + new, key=lambda row: (row["id"], row["model"] != "toy", row["model"]))


def table(rows: list[dict], ids=HEADLINES) -> str:
    """Some of the rows as Markdown, in the order of `ids`: a line for each claim, a column for each model."""
    if not rows:
        return "No claims yet.\n"
    models = _models(rows)
    cells = {(row["id"], row["model"]): row for row in rows}
    lines = [_line("claim", "whose", "measured", *models), "|---" * (3 + len(models)) + "|"]
    for id in ids:
        mine = [cells.get((id, model)) for model in models]
        first = next(filter(None, mine), None)
        if first:
            measured = ", ".join(filter(None, [first["measure"] or first["note"], _asked(first)]))
            lines.append(_line(_link(first), _owner(first["owner"]), measured, *(r and told(r) for r in mine)))
    return "\n".join(lines) + "\n"


def page(rows: list[dict]) -> str:
    """The whole ledger as a page of Markdown: the paper's claims, those of other papers, ours."""
    kinds = {"The paper": ["paper"], "Other papers": sorted({r["owner"] for r in rows} - {"paper", "ours"})}
    kinds |= {"Ours": ["ours"]}
    words = ("holds", "contradicted", "undecided")
    count = ", ".join(f"{sum(row['verdict'] == word for row in rows)} {word}" for word in words)
    lines = ["# Every claim", "", INTRODUCTION, "", f"{len(rows)} rows: {count}. {sources(rows)}".strip()]
    for title, owners in kinds.items():
        mine = [row for row in rows if row["owner"] in owners]
        if mine:
            lines += ["", f"## {title}", ""]
            lines += [_line("claim", "whose", "measured", "claimed", "model", "found", "note"), "|---" * 7 + "|"]
        for row in mine:
            cells = row["measure"], _asked(row), row["model"], told(row), row["note"]
            lines.append(_line(_link(row, "../"), _owner(row["owner"]), *cells))
    return "\n".join(lines) + "\n"


def box(rows: list[dict], number: str) -> str:
    """What is known of a notebook's claims, as Markdown: three sentences, with numbers on every model and their source.

    The three are the notebook's rows of HEADLINES and BOXES, then the paper's claims, those of other papers, ours.
    """
    mine = [row for row in rows if row["notebook"] == number]
    place, owners = {id: i for i, id in enumerate(HEADLINES + BOXES)}, {"paper": 0, "ours": 2}
    order = sorted(mine, key=lambda row: (place.get(row["id"], len(place)), owners.get(row["owner"], 1), row["id"]))
    first = {row["sentence"] or row["id"]: row for row in reversed(order)}  # of claims in the same words the first
    lines = []
    for row in [row for row in order if row in first.values()][:3]:
        found = "; on ".join(f"{other['model']}: {told(other)}" for other in mine if other["id"] == row["id"])
        measured = "; claimed: ".join(filter(None, [row["measure"] or row["note"], _asked(row)]))
        lines.append(f"- *{row['sentence'] or row['id']}* On {found}. (Measured: {measured}.)")
    lines += ["", f"{sources(mine)} [Every claim](../docs/ledger.md)."] if lines else ["Nothing has been measured yet."]
    return "\n".join(["**What is known.**", "", *lines]) + "\n"


def _decided_by(row: dict) -> str:
    """How many prompts would decide an undecided claim, where its interval says it."""
    if row["verdict"] != "undecided" or None in (row["low"], row["high"], row["n"], row["threshold"]) or row["n"] < 2:
        return ""
    found = evidence.enough(row["value"], row["low"], row["high"], row["n"], row["threshold"])
    if found > UNDECIDABLE:
        return f", and {UNDECIDABLE:,} would not decide"
    return f", about {round(found, 2 - len(str(found))):,} would decide"


def _models(rows: list[dict]) -> list[str]:
    """The models of some rows, the embedded one first."""
    return sorted({row["model"] for row in rows}, key=lambda model: (model != "toy", model))


def _finite(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else float(x)


def _number(x: float | None) -> str:
    return f"{x if x and abs(x) > 1e-9 else 0:.3g}"  # rounding left -0 and 1e-17


def _line(*cells: str | None) -> str:
    return f"| {' | '.join((cell or '').replace('|', chr(92) + '|') for cell in cells)} |"


def _asked(row: dict) -> str:
    return "" if row["threshold"] is None else f"{row['side']} {_number(row['threshold'])}"


def _owner(owner: str) -> str:
    if owner == "ours":
        return "ours"
    number = PAPER if owner == "paper" else owner
    return f"[{'the paper' if owner == 'paper' else number}](https://arxiv.org/abs/{number})"


def _link(row: dict, up: str = "") -> str:
    """The claim's sentence, or its id where there is none, with a link to its notebook."""
    number, _, words = row["id"].partition(".")
    notebooks = [path.name for path in ROOT.glob(f"notebooks/{number}_*.ipynb")]
    label = row["sentence"] or f"{number} {re.sub('[-_.]', ' ', words)}"
    return f"{label} ([{number}]({up}notebooks/{notebooks[0]}))" if notebooks else label
