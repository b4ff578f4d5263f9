"""Claims: what was stated before a computation, what was found, and what the published evidence says of the same.

Notebooks leave rows in claims.json by `Run.claim`. The evidence on a model, docs/evidence/MODEL in a checkout and part
of an installed package, holds the same rows as found at the size that decides.
"""

import html
import math
import re
import tomllib

from .. import places
from ..measures import evidence as intervals
from . import files

DOCS = "https://github.com/massact/massact/blob/main/docs"  # also where there is no checkout
LEDGER = f"{DOCS}/ledger.md"
PAPER = "2605.13974"
STATED = {"owner": "ours", "sentence": "", "measure": "", "threshold": None, "side": "above", "note": ""}
FOUND = ["value", "low", "high", "n"]
FIELDS = ["id", "owner", "sentence", "measure", *FOUND, "threshold", "side", "verdict", "note", "model", "notebook"]
BECAME = {"holds": "held", "contradicted": "was contradicted", "undecided": "stayed undecided"}
UNDECIDABLE = 10_000  # prompts, beyond which a claim counts as one that more prompts will not decide


def row(id: str, model: str, old: dict | None = None, found=None, *, n=None, **words) -> dict:
    """The row that replaces an `old` one: a statement where nothing is `found`, else a finding.

    `words` as in STATED, None for what is left open; `found` is (value, low, high), nan where there is none. A
    statement made again keeps its finding. Raises ValueError for an unknown owner, a statement without a threshold, or
    a finding that moves threshold or side; TypeError for a word that is none of STATED.
    """
    if not words.keys() <= STATED.keys():
        raise TypeError(f"a claim has no {', '.join(words.keys() - STATED.keys())}; it has {', '.join(STATED)}")
    old, words = old or {}, {name: word for name, word in words.items() if word is not None}
    before = {name: old[name] for name in STATED if name in old}
    stated = STATED | (before if found else {}) | words
    if not re.fullmatch(r"paper|ours|\d{4}\.\d{4,5}", stated["owner"]):
        raise ValueError(f"{id} has the owner {stated['owner']!r}; write 'paper' ({PAPER}), 'ours' or an arXiv id")
    if stated["threshold"] is None:
        raise ValueError(f"{id} has no threshold; state one before the computation, as in threshold=0, side='above'")
    if found:
        was, now = (f"{said.get('side')} {said.get('threshold')}" for said in (before or stated, stated))
        if was != now:
            raise ValueError(f"{id} was stated {was} and is found {now}; state it anew, without a value")
        finite = [float(x) if x is not None and math.isfinite(x) else None for x in found]
        numbers = dict(zip(FOUND, [*finite, None if n is None else int(n)], strict=True))
    else:
        same = all(stated[name] == before.get(name) for name in STATED if name != "note")
        numbers = {name: old.get(name) if same else None for name in FOUND}
    verdict = intervals.verdict(numbers["low"], numbers["high"], stated["threshold"], stated["side"])
    made = stated | numbers | {"id": id, "verdict": verdict, "model": model, "notebook": id.partition(".")[0]}
    return {name: made[name] for name in FIELDS}


def evidence(model: str = "toy") -> dict:
    """The published rows on a model by id; none where it has no evidence."""
    folder = places.evidence(directory(model))
    notebooks = {stem[:2] for stem in files.read_json(folder / "provenance.json", {})}
    return {row["id"]: row for row in files.read_json(folder / "claims.json", []) if row["notebook"] in notebooks}


def planned(notebook: str) -> dict:
    """What docs/evidence/plan.toml states for a notebook, as "02": id -> the words of `Run.claim`."""
    rows = tomllib.loads(places.evidence("plan.toml").read_text())["claims"]
    rows = [row for row in rows if row["id"].partition(".")[0] == notebook]
    return {row["id"]: {name: row[name] for name in STATED if name in row} for row in rows}


