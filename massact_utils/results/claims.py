"""The ledger of claims: what the notebooks found, collected from their run folders into the README's table."""

import json
import re
from pathlib import Path

from .. import places

ROOT = places.PACKAGE.parent
MARKS = "<!-- results -->\n", "<!-- end of results -->"


def collect(folder) -> list[dict]:
    """The rows of every claims.json at or under a folder; of two rows with one id and model the later-written stays."""
    files = sorted(Path(folder).rglob("claims.json"), key=lambda path: path.stat().st_mtime_ns)
    rows = {(row["id"], row["model"]): row for file in files for row in json.loads(file.read_text())}
    return [rows[key] for key in sorted(rows)]


def merge(old: list[dict], new: list[dict]) -> list[dict]:
    """The old rows, where `new` holds nothing of the same notebook and model, and the new ones, by id and model."""
    fresh = {(row["notebook"], row["model"]) for row in new}
    kept = [row for row in old if (row["notebook"], row["model"]) not in fresh]
    return sorted(kept + new, key=lambda row: (row["id"], row["model"] != "toy", row["model"]))


def table(rows: list[dict]) -> str:
    """The rows as Markdown: a line for each claim, a column for each model, whether it holds or not."""
    if not rows:
        return "No claims yet.\n"
    models = sorted({row["model"] for row in rows}, key=lambda model: (model != "toy", model))
    cells = {(row["id"], row["model"]): _cell(row) for row in rows}
    notes = {row["id"]: row["note"] for row in reversed(rows)}
    lines = [f"| claim | measured | {' | '.join(models)} |", "|---" * (2 + len(models)) + "|"]
    for id in dict.fromkeys(row["id"] for row in rows):
        lines.append(f"| {_link(id)} | {notes[id]} | {' | '.join(cells.get((id, m), '') for m in models)} |")
    return "\n".join(lines) + "\n"


def publish(folder, ledger=ROOT / "docs" / "claims.json", readme=ROOT / "README.md") -> None:
    """Bring the claims under a folder into the committed ledger, and the README's table up to date with it."""
    ledger, readme = Path(ledger), Path(readme)
    rows = merge(json.loads(ledger.read_text()) if ledger.exists() else [], collect(folder))
    ledger.parent.mkdir(exist_ok=True)
    ledger.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    before, rest = readme.read_text().split(MARKS[0])
    readme.write_text(before + MARKS[0] + table(rows) + MARKS[1] + rest.split(MARKS[1], 1)[1])


def _cell(row: dict) -> str:
    verdict = "holds" if row["holds"] else "**does not hold**"
    if row["value"] is None:
        return "not measured"
    value, low, high = (_number(row[part]) for part in ("value", "low", "high"))
    interval = "" if row["low"] is None or row["high"] is None else f" ({low} to {high})"
    return f"{value}{interval}, {verdict}"


def _number(x: float | None) -> str:
    return f"{x if x and abs(x) > 1e-9 else 0:.3g}"  # rounding left -0 and 1e-17


def _link(id: str) -> str:
    number, _, words = id.partition(".")
    found = [path.name for path in ROOT.glob(f"notebooks/{number}_*.ipynb")]
    label = f"{number} {re.sub('[-_.]', ' ', words)}"
    return f"[{label}](notebooks/{found[0]})" if found else label
