"""Linear read-out: which words a few channels tell, and how much of each channel a word explains."""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def read_out(x, labels, *, groups=None, folds: int = 5) -> float:
    """Balanced accuracy with which a logistic regression reads labels (n,) off x (n, K), cross-validated: 0 to 1.

    Chance is one over the number of labels. Rows of one group, such as the tokens of an image, stay in one fold. Raises
    ValueError for labels of fewer than two kinds.

    >>> x = np.linspace(-1, 1, 40)[:, None]
    >>> read_out(x, x[:, 0] > 0) > 0.9
    True
    """
    x, labels = np.asarray(x, float), np.asarray(labels)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"all {len(labels)} labels are {labels[0]!r}: there is nothing to read")
    splits = StratifiedKFold(folds, shuffle=True, random_state=0) if groups is None else GroupKFold(folds)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(cross_val_score(model, x, labels, groups=groups, cv=splits, scoring="balanced_accuracy").mean())


def explained(x, labels) -> np.ndarray:
    """Share of each column's variance that lies between groups of labels: (n, K), (n,) -> (K,); the adjusted R squared
    of a one-way analysis of variance, about 0 where the label says nothing, at most 1.

    >>> explained([[0, 1], [0, 3], [2, 1], [2, 3]], ["a", "a", "b", "b"]).round(1).tolist()
    [1.0, -0.5]
    """
    x = pd.DataFrame(np.asarray(x, float))
    groups = x.groupby(np.asarray(labels))
    within = ((x - groups.transform("mean")) ** 2).sum() / (len(x) - groups.ngroups)
    return (1 - within / x.var()).to_numpy()
