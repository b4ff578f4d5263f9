"""The exercises of the notebooks: three in each, with a first cell and an answer that runs on any model.

The names that a notebook would have by then are made here of a tiny model with random weights. So the answers are not
checked for what they find, only that they find it.
"""

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

import massact_utils as mu
import tiny
from massact_utils.experiments.statistics import design
from massact_utils.measures import statistics
from training.origins import train, verdicts

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/0[1-5]_*.ipynb"))
TEXTS = ["a red star", "a blue circle", "a green ring", "a pink arrow"]


def exercises(path):
    """The exercises of a notebook as (question, first cell, answer)."""
    (text,) = (cell.source for cell in nbformat.read(path, as_version=4).cells if cell.get("id") == "exercises")
    for part in re.split(r"^(?=\*\*\d\. )", text, flags=re.MULTILINE)[1:]:
        start, answer = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
        assert part.index("<details>") > part.index(start) and part.index("<details>") < part.index(answer)
        yield re.match(r"\*\*\d\. (.*?)\*\*", part)[1], start, answer


ALL = [(path.stem, *found) for path in NOTEBOOKS for found in exercises(path)]


@pytest.fixture(scope="module")
def names(klein):
    """What the notebooks have named by their end, on a tiny model."""
    call = tiny.KLEIN | {"num_inference_steps": 2}
    with mu.attach(klein, mu.ChannelStats()) as stats:
        mu.generate(klein, TEXTS * 2, seeds=range(8), **call)
    data = design(stats.dataset().isel(branch=0, drop=True), 4, 2)
    scores, k = data.mean_abs, 4
    named = dict(mu=mu, np=np, pd=pd, statistics=statistics, pipe=klein, data=data, k=k, seed=0)
    named |= dict(D=scores.sizes["channel"], top=mu.select_channels(scores.mean(["prompt", "seed", "step"]), k))
    table = pd.read_parquet(train.TABLE)
    peaks = verdicts.verdicts(train.plan(), table).query("measure == 'peak' and against == 'base' and seeds > 0")
    named |= dict(table=table, peaks=peaks, numbers=verdicts.numbers(table))
    return named | dict(call=call, options=call, texts=TEXTS, held=TEXTS, rest=TEXTS, scores=scores)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_three_questions(path):
    questions = [question for question, *_ in exercises(path)]
    assert len(questions) == 3 and all(question.endswith("?") for question in questions)


@pytest.mark.parametrize("stem, question, start, answer", ALL, ids=[f"{stem}-{text}" for stem, text, *_ in ALL])
def test_the_first_cell_and_the_answer_run(stem, question, start, answer, names, capsys):
    per_layer = {"scores": names["scores"].mean(["prompt", "seed", "step"])} if stem == "02_disruption" else {}
    exec(start, names | per_layer)
    exec(answer, names | per_layer)
    assert re.search(r"\d", capsys.readouterr().out), "the answer prints no number"
