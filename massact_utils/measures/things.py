"""Things: what several things in one picture are, and whether tokens of one thing lie together."""

import numpy as np
import torch


def with_ground(shares) -> np.ndarray:
    """Things and what is left: shares of the tokens' areas (image, T, H, W) -> (image, T + 1, H, W) bool, the ground
    last. A token belongs to what covers more than half of it.

    >>> with_ground([[[[0.9, 0.3]], [[0.0, 0.3]]]])[0, :, 0].tolist()
    [[True, False], [False, False], [False, False]]
    """
    shares = np.asarray(shares)
    return np.concatenate([shares, 1 - shares.sum(1, keepdims=True)], 1) > 0.5


def purity(points, things, images, n: int = 10) -> float:
    """How surely a token's neighbours are of its own thing: points (N, K), things and images (N,) int -> 0 to 1.

    Counted is the share of the n nearest tokens of *other* images that belong to the same thing, averaged over the
    tokens of a thing and then over things. So a large ground does not count for more, and chance is about 1 / things.

    >>> purity([[0.0], [9.0], [0.1], [9.1]], [0, 1, 0, 1], [0, 0, 1, 1], n=1)
    1.0
    """
    points, things, images = torch.as_tensor(np.float32(points)), np.asarray(things), torch.as_tensor(images)
    distance = torch.cdist(points, points).masked_fill_(images[:, None] == images, torch.inf)
    near = things[distance.topk(n, largest=False).indices.numpy()]
    alike = (near == things[:, None]).mean(1)
    return float(np.mean([alike[things == thing].mean() for thing in np.unique(things)]))


def embed(points, seed: int = 0) -> dict[str, np.ndarray]:
    """Points (N, K) in the plane, by their first two principal components and by UMAP: {"PCA", "UMAP"}, (N, 2) each."""
    from sklearn.decomposition import PCA
    from umap import UMAP

    places = {"PCA": PCA(2, random_state=seed), "UMAP": UMAP(init="pca", random_state=seed, n_jobs=1)}
    return {name: place.fit_transform(points) for name, place in places.items()}
