"""A claim's row follows from its statement and its interval, and what is written of rows follows from them."""

import pytest

from massact_utils.measures import evidence
from massact_utils.results import claims, published

ROWS = published.ledger()


def row(id="02.a-b", model="toy", value=0.5, n=12, **words):
    words = {"sentence": "A hurts more than B.", "measure": "PSNR, dB", "threshold": 0.0} | words
    return claims.row(id, model, None, value and (value, value - 0.1, value + 0.1), n=n, **words)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['id']} {row['model']}")
def test_a_committed_verdict_is_that_of_its_interval(row):
    assert list(row) == [*claims.FIELDS, "made"] and row["measure"] and row["sentence"].endswith(".")
    if row["threshold"] is None:
        assert row["note"] and row["verdict"] != "contradicted"
    else:
        assert row["verdict"] == evidence.verdict(row["low"], row["high"], row["threshold"], row["side"])


def test_the_readme_has_the_papers_three_claims_first_and_a_dozen_at_most():
    whose = {row["id"]: row["owner"] for row in ROWS}
    assert len(claims.HEADLINES) <= 12 and set(claims.HEADLINES) <= set(whose)
    assert [(whose[id], id[:2]) for id in claims.HEADLINES[:3]] == [("paper", "02"), ("paper", "03"), ("paper", "04")]


@pytest.mark.parametrize(
    ("low", "high", "side", "verdict"),
    [(0.2, 0.4, "above", "holds"), (0.2, 0.4, "below", "contradicted"), (-0.2, 0.4, "above", "undecided")],
)
def test_the_verdict_follows_from_what_was_stated_and_found(low, high, side, verdict):
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


def test_a_verdict_of_the_caller_stands_where_no_threshold_does():
    assert claims.row("02.a", "toy", None, (0.3, 0.2, 0.4), holds=True)["verdict"] == "holds"
    assert claims.row("02.a", "toy", None, (0.3, 0.2, 0.4), holds=False)["verdict"] == "undecided"
    assert claims.row("02.a", "toy", None, (0.3, 0.2, 0.4), holds=False, threshold=0)["verdict"] == "holds"
    assert claims.row("02.a", "toy", None, (0.3, 0.2, 0.4), holds=False, threshold=1)["verdict"] == "contradicted"


@pytest.mark.parametrize(
    ("old", "found", "words", "told"),
    [
        (None, None, {"measure": "PSNR"}, "02.a has no threshold; state one before the computation"),
        (None, (1, 0, 2), {}, "02.a has no threshold; state one before the computation"),
        (None, None, {"threshold": 0, "owner": "SPARK"}, "02.a has the owner 'SPARK'; write 'paper'"),
        ({"threshold": 0, "side": "above"}, (1, 0, 2), {"threshold": -1}, "stated above 0 and is found above -1"),
        ({"threshold": 0, "side": "above"}, (1, 0, 2), {"side": "below"}, "stated above 0 and is found below 0"),
        (None, None, {"threshold": 0, "side": "over"}, "'above' or 'below' its threshold, not 'over'"),
    ],
)
def test_what_is_no_claim(old, found, words, told):
    with pytest.raises(ValueError, match=told):
        claims.row("02.a", "toy", old, found, **words)
    with pytest.raises(TypeError, match="a claim has no treshold; it has owner"):
        claims.row("02.a", "toy", treshold=0)


def test_a_claim_that_is_contradicted_stays_in_the_table():
    rows = [row(), row("02.c", value=-1.234567), row("03.d", value=None, n=None), row("03.e", value=0.05)]
    lines = claims.table(rows, [r["id"] for r in rows]).splitlines()
    assert lines[0] == "| claim | whose | measured | toy |" and len(lines) == 6
    start = "| A hurts more than B. ([02](notebooks/02_disruption.ipynb)) | ours | PSNR, dB, above 0 |"
    assert lines[2] == f"{start} 0.5 (0.4 to 0.6), n = 12: holds |"
    assert lines[3] == f"{start} -1.23 (-1.33 to -1.13), n = 12: **contradicted** |"
    assert lines[4].endswith("| not measured |")
    assert lines[5].endswith("| 0.05 (-0.05 to 0.15), n = 12: **undecided**, about 41 would decide |")
    page = claims.page(rows)
    assert "4 rows: 1 holds, 1 contradicted, 2 undecided." in page
    assert "[02](../notebooks/02_disruption.ipynb)" in page


