"""The tuning and the preprocessing study in their fast settings, end to end."""

import json

import pytest

from examples.studies import preprocessing, spikes
from examples.studies.tune import __main__ as tune
from examples.studies.tune import search
from tests.examples.processes import shows_something, table

pytestmark = pytest.mark.slow


def test_halving_drops_the_worst_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = ["--fast", "--model", "softmax", "--out"]
    tune.main([*options, str(whole)])
    rows = table(whole / "runs.csv")
    assert len(rows) == 9
    last = [row for row in rows if row["loss at 30"] != "nan"]
    first = sorted(float(row["loss at 10"]) for row in rows)
    assert len(last) == 3 and {float(r["loss at 10"]) for r in last} == set(first[:3])
    assert all(float(row["loss at 30"]) < float(row["loss at 10"]) for row in last[:1])
    best = json.loads((whole / "best.json").read_text())
    assert best["schedule"] in search.SCHEDULES and best["test_accuracy"] > 0.6
    # What is tested is the best of the last rung.
    lowest = min(float(row["loss at 30"]) for row in last)
    assert best["validation_loss"] == pytest.approx(lowest, abs=1e-4)
    assert best["test_loss"] == pytest.approx(best["validation_loss"], rel=0.1)
    assert shows_something(whole / "search.png")

    def stop(*_):
        raise KeyboardInterrupt

    # A search stopped before the second rung reads the survivors of the first from the file.
    with monkeypatch.context() as patch:
        patch.setattr(search.Halving, "read", stop)
        with pytest.raises(KeyboardInterrupt):
            tune.main([*options, str(stopped)])
    tune.main([*options, str(stopped)])
    assert "1 of 2 pieces were done before" in capsys.readouterr().out
    assert (stopped / "runs.csv").read_text() == (whole / "runs.csv").read_text()
    assert json.loads((stopped / "best.json").read_text()) == best


def test_preprocessing(tmp_path):
    preprocessing.main(["--fast", "--models", "mlp", "--out", str(tmp_path)])
    accuracy = {row["pixels"]: float(row["test accuracy"]) for row in table(tmp_path / "table.csv")}
    assert set(accuracy) == set(preprocessing.WAYS)
    assert accuracy["standardised"] > accuracy["bytes, 0 to 255"] > 0.7
    assert shows_something(tmp_path / "digits.png")


def test_spikes(tmp_path):
    spikes.main(["--fast", "--out", str(tmp_path)])
    delays = {row["guard"]: row for row in table(tmp_path / "table.csv")}
    history = delays["clip_by_history"]
    assert delays["none"]["all x 1e6"] == "inf"
    assert float(history["all x 1e6"]) <= float(history["none"]) + 10
    assert shows_something(tmp_path / "spikes.png")
