"""Chapter new_paper: the method against a plain loop, its sizes, and a broken method that the gate must notice."""

import numpy as np
import pytest
from lift import lift, sabotage

NOTEBOOK = "notebooks/new_paper/new_paper.ipynb"


@pytest.fixture(scope="module")
def nb():
    return lift(NOTEBOOK, ["class_means", "classify", "best_accuracy"])


def test_classes_equal_those_of_a_plain_loop(nb):
    rng = np.random.default_rng(0)
    x, m = rng.standard_normal((50, 3)), rng.standard_normal((2, 3))
    expected = [min((0, 1), key=lambda c: sum((a - b) ** 2 for a, b in zip(point, m[c], strict=True))) for point in x]
    assert nb.classify(x, m).tolist() == expected


def test_accuracy_with_the_true_means_is_the_closed_form(nb):
    y = np.repeat([0, 1], 100_000)
    x = np.random.default_rng(0).standard_normal((y.size, 1)) + (y - 0.5)[:, None]
    right = nb.classify(x, np.array([[-0.5], [0.5]])) == y
    assert right.mean() == pytest.approx(nb.best_accuracy(1.0), abs=0.005)


@pytest.mark.sabotage
def test_the_gate_notices_training_labels_without_meaning():
    error = sabotage("new_paper", {"rng.permutation(y) if shuffle else y": "rng.permutation(y)"})
    assert error.startswith("RegressionError") and "accuracy" in error
