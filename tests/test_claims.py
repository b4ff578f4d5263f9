"""The README's table of results is what the committed ledger says."""

import json
from pathlib import Path

import massact_utils as mu
from massact_utils.results import claims

ROOT = Path(__file__).parents[1]


def row(id="02.a-b", model="toy", value=0.5, holds=True, note="PSNR, dB"):
    interval = {"value": value, "low": value and value - 0.1, "high": value and value + 0.1}
    return {"id": id, **interval, "holds": holds, "note": note, "model": model, "notebook": id[:2]}


def test_the_readme_shows_the_ledger():
    rows = json.loads((ROOT / "docs" / "claims.json").read_text())
    readme = (ROOT / "README.md").read_text()
    shown = readme.split(claims.MARKS[0])[1].split(claims.MARKS[1])[0]
    assert shown == claims.table(rows), "run `make notebooks`, or claims.publish on a folder of runs"
    assert [r["id"] for r in rows if not r["holds"]] == [r["id"] for r in claims.merge(rows, []) if not r["holds"]]


def test_a_claim_that_does_not_hold_stays_in_the_table():
    shown = claims.table([row(), row("02.c", value=-1.234567, holds=False), row("03.d", value=None, holds=False)])
    lines = shown.splitlines()
    assert lines[0] == "| claim | measured | toy |" and len(lines) == 5
    assert lines[2].endswith("| PSNR, dB | 0.5 (0.4 to 0.6), holds |")
    assert lines[3].endswith("| -1.23 (-1.33 to -1.13), **does not hold** |")
    assert lines[4].endswith("| not measured |")


def test_every_model_has_a_column():
    shown = claims.table([row(model="flux.2-klein-4b", value=0.25), row(), row("03.d", model="flux.2-klein-4b")])
    lines = shown.splitlines()
    assert lines[0] == "| claim | measured | toy | flux.2-klein-4b |"
    assert lines[2].endswith("| 0.5 (0.4 to 0.6), holds | 0.25 (0.15 to 0.35), holds |")
    assert lines[3].endswith("|  | 0.5 (0.4 to 0.6), holds |")


def test_publishing_replaces_a_notebooks_rows_and_keeps_other_models(tmp_path):
    run = mu.Run(tmp_path / "runs" / "02_disruption" / "ab12", {"model": "toy"})
    run.claim("02.new", 1.0, 0.9, 1.1, True, "a share")
    ledger, readme = tmp_path / "docs" / "claims.json", tmp_path / "README.md"
    ledger.parent.mkdir()
    ledger.write_text(json.dumps([row("02.gone"), row("02.kept", model="big"), row("01.kept")]))
    readme.write_text(f"before\n{claims.MARKS[0]}old\n{claims.MARKS[1]}\nafter\n")
    claims.publish(tmp_path / "runs", ledger, readme)
    assert [r["id"] for r in json.loads(ledger.read_text())] == ["01.kept", "02.kept", "02.new"]
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith(f"{claims.MARKS[1]}\nafter\n")
    assert "02 gone" not in text and "old\n" not in text and "1 (0.9 to 1.1), holds" in text