def directory(model: str) -> str:
    """The name of a model's folder of evidence.

    >>> directory("black-forest-labs/FLUX.1-dev")
    'black-forest-labs-FLUX.1-dev'
    """
    return re.sub(r"[^\w.-]", "-", model).lstrip(".") or "unnamed"


def after_holm(rows: list[dict]) -> list[str]:
    """The verdicts of a model's rows once their number is corrected for (Holm 1979): as many as rows.

    Counted are the rows with an interval over eight prompts or more; where the corrected p-value is 0.05 or above a
    verdict becomes "undecided". A range over fewer seeds has none: "".
    """
    counted = [row["low"] is not None and (row["n"] or 0) >= intervals.PROMPTS for row in rows]
    p = [
        intervals.p_value(row["value"], row["low"], row["high"], row["n"], row["threshold"]) if good else math.nan
        for row, good in zip(rows, counted, strict=True)
    ]
    found = zip(rows, counted, intervals.holm(p), strict=True)
    return [(row["verdict"] if corrected < 0.05 else "undecided") if good else "" for row, good, corrected in found]


def finding(row: dict, holm: str = "") -> str:
    """What was found, as in "0.54 (0.45 to 0.62), n = 16: holds", with the verdict of `after_holm` where it differs; of
    undecided, how many prompts would decide, or why there is no interval.
    """
    if row["value"] is None:
        return "not measured"
    value, low, high = (number(row[part]) for part in ("value", "low", "high"))
    interval = "" if row["low"] is None or row["high"] is None else f" ({low} to {high})"
    size = "" if row["n"] is None else f", n = {row['n']}"
    verdict = row["verdict"] if row["verdict"] == "holds" else f"**{row['verdict']}**"
    other = f", {holm} after Holm" if holm not in ("", row["verdict"]) else ""
    return f"{value}{interval}{size}: {verdict}{_open(row)}{_by_chance(row)}{_decided_by(row)}{other}"


def answer(row: dict):
    """What a run found, as Markdown that a cell shows: the note, which says it in levels, and the claim's fate."""
    from IPython.display import Markdown

    found = _rounded(row).replace(f": {row['verdict']}", "")
    measured = f"{escape(row['measure'])}: {found}; claimed: {row['side']} {number(row['threshold'])}"
    return Markdown(f"**{escape(row['note'])}** {_became(row)} ({measured}).")


def box(which: str | list[str], model: str = "toy"):
    """What the evidence says of claims by id, or of a notebook's first three ("02"), as Markdown that a cell shows: the
    sentence in levels that a claim has as its note, else its measure.

    The paper's claims come first, then other papers', then ours. A model without evidence gets the toy's, and is told.
    """
    from IPython.display import Markdown

    name = model if (rows := evidence(model)) else "toy"
    rows = rows or evidence(name)
    if isinstance(which, str):
        mine = [row for row in rows.values() if row["notebook"] == which]
        mine.sort(key=lambda row: ({"paper": 0, "ours": 2}.get(row["owner"], 1), row["id"]))
        sentences = [*dict.fromkeys(row["sentence"] for row in mine)][:3]
        which = [next(row["id"] for row in mine if row["sentence"] == words) for words in sentences]
    lines, corrected = [], dict(zip(rows, after_holm([*rows.values()]), strict=True))
    for row in (rows[id] for id in which if id in rows):
        asked = f"{row['measure']}; claimed: {row['side']} {number(row['threshold'])}"
        plain = f"- *{escape(row['sentence'])}* {finding(row, corrected[row['id']])}. (Measured: {escape(asked)}.)"
        size = f" (n = {row['n']})" * bool(row["n"])
        lines.append(f"- {escape(row['note'])} {_became(row)}{size}." if row["note"].endswith(".") else plain)
    source = f"The numbers are the evidence on {escape(name)}. [Every claim]({LEDGER})."
    source = source if name == model else f"There is no evidence on {escape(model)}. {source}"
    return Markdown("\n".join([*lines, "", source] if lines else ["Nothing has been measured yet."]))


