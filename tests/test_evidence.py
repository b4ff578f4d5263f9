"""The interval covers the truth as often as it says, on data like the notebooks'; what a verdict and a count say."""

import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import binomtest, t, ttest_1samp

from massact_utils.measures.evidence import (
    enough,
    holm,
    no_interval,
    p_value,
    paired_interval,
    sign_interval,
    verdict,
)

CASES = 1000


def verdicts(rng, made, truth):
    """Over many samples: share whose interval covers the truth, and share that decides a claim about it."""
    found = [paired_interval(*made(rng)) for _ in range(CASES)]
    said = [verdict(low, high, threshold=truth) for _, low, high in found]
    covered = np.mean([not (low > truth or high < truth) for _, low, high in found])  # no interval excludes nothing
    assert covered == pytest.approx(1 - np.mean([word != "undecided" for word in said]))
    return covered


def normal(n, effect):
    return lambda rng: (rng.normal(0, 3, n)[:, None] + rng.normal((effect, 0), 1, (n, 2))).T


def changed(n, better, worse):  # 0/1 scores: their differences are -1, 0 and 1
    return lambda rng: (rng.choice([-1, 0, 1], n, p=[worse, 1 - better - worse, better]),)


def skewed(n, effect):
    return lambda rng: (rng.exponential(1, n) + effect, rng.exponential(1, n))


def thirds(n, effect):  # three words of a caption read, each right or wrong
    return lambda rng: (rng.binomial(3, 0.3 + effect, n) / 3, rng.binomial(3, 0.3, n) / 3)


def seeds(n, effect):  # prompt x seed, where prompts differ and so do the seeds of one
    return lambda rng: (rng.normal(effect, 1, (n, 1)) + rng.normal(0, 1, (n, 3)), rng.normal(0, 1, (n, 3)))


def draws(n, effect):  # a draw is better or worse for all prompts, and for some of them
    def made(rng):
        control = rng.normal(0, 0.4, (8, 1, 1)) + rng.normal(0, 0.7, (8, n, 3)) + rng.normal(0, 0.5, (8, n, 1))
        return rng.normal(effect, 1, (n, 1)) + rng.normal(0, 0.5, (n, 3)), control

    return made


def drawn_scores(n, effect):  # the same of 0/1 scores
    def made(rng):
        control = 0.5 - effect + rng.uniform(-0.2, 0.2, (8, 1, 1)) + rng.uniform(-0.2, 0.2, (1, n, 1))
        return (rng.random((n, 3)) < 0.5).astype(float), (rng.random((8, n, 3)) < control).astype(float)

    return made


STUDY = [(kind, n) for n in (12, 64, 128) for kind in (normal, skewed, thirds, seeds, draws, drawn_scores)]
SLOW = [pytest.param(*case, marks=() if case in ((thirds, 12), (draws, 12)) else pytest.mark.slow) for case in STUDY]


@pytest.mark.parametrize(("kind", "n"), SLOW)
def test_without_an_effect_hardly_a_claim_is_decided_and_an_effect_is_covered(kind, n):
    rng = np.random.default_rng([n, len(kind.__name__)])
    assert 1 - verdicts(rng, kind(n, 0.0), 0.0) <= 0.06
    assert 0.93 <= verdicts(rng, kind(n, 0.1), 0.1) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [12, 64, 128])
def test_differences_of_scores_that_are_right_or_wrong(n):
    rng = np.random.default_rng(n)
    assert 1 - verdicts(rng, changed(n, 0.2, 0.2), 0.0) <= 0.06
    assert 1 - verdicts(rng, changed(n, 0.1, 0.1), 0.0) <= 0.06
    assert 0.93 <= verdicts(rng, changed(n, 0.5, 0.1), 0.4) <= 0.97


def test_an_interval_is_students():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, 20), rng.normal(1, 1, 20)
    mean, low, high = paired_interval(a, b)
    d = a - b
    assert mean == pytest.approx(d.mean())
    assert (low, high) == pytest.approx(t.interval(0.95, 19, d.mean(), d.std(ddof=1) / 20**0.5))
    assert paired_interval(pd.Series(a), list(b)) == (mean, low, high)


