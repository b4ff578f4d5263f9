"""A claim's row follows from its statement and its interval, and a box and a comparison follow from the evidence."""

import json

import pytest

from massact_utils import places
from massact_utils.measures import evidence
from massact_utils.results import claims

MODELS = [file.parent.name for file in places.evidence().glob("*/claims.json")]


def row(id="02.a-b", model="toy", value=0.5, n=12, **words):
    words = {"sentence": "A hurts more than B.", "measure": "PSNR, dB", "threshold": 0.0} | words
    return claims.row(id, model, None, value and (value, value - 0.1, value + 0.1), n=n, **words)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Evidence of one's own: `published(model, rows)`."""
    monkeypatch.setattr(places, "evidence", lambda *names: tmp_path.joinpath(*names))

    def publish(model, rows):
        folder = tmp_path / claims.directory(model)
        folder.mkdir()
        (folder / "claims.json").write_text(json.dumps(rows))
        (folder / "provenance.json").write_text(json.dumps({f"{row['notebook']}_x": {} for row in rows}))
        return folder

    return publish


def test_every_committed_verdict_is_that_of_its_interval():
    rows = [row for model in MODELS for row in claims.evidence(model).values()]
    assert len(rows) > 50 and all(list(row) == claims.FIELDS and row["sentence"].endswith(".") for row in rows)
    told = {row["id"]: row["verdict"] for row in rows}
    assert told == {row["id"]: evidence.verdict(row["low"], row["high"], row["threshold"], row["side"]) for row in rows}


@pytest.mark.parametrize(
    ("low", "high", "side", "verdict"),
    [(0.2, 0.4, "above", "holds"), (0.2, 0.4, "below", "contradicted"), (-0.2, 0.4, "above", "undecided")],
)
def test_the_verdict_follows_from_statement_and_finding(low, high, side, verdict):
    stated = claims.row("02.a", "toy", owner="2510.11538", measure="PSNR", threshold=0.1, side=side)
    assert (stated["value"], stated["verdict"], stated["owner"]) == (None, "undecided", "2510.11538")
    found = claims.row("02.a", "toy", stated, (0.3, low, high), n=12)
    assert found == stated | {"value": 0.3, "low": low, "high": high, "n": 12, "verdict": verdict}
    assert claims.row("02.a", "toy", found, (0.3, float("nan"), float("nan")))["verdict"] == "undecided"


def test_a_statement_made_again_keeps_its_finding_and_another_does_not():
    words = {"measure": "PSNR", "threshold": 0.1}
    found = claims.row("02.a", "toy", claims.row("02.a", "toy", **words), (0.3, 0.2, 0.4), n=12)
    assert claims.row("02.a", "toy", found, **words) == found
    assert claims.row("02.a", "toy", found, **words | {"threshold": 0.2})["value"] is None
    assert claims.row("02.a", "toy", found, **words | {"side": "below"})["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("old", "found", "words", "error"),
    [
        (None, None, {"measure": "PSNR"}, "02.a has no threshold; state one before the computation"),
        (None, (1, 0, 2), {}, "02.a has no threshold; state one before the computation"),
        (None, None, {"threshold": 0, "owner": "SPARK"}, "02.a has the owner 'SPARK'; write 'paper'"),
        ({"threshold": 0, "side": "above"}, (1, 0, 2), {"threshold": -1}, "stated above 0 and is found above -1"),
        ({"threshold": 0, "side": "above"}, (1, 0, 2), {"side": "below"}, "stated above 0 and is found below 0"),
        (None, None, {"threshold": 0, "side": "over"}, "'above' or 'below' its threshold, not 'over'"),
    ],
)
def test_what_is_no_claim(old, found, words, error):
    with pytest.raises(ValueError, match=error):
        claims.row("02.a", "toy", old, found, **words)
    with pytest.raises(TypeError, match="a claim has no treshold; it has owner"):
        claims.row("02.a", "toy", treshold=0)


def test_an_undecided_claim_says_how_many_prompts_would_decide():
    assert claims.finding(row(value=0.05)).endswith("n = 12: **undecided**, about 41 would decide")
    assert claims.finding(row(value=1e-9)).endswith("**undecided**, and 10,000 would not decide")
    decided = evidence.enough(0.05, -0.05, 0.15, 12)
    spread = 0.1 / evidence.student.ppf(0.975, 11) * 12**0.5
    halves = [evidence.student.ppf(0.975, n - 1) * spread / n**0.5 for n in (decided - 1, decided)]
    assert halves[0] >= 0.05 > halves[1]


@pytest.mark.parametrize("n, why", [(6, "fewer than 8 prompts"), (12, "no variance"), (None, "not over prompts")])
def test_a_finding_without_an_interval_says_why(published, n, why):
    found = claims.row("02.a", "toy", threshold=0.0, found=(0.3, float("nan"), float("nan")), n=n)
    assert claims.finding(found).endswith(f"**undecided** (no interval: {why})")
    assert f"undecided (no interval: {why})" in claims.compare_with_evidence([found], "toy")