def test_every_model_has_a_column():
    rows = [row(model="flux.2-klein-4b", value=0.25), row(), row("03.d", model="flux.2-klein-4b", owner="paper")]
    lines = claims.table(rows, ["03.d", "02.a-b", "04.none"]).splitlines()
    assert lines[0] == "| claim | whose | measured | toy | flux.2-klein-4b |" and len(lines) == 4
    assert lines[2].endswith("|  | 0.5 (0.4 to 0.6), n = 12: holds |")
    assert "[the paper](https://arxiv.org/abs/2605.13974)" in lines[2]
    assert lines[3].endswith("| 0.5 (0.4 to 0.6), n = 12: holds | 0.25 (0.15 to 0.35), n = 12: holds |")


def test_a_stroke_in_a_sentence_does_not_end_its_cell():
    (*_, line) = claims.table([row(measure="|a| - |b|")], ["02.a-b"]).splitlines()
    assert r"\|a\| - \|b\|" in line


def test_the_page_goes_from_the_paper_to_others_to_ours():
    rows = [row("01.a"), row("02.b", owner="2510.11538", sentence="Other."), row("03.c", owner="paper", sentence="It.")]
    page = claims.page(rows)
    places = [page.index(words) for words in ("## The paper", "It.", "## Other papers", "Other.", "## Ours", "A hurts")]
    assert places == sorted(places)
    assert "## Other papers" not in claims.page(rows[:1])


def test_an_undecided_claim_says_how_many_prompts_would_decide():
    assert claims.told(row(value=0.05)).endswith("n = 12: **undecided**, about 41 would decide")
    assert claims.told(row(value=1e-9)).endswith("**undecided**, and 10,000 would not decide")
    decided = evidence.enough(0.05, -0.05, 0.15, 12)
    spread = 0.1 / evidence.student.ppf(0.975, 11) * 12**0.5
    halves = [evidence.student.ppf(0.975, n - 1) * spread / n**0.5 for n in (decided - 1, decided)]
    assert halves[0] >= 0.05 > halves[1]


def test_stale_and_default_runs_are_told_apart():
    rows = [row() | {"made": "stale"}, row("03.b") | {"made": "evidence"}, row("04.c") | {"made": "default run"}]
    lines = claims.table(rows, ["02.a-b", "03.b", "04.c"]).splitlines()
    assert [line.endswith("holds, stale |") for line in lines[2:]] == [True, False, False]
    told = claims.sources(rows)
    assert told.startswith(
        "The numbers on toy are from evidence (03) and stale evidence, made by code that has changed"
    )
    assert "a default run, a demonstration with few images (04)" in told and told in claims.page(rows)


def test_a_box_has_three_sentences_with_the_numbers_of_every_model():
    headline = claims.HEADLINES[0]  # of notebook 02
    rows = [row(headline, model, owner="paper", sentence="Both.") for model in ("toy", "big")]
    rows += [row("02.a", sentence="One."), row("02.b", sentence="One."), row("02.c", sentence="Two.")]
    rows += [row("02.d"), row("03.e")]
    lines = [line for line in claims.box(rows, "02").splitlines() if line.startswith("- ")]
    assert [line.split("*")[1] for line in lines] == ["Both.", "One.", "Two."]
    assert "On toy: 0.5 (0.4 to 0.6), n = 12: holds; on big: 0.5 (0.4 to 0.6), n = 12: holds." in lines[0]
    assert "(Measured: PSNR, dB; claimed: above 0.)" in lines[1]
    assert "Nothing has been measured yet" in claims.box(rows, "05")