def test_pairing_cancels_what_a_prompt_does_to_both():
    rng = np.random.default_rng(1)
    prompt, effect = rng.normal(0, 10, 30), rng.normal(1, 0.1, 30)
    _, low, high = paired_interval(prompt + effect, prompt)
    assert 0.9 < low < high < 1.1
    assert paired_interval(prompt) == paired_interval(prompt, np.zeros(30))


def test_more_seeds_of_the_same_prompts_are_not_more_prompts():
    values = np.random.default_rng(2).normal(0, 1, 12)
    alone = paired_interval(values)
    assert paired_interval(np.repeat(values[:, None], 50, axis=1)) == pytest.approx(alone)
    assert paired_interval(np.stack([values] * 8)[..., None]) == pytest.approx(alone)  # nor are draws that are alike


def test_draws_that_differ_widen_the_interval():
    rng = np.random.default_rng(3)
    top, control = rng.normal(1, 0.1, (64, 1)), rng.normal(0, 0.1, (8, 64, 1))
    apart = control + np.linspace(-1, 1, 8)[:, None, None]
    (_, low, high), (_, far_low, far_high) = paired_interval(top, control), paired_interval(top, apart)
    assert far_high - far_low > 5 * (high - low)


def test_dims_are_taken_by_name_in_any_order():
    rng = np.random.default_rng(4)
    a, b = rng.normal(1, 1, (12, 3)), rng.normal(0, 1, (8, 12, 3))
    told = xr.DataArray(a.T, dims=("seed", "image")), xr.DataArray(b.transpose(2, 1, 0), dims=("seed", "image", "draw"))
    assert paired_interval(*told) == pytest.approx(paired_interval(a, b))
    assert paired_interval(told[1]) == pytest.approx(paired_interval(b))
    assert paired_interval(told[1].mean("seed"), a) == pytest.approx(paired_interval(b, a))


def named(shape, *dims, **coords):
    return xr.DataArray(np.zeros(shape), coords, dims)


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        ([], None, "a has 0 prompts"),
        (1.0, None, r"\(draw, prompt, seed\), not \(\)"),
        ([1.0, 2.0], [1.0], "a has 2 prompts and 1 draws, b 1 and 1"),
        ([1.0, np.nan, 2.0], None, "1 of 3 values are not finite; leave those prompts out of both"),
        (np.zeros((7, 12, 1)), None, "a random control of 7 draws; draw it 8 times or more"),
        (np.zeros(12), named((3, 12), "draw", "prompt"), "a random control of 3 draws; draw it 8 times or more"),
        (np.zeros((8, 12, 1)), np.zeros((9, 12, 1)), "as many draws where both are drawn"),
        (named((4, 12), "layer", "prompt"), None, r"\['layer', 'prompt'\]; average the others"),
        (named(4, "seed"), None, r"the prompts, not \[\]"),
        (named(2, "prompt", prompt=[0, 1]), named(2, "prompt", prompt=[1, 2]), "cannot align"),
    ],
)
def test_values_that_make_no_interval(a, b, told):
    with pytest.raises(ValueError, match=told):
        paired_interval(a, b)


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.51, 0.6, "holds", "contradicted"),
        (0.1, 0.49, "contradicted", "holds"),
        (0.4, 0.6, "undecided", "undecided"),
        (0.5, 0.6, "undecided", "undecided"),
        (0.4, 0.5, "undecided", "undecided"),
        (0.5, 0.5, "undecided", "undecided"),
        (None, None, "undecided", "undecided"),
        (math.nan, math.nan, "undecided", "undecided"),
    ],
)
def test_a_claim_is_decided_by_the_whole_interval(low, high, above, below):
    assert verdict(low, high, 0.5) == verdict(low, high, 0.5, "above") == above
    assert verdict(low, high, 0.5, "below") == below


