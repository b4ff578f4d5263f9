"""The ledger: README's findings and docs/ledger.md, made from the evidence in docs/evidence.

    python docs/ledger.py    # make ledger

Evidence whose digest (docs/evidence/digest.py) is no longer that of its notebook is marked stale.
"""

import sys
from pathlib import Path

from massact_utils import places
from massact_utils.results import claims, files

sys.path.insert(0, str(Path(__file__).with_name("evidence")))
from digest import digest

ROOT = Path(__file__).resolve().parents[1]
MARKS = "<!-- results -->\n", "<!-- end of results -->"
FINDINGS = {  # the README's rows: a claim, and what it says to somebody who knows none of our words
    "02.top-above-outside": "Set a dozen massive channels to zero and the picture is gone. A dozen others at zero "
    "cost little.",
    "02.pattern-is-the-subjects": "Their pattern marks the subject: flatten it, and a CLIP no longer reads the "
    "subject's words off the picture, but still the ground's.",
    "04.level-is-around": "Their level paints the ground: copied from another picture, it brings that one's ground.",
    "03.top-above-outside": "Cluster the tokens on them and the subject appears, more exactly than on other channels.",
    "04.more-arrives": "Copied into another picture they bring more of their own picture, subject and ground, than "
    "other channels do. A clean swap of the subject alone is rare.",
    "05.scalar-peak": "They grow where the timestep scales every channel separately (modulation). Trained with one "
    "scale for all channels, the largest stays at about a third of what it reaches otherwise.",
}
EMBEDDED = ("toy", "emoji")  # the README's columns
INTRODUCTION = """\
A claim is a sentence with an owner, a measure and a threshold that stands before the computation. What is found is a
mean over n prompts and its 95 % interval. The claim **holds** when the whole interval lies on the claimed side of the
threshold. It is **contradicted** when the interval lies on the other side, and **undecided** when the interval contains
the threshold or there is none. A claim that is contradicted stays. *Holm* is the verdict after
Holm's correction for the number of a model's claims (1979), which keeps the chance of even one wrong verdict among them
below 5 %. Of the small trainings of notebook 05 the range over seeds stands in the place of the interval; that all
three lie on a named side is by chance alone a case of 1 in 8.

The numbers are *evidence*: what the notebooks found at the size that decides (`make evidence`); its tables stand in
`docs/evidence/`. It is *stale* when the code that made it has changed since and nothing was computed again. `toy` and
`emoji` are embedded models; what they show is no evidence about a large one."""


def rows(root: Path = ROOT) -> list[dict]:
    """The claims of all evidence, by id, the embedded models first; each with `stale`, whether code has changed, and
    `holm`, its verdict after the correction over its model's rows.
    """
    found = []
    for file in sorted(root.glob("docs/evidence/*/provenance.json")):
        stale = {stem[:2]: _stale(root, stem, entry) for stem, entry in files.read_json(file).items()}
        of = files.read_json(file.with_name("claims.json"))
        of = [row for row in of if row["notebook"] in stale]
        corrected = zip(of, claims.after_holm(of), strict=True)
        found += [row | {"stale": stale[row["notebook"]], "holm": verdict} for row, verdict in corrected]
    return sorted(found, key=lambda row: (row["id"], _place(row["model"])))


def sources(rows: list[dict]) -> str:
    """Which numbers are of older code, a sentence for each model; nothing where all are of this code."""
    stale = {}
    for row in rows:
        stale.setdefault(row["model"], set()).update({row["notebook"]} if row["stale"] else ())
    lines = [
        f"The evidence on {claims.escape(model)} is stale for {', '.join(sorted(which))}: code has changed since."
        for model, which in stale.items()
        if which
    ]
    return " ".join(lines) or "All numbers are of this code." * bool(rows)


def table(rows: list[dict]) -> str:
    """The README's findings as Markdown: a line for each, with the verdict on each embedded model."""
    cells = {(row["id"], row["model"]): row for row in rows}
    lines = [_line("what was found", *EMBEDDED), "|---" * (1 + len(EMBEDDED)) + "|"]
    for id, sentence in FINDINGS.items():
        mine = [cells.get((id, model)) for model in EMBEDDED]
        if first := next(filter(None, mine), None):
            levels = f" *{claims.escape(first['note'])}*" * first["note"].endswith(".")
            lines.append(
                _line(sentence + levels + _link(first), *(_verdict(row) if row else "not yet" for row in mine))
            )
    return "\n".join(lines) + "\n"


