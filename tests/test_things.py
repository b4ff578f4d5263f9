"""What things are in a picture, and whether tokens of one thing lie together."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from massact_utils.measures import things as measures
from massact_utils.measures.masks import coverage
from massact_utils.worlds import toyworld

GRID = (6, 9)


def test_a_token_belongs_to_one_thing_or_the_ground_or_to_none():
    masks = toyworld.render(toyworld.sample(16, seed=3), seed=3)[1]
    things = measures.with_ground(np.stack([coverage(mask, GRID) for mask in masks.values()], 1))
    assert things.shape == (16, 4, *GRID) and things.sum(1).max() == 1
    assert (things[:, 0].any((1, 2)) & things[:, 3].any((1, 2))).all()


def test_purity_is_the_share_of_neighbours_in_other_images_by_scikit_learn():
    rng = np.random.default_rng(0)
    things, images = rng.choice(3, 300, p=[0.7, 0.2, 0.1]), rng.integers(0, 4, 300)
    points = rng.normal(size=(300, 5)) + np.eye(3, 5)[things]
    alike = np.zeros(300)
    for image in range(4):
        inside, outside = images == image, images != image
        near = NearestNeighbors(n_neighbors=7).fit(points[outside]).kneighbors(points[inside], return_distance=False)
        alike[inside] = (things[outside][near] == things[inside][:, None]).mean(1)
    expected = np.mean([alike[things == thing].mean() for thing in range(3)])
    assert measures.purity(points, things, images, n=7) == pytest.approx(expected, abs=1e-6)
    assert measures.purity(np.eye(3)[things], things, images, n=3) == 1
    chance = measures.purity(rng.normal(size=(300, 5)), things, images)
    assert chance == pytest.approx(1 / 3, abs=0.05)


def test_points_that_lie_apart_lie_apart_in_the_plane_and_each_time_alike():
    rng = np.random.default_rng(0)
    things, images = np.repeat([0, 1, 2], 40), np.tile(np.arange(4), 30)
    points = rng.normal(0, 0.1, size=(120, 6)) + 3 * np.eye(3, 6)[things]
    places, again = measures.embed(points, seed=1), measures.embed(points, seed=1)
    for name in ("PCA", "UMAP"):
        assert places[name].shape == (120, 2) and measures.purity(places[name], things, images) == 1
        np.testing.assert_array_equal(places[name], again[name])
