"""The plots of a run, checked by the drawn data."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from examples.mnist import plots
from examples.shared import style


@pytest.fixture
def drawn(monkeypatch):
    """Captures the figures instead of writing their files."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: figures.append(self))
    return figures


def metrics(epochs):
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    return [
        {"epoch": i + 1, "step": 10 * (i + 1), **dict.fromkeys(names, 0.5 / (i + 1))}
        for i in range(epochs)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 5, 40])
def test_epochs_are_whole_numbers_from_zero(drawn, tmp_path, epochs):
    plots.curves(metrics(epochs), lambda step: 0.1, "title", tmp_path / "curves.png")
    for axes in drawn[0].axes:
        low, high = axes.get_xlim()
        assert low == 0 and epochs < high <= 1.1 * epochs
        assert all(tick == round(tick) for tick in axes.get_xticks())
        assert axes.get_xlabel() == "epoch" and axes.get_ylabel()


def test_the_learning_rate_is_drawn_between_epochs_too(drawn, tmp_path):
    plots.curves(metrics(2), lambda step: 1 - step / 20, "title", tmp_path / "curves.png")
    [line] = drawn[0].axes[2].lines
    np.testing.assert_allclose(line.get_ydata(), 1 - line.get_xdata() / 2, atol=1e-12)
    assert len(line.get_xdata()) > 100


def test_mistakes_are_below_and_nowhere_else(drawn, tmp_path):
    p = np.full((100, 10), 0.01)
    labels = np.arange(100) % 10
    guesses = np.where(np.arange(100) < 90, labels, (labels + 1) % 10)  # The last ten are wrong.
    guesses[0] = 5  # The first is wrong too.
    p[np.arange(100), guesses] = np.linspace(0.6, 0.9, 100)
    plots.predictions(np.zeros((100, 28, 28), np.uint8), labels, p, tmp_path / "predictions.png")
    upper, lower = ([axes.title for axes in half.axes] for half in drawn[0].subfigs)
    assert len([title for title in upper if title.get_text()]) == 36
    assert not [title for title in upper if "not" in title.get_text()]
    below = [title for title in lower if title.get_text()]
    assert len(below) == 11 and all("not" in title.get_text() for title in below)
    assert {title.get_color() for title in below} == {style.VERMILION}
    assert below[0].get_text() == "0, not 9\n90%"
    assert "89 of 100" in drawn[0].subfigs[0].get_suptitle()
