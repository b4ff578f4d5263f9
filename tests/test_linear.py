"""Linear read-out against planted codes and scipy's analysis of variance."""

import numpy as np
import pytest
from scipy.stats import f_oneway

from massact_utils.measures.linear import explained, read_out

RNG = np.random.default_rng(0)


def planted(n=400, classes=4, size=2.0):
    labels = RNG.integers(0, classes, n)
    x = RNG.normal(size=(n, 5))
    x[:, 2] += size * labels
    return x, labels


def test_a_planted_word_is_read_and_another_is_not():
    x, labels = planted()
    assert read_out(x, labels) > 0.7
    assert abs(read_out(x, RNG.permutation(labels)) - 1 / 4) < 0.1


def test_groups_stay_together():
    """Every group has a code of its own, which a fold that splits groups could learn by heart."""
    groups = np.repeat(np.arange(40), 10)
    labels, code = RNG.integers(0, 2, 40)[groups], RNG.normal(size=(40, 30))[groups]
    assert read_out(code, labels) > 0.95
    assert abs(read_out(code, labels, groups=groups) - 0.5) < 0.25


def test_the_explained_share_is_that_of_an_analysis_of_variance():
    x, labels = planted()
    found = explained(x, labels)
    assert found.argmax() == 2 and found[2] > 0.7 and np.abs(np.delete(found, 2)).max() < 0.05
    for column, share in zip(x.T, found, strict=True):
        f = f_oneway(*(column[labels == k] for k in range(4))).statistic
        between, n = f * 3, len(column) - 4
        assert share == pytest.approx(1 - (n / (n + between)) * (len(column) - 1) / n)


def test_one_label_is_an_error():
    with pytest.raises(ValueError, match="nothing to read"):
        read_out(np.zeros((4, 1)), ["a"] * 4)
