"""The plots of a run, checked by the drawn data."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from examples.shared import style
from examples.mnist import plots


@pytest.fixture
def drawn(monkeypatch):
    """Captures the figures instead of writing their files."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: figures.append(self))
    return figures


def metrics(epochs, **changed):
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "learning_rate")
    return [
        {"epoch": i + 1, **dict.fromkeys(names, 0.5 / (i + 1)), **changed} for i in range(epochs)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 5, 40])
def test_epochs_are_whole_numbers_from_zero(drawn, tmp_path, epochs):
    plots.curves(metrics(epochs), "title", tmp_path / "curves.png")
    for axes in drawn[0].axes:
        low, high = axes.get_xlim()
        assert low == 0 and epochs < high <= 1.1 * epochs
        assert all(tick == round(tick) for tick in axes.get_xticks())
        assert axes.get_xlabel() == "epoch" and axes.get_ylabel()


def test_one_epoch_has_its_numbers_beside_its_points(drawn, tmp_path):
    one = metrics(1, train_loss=0.25, test_loss=0.125, train_accuracy=0.9, test_accuracy=0.95)
    plots.curves(one, "title", tmp_path / "curves.png")
    losses, accuracies, _ = drawn[0].axes
    assert [text.get_text() for text in losses.texts] == ["0.2500", "0.1250"]
    assert [text.get_text() for text in accuracies.texts] == ["0.9000", "0.9500"]
    assert losses.get_ylim()[0] == 0


def test_a_learning_rate_that_ends_at_zero_is_drawn(drawn, tmp_path):
    plots.curves(metrics(1, learning_rate=0.0), "title", tmp_path / "curves.png")
    assert drawn[0].axes[2].get_ylim() == (0, 1)


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