def test_the_number_of_claims_is_corrected_for():
    """By hand: five p-values, of which 0.03 does not survive four others, and what has none is not counted."""
    ps = (0.001, 0.03, 0.2, 0.004, 0.6)
    half = [float(0.5 * evidence.student.ppf(0.975, 11) / evidence.student.isf(p / 2, 11)) for p in ps]
    rows = [claims.row("02.a", "toy", None, (0.5, 0.5 - h, 0.5 + h), n=12, threshold=0, measure="PSNR") for h in half]
    ranged = claims.row("05.a", "toy", None, (0.5, 0.4, 0.6), threshold=0, measure="peak, 3 seeds")
    assert [row["verdict"] for row in rows] == ["holds", "holds", "undecided", "holds", "undecided"]
    corrected = claims.after_holm([*rows, ranged, row(value=None)])
    assert corrected == ["holds", "undecided", "undecided", "holds", "undecided", "", ""]
    assert claims.finding(rows[1], corrected[1]).endswith("n = 12: holds, undecided after Holm")
    assert claims.finding(ranged, corrected[5]).endswith(
        "(0.4 to 0.6): holds in all of 3 seeds, by chance alone 1 in 8"
    )


def test_a_box_shows_three_claims_of_a_notebook_or_those_it_is_asked_for(published):
    mine = [row("02.d", sentence="Ours."), row("02.c", sentence="One."), row("02.b", sentence="One."), row("03.e")]
    mine += [
        row("02.z", owner="paper", sentence="The paper's."),
        row("02.y", owner="2510.11538", sentence="Another's."),
    ]
    published("toy", mine)
    lines = [line for line in claims.box("02").data.splitlines() if line.startswith("- ")]
    assert [line.split("*")[1] for line in lines] == ["The paper's.", "Another's.", "One."]
    assert lines[2].endswith("0.5 (0.4 to 0.6), n = 12: holds. (Measured: PSNR, dB; claimed: above 0.)")
    asked = claims.box(["03.e", "02.none"], "toy").data
    assert asked.count("- *") == 1 and "A hurts more than B." in asked and "There is no evidence" not in asked
    assert claims.box("02", "big").data.endswith(
        "There is no evidence on big. The numbers are the evidence on toy. [Every claim](https://github.com/massact/massact/blob/main/docs/ledger.md)."
    )
    assert claims.box("05").data == "Nothing has been measured yet."


def test_an_answer_says_what_was_found_and_what_became_of_the_claim_and_the_box_says_the_same(published):
    said = row("02.d", note="A cost 82 %, B 10 %.")
    answer = claims.answer(said).data
    assert answer.startswith(
        "**A cost 82 %, B 10 %.** The claim *A hurts more than B.* **held** (PSNR, dB: 0.50 (0.40 to 0.60)"
    )
    few = claims.answer(row("02.d", note="A.", n=6) | dict(low=None, high=None, verdict="undecided")).data
    assert "**stayed undecided** (PSNR, dB: 0.50, n = 6 (no interval: fewer than 8 prompts); claimed: above 0)" in few
    published("toy", [said])
    assert "- A cost 82 %, B 10 %. The claim *A hurts more than B.* **held** (n = 12)." in claims.box("02").data


def test_a_sentence_is_text_in_a_box(published):
    published("toy", [row(sentence="<img src=x onerror=alert(1)>\n<!-- end -->", measure="<b>&")])
    box = claims.box("02").data
    assert "<" not in box and "&lt;img src=x onerror=alert(1)&gt; &lt;!-- end --&gt;" in box and "&amp;" in box


def test_a_run_is_compared_with_the_evidence(published):
    published(
        "big", [row("02.a", "big"), row("02.b", "big"), row("02.c", "big", value=None, n=None), row("02.d", "big")]
    )
    rows = [row("02.a", "big", value=0.55), row("02.b", "big", value=0.9), row("02.c", "big"), row("02.e", "big")]
    rows += [row("02.d", "big", measure="another")]
    rows += [row("02.d", "big", value, n=4) | dict(low=None, high=None) for value in (0.501, 0.6)]
    lines = claims.compare_with_evidence(rows, "big").splitlines()
    within = [f"{side} this run's interval" for side in ("inside", "outside")]
    words = [*within, "none", "none", "measured otherwise"]
    words += ["the same to two digits", "this run has no interval"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:9]]
    assert ["none" if line[3] == "" else line[3] for line in cells] == words
    assert cells[0][0] == "A hurts more than B. *PSNR, dB, above 0*"
    assert cells[0][1:3] == ["0.55 (0.45 to 0.65), n = 12: holds", "0.50 (0.40 to 0.60), n = 12: holds"]
    assert lines[-1] == "The evidence is that of docs/evidence/big, at the size that decides."
    alone = claims.compare_with_evidence(rows[:1], "other").splitlines()
    assert alone[0] == "| claim | this run |" and alone[-1].startswith("No evidence on other is published")