def test_words_that_make_no_verdict():
    with pytest.raises(ValueError, match="'above' or 'below' its threshold, not 'over'"):
        verdict(0, 1, 0, "over")
    with pytest.raises(ValueError, match="from 2 to 1 is upside down"):
        verdict(2, 1, 0)


def test_the_sign_interval_is_the_sign_tests():
    """Ties say nothing, and the interval excludes one half where the exact test has p below 0.05."""
    for better, worse in ((9, 0), (8, 1), (7, 2), (30, 10), (20, 19), (2, 9)):
        a = np.r_[np.ones(better), np.zeros(worse), np.full(50, 0.3)]
        b = np.r_[np.zeros(better), np.full(worse, 0.2), np.full(50, 0.3)]
        share, low, high, n = sign_interval(a, b)
        assert (share, n) == (better / (better + worse), better + worse)
        assert (verdict(low, high, 0.5) != "undecided") == (binomtest(better, n).pvalue < 0.05)
    assert np.isnan(sign_interval(np.eye(12)[0], np.zeros(12))[1:3]).all(), "one of twelve differs: no interval"
    with pytest.raises(ValueError, match="of one draw, not of 8"):
        sign_interval(np.zeros(12), np.zeros((8, 12, 1)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("few", [[0.5], [0.0, 1.0], range(7), np.random.default_rng(0).normal(size=(8, 7, 2))])
def test_fewer_than_eight_prompts_have_no_interval(few):
    mean, low, high = paired_interval(few)
    assert mean == pytest.approx(np.mean(few)) and np.isnan([low, high]).all()
    assert verdict(low, high, 0) == "undecided"
    assert no_interval(np.shape(few)[-2 if np.ndim(few) == 3 else 0]) == "fewer than 8 prompts"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("equal", [[0.3] * 8, [0.0] * 9, [0.1 + 0.2, *[0.3] * 11], np.full((8, 12, 2), 1e9)])
def test_equal_differences_have_no_interval(equal):
    mean, low, high = paired_interval(equal)
    assert mean == pytest.approx(np.mean(equal)) and np.isnan([low, high]).all()
    assert no_interval(12) == "no variance"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[0] * 9 + [1], [1] * 7 + [0.999], np.eye(8)[..., None]])
def test_lopsided_values_still_have_an_interval(values):
    mean, low, high = paired_interval(values)
    assert low < mean < high


def test_as_many_prompts_as_are_enough_would_have_decided():
    """Of samples of that size with the same mean and spread, and of none that is smaller."""

    def sample(n):
        x = np.random.default_rng(n).normal(size=n)
        return (x - x.mean()) / x.std(ddof=1) + 0.3

    n = enough(*paired_interval(sample(12)), n=12)
    assert [verdict(*paired_interval(sample(size))[1:], 0) for size in (n - 1, n)] == ["undecided", "holds"]
    assert n == pytest.approx((1.96 / 0.3) ** 2 + 3, abs=1)  # t is a little wider than the normal
    assert enough(0.5, 0, 1, n=12, threshold=0.5) == math.inf


def test_a_p_value_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, 24), rng.normal(0, 1, 24)
    for threshold in (0, 0.3):
        expected = ttest_1samp(a - b, threshold).pvalue
        assert p_value(*paired_interval(a, b), n=24, threshold=threshold) == pytest.approx(expected)


def test_holm_keeps_the_family_wise_error_and_holds_no_less_than_bonferroni():
    rng = np.random.default_rng(0)
    wrong = np.mean([(holm(rng.random(20)) < 0.05).any() for _ in range(2000)])
    assert wrong == pytest.approx(0.05, abs=0.015)
    p = np.array([0.04, 1e-6, 0.5, 0.012, np.nan, 0.02])
    assert holm(p) == pytest.approx([0.08, 5e-6, 0.5, 0.048, np.nan, 0.06], nan_ok=True)
    assert (holm(p)[[0, 1, 2, 3, 5]] <= (5 * p)[[0, 1, 2, 3, 5]]).all()