def compare_with_evidence(rows: list[dict], model: str) -> str:
    """A run's claims beside the evidence on its model, as a table in Markdown, and how the two stand to each other.

    What is said is whether the published value lies in the run's interval, or where the run has none, as over few
    prompts, whether it is the same to two digits. A claim that was measured otherwise is not compared.
    """
    known = evidence(model)
    lines = [(_asked(row), _rounded(row), *_compared(row, known.get(row["id"]))) for row in rows]
    head = [("claim", "this run", "evidence", ""), ("---",) * 4]
    table = [f"| {' | '.join(line[: 4 if known else 2])} |" for line in [*head, *lines]]
    source = f"The evidence is that of docs/evidence/{directory(model)}, at the size that decides."
    alone = f"No evidence on {escape(model)} is published: these are the numbers of this run alone."
    return "\n".join([*table, "", source if known else alone])


def escape(text: str) -> str:
    """Text that stays text in Markdown: no HTML, no line break."""
    return html.escape(" ".join(str(text).split()), quote=False)


def number(x: float | None) -> str:
    """Three digits, without the -0 and the 1e-17 that rounding leaves."""
    return f"{x if x and abs(x) > 1e-9 else 0:.3g}"


def _asked(row: dict) -> str:
    """A claim's sentence and how it was asked, in a cell of a table."""
    asked = f"{row['measure']}, {row['side']} {number(row['threshold'])}"
    return f"{escape(row['sentence'])} *{escape(asked)}*".replace("|", "\\|")


def _compared(row: dict, known: dict | None) -> tuple[str, str]:
    """What is published of a claim, and how this run's row stands to it."""
    if known is None or known["value"] is None:
        return "none", ""
    if row["value"] is None:
        return _rounded(known), ""
    if (row["measure"], row["threshold"]) != (known["measure"], known["threshold"]):
        return _rounded(known), "measured otherwise"
    if row["low"] is None or row["high"] is None:
        same = f"{row['value']:.2g}" == f"{known['value']:.2g}"
        return _rounded(known), "the same to two digits" if same else "this run has no interval"
    inside = row["low"] <= known["value"] <= row["high"]
    return _rounded(known), f"{'inside' if inside else 'outside'} this run's interval"


def _rounded(row: dict) -> str:
    """A finding in one line, to two digits, so that it is the same on every CPU."""
    values = [f"{row[part]:.2f}".replace("-0.00", "0.00") for part in FOUND[:3] if row[part] is not None]
    if not values:
        return "not measured"
    interval = f" ({values[1]} to {values[2]})" if len(values) == 3 else ""
    size = "" if row["n"] is None else f", n = {row['n']}"
    return f"{values[0]}{interval}{size}: {row['verdict']}{_open(row)}"


def _open(row: dict) -> str:
    """Why a finding has no interval, where it has none."""
    if row["low"] is not None and row["high"] is not None:
        return ""
    return f" (no interval: {'not over prompts' if row['n'] is None else intervals.no_interval(row['n'])})"


def _by_chance(row: dict) -> str:
    """Of a range over a few seeds, how often chance alone puts all of them on a named side."""
    named = re.search(r"(\d+) seeds", row["measure"])
    n = row["n"] or int(named[1] if named else 0)
    if row["low"] is None or row["verdict"] == "undecided" or not 0 < n < intervals.PROMPTS:
        return ""
    return f" in all of {n} seeds, by chance alone 1 in {2**n}"


def _became(row: dict) -> str:
    """The claim and its verdict, in words."""
    return f"The claim *{escape(row['sentence'])}* **{BECAME[row['verdict']]}**"


def _decided_by(row: dict) -> str:
    """How many prompts would decide an undecided claim, where its interval says it."""
    if row["verdict"] != "undecided" or None in (row["low"], row["high"], row["n"]) or row["n"] < 2:
        return ""
    most = intervals.enough(row["value"], row["low"], row["high"], row["n"], row["threshold"])
    if most > UNDECIDABLE:
        return f", and {UNDECIDABLE:,} would not decide"
    return f", about {round(most, 2 - len(str(most))):,} would decide"