def page(rows: list[dict]) -> str:
    """The whole ledger as a page of Markdown: the paper's claims, those of other papers, ours."""
    kinds = {"The paper": ["paper"], "Other papers": sorted({r["owner"] for r in rows} - {"paper", "ours"})}
    kinds |= {"Ours": ["ours"]}
    verdicts = ("holds", "contradicted", "undecided")
    count = ", ".join(f"{sum(row['verdict'] == word for row in rows)} {word}" for word in verdicts)
    lost = sum(row["holm"] not in ("", row["verdict"]) for row in rows)
    count += f"; {lost} are undecided after Holm's correction" * bool(lost)
    lines = ["# Every claim", "", INTRODUCTION, "", f"{len(rows)} rows: {count}. {sources(rows)}".strip()]
    for title, owners in kinds.items():
        mine = [row for row in rows if row["owner"] in owners]
        if mine:
            lines += ["", f"## {title}", ""]
            lines += [
                _line("claim", "whose", "measured", "claimed", "model", "found", "Holm", "note"),
                "|---" * 8 + "|",
            ]
        for row in mine:
            measure, model, note = (claims.escape(row[name]) for name in ("measure", "model", "note"))
            sentence = claims.escape(row["sentence"] or row["id"]) + _link(row, "../")
            found = claims.finding(row) + ", stale" * row["stale"], row["holm"]
            lines.append(_line(sentence, _owner(row), measure, _asked(row), model, *found, note))
    return "\n".join(lines) + "\n"


def filled(text: str, rows: list[dict]) -> str:
    """The README with the table between its marks. Raises ValueError where the marks are not there once each."""
    if [text.count(mark) for mark in MARKS] != [1, 1]:
        raise ValueError(f"{MARKS[0].strip()} and {MARKS[1]} have to be there once each; put them back, in this order")
    before, rest = text.split(MARKS[0])
    return f"{before}{MARKS[0]}{table(rows)}\n{sources(rows)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


def main(root: Path = ROOT) -> None:
    """Write README's table and the page; a file in which nothing changes is not written."""
    known, readme = rows(root), root / "README.md"
    for path, text in {readme: filled(readme.read_text(), known), root / "docs" / "ledger.md": page(known)}.items():
        if not path.exists() or path.read_text() != text:
            with places.atomic_write(path) as beside:
                beside.write_text(text)


def _link(row: dict, up: str = "") -> str:
    """A link to the claim's notebook."""
    notebooks = [path.name for path in ROOT.glob(f"notebooks/{row['notebook']}_*.ipynb")]
    return f" ([{row['notebook']}]({up}notebooks/{notebooks[0]}))" if notebooks else ""


def _owner(row: dict) -> str:
    if row["owner"] == "ours":
        return "ours"
    number = claims.PAPER if row["owner"] == "paper" else claims.escape(row["owner"])
    return f"[{'the paper' if row['owner'] == 'paper' else number}](https://arxiv.org/abs/{number})"


def _verdict(row: dict) -> str:
    words = [row["verdict"] if row["verdict"] == "holds" else f"**{row['verdict']}**"]
    words += [f"n = {row['n']}"] if row["n"] else []
    words += [f"{row['holm']} after Holm"] if row["holm"] not in ("", row["verdict"]) else []
    return ", ".join(words + ["stale"] * row["stale"])


def _asked(row: dict) -> str:
    return f"{row['side']} {claims.number(row['threshold'])}"


def _line(*cells: str | None) -> str:
    return f"| {' | '.join((cell or '').replace('|', chr(92) + '|') for cell in cells)} |"


def _place(model: str) -> tuple:
    return {"toy": 0, "emoji": 1}.get(model, 2), model


def _stale(root: Path, stem: str, entry: dict) -> bool:
    notebook = root / "notebooks" / f"{stem}.ipynb"
    return not notebook.exists() or digest(notebook, entry["parameters"]) != entry["digest"]


if __name__ == "__main__":
    main()
