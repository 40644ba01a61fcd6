"""The comparison of optimizers: its figures, its page, and its fast setting end to end."""

import numpy as np
import pytest

from examples.shared import strict_json
from examples.shared.pages import replaced
from examples.studies.compare import __main__ as compare
from examples.studies.compare import report
from examples.studies.compare.optimizers import OPTIMIZERS
from tests.examples.processes import shows_something, table

PUBLISHED = strict_json.loads(report.FIGURES.read_text())


def test_the_page_shows_the_figures_of_all_optimizers():
    """Run `python -m examples.studies.compare.report` to update the page."""
    text = report.PAGE.read_text()
    assert replaced(text, report.parts(PUBLISHED)) == text
    assert set(PUBLISHED) == set(compare.STEPS) == set(report.MODELS)
    for rows in PUBLISHED.values():
        assert list(rows) == list(OPTIMIZERS)
        assert all(row["lowest"] <= row["mean"] <= row["highest"] for row in rows.values())


def test_a_part_must_be_on_the_page_once():
    page = "a <!-- x -->old<!-- end of x --> b"
    assert replaced(page, {"x": r"\1"}) == r"a <!-- x -->\1<!-- end of x --> b"
    for wrong in ("a", page + page):
        with pytest.raises(ValueError, match="a page must have <!-- x --> ... <!-- end of x -->"):
            replaced(wrong, {"x": "new"})


def run(accuracies, loss):
    return {
        "rates": [0.1, 0.2, 0.3],
        "validation_loss": [[2.0] * 3, [0.1] * 3, [np.nan] * 3],
        "step_loss": [[loss] * 3] * 3,
        "test_accuracy": [[0.1] * 3, accuracies, [0.1] * 3],
    }


def test_the_figures_are_those_of_the_best_rate(tmp_path):
    slow, fast = list(np.linspace(2.0, 1.0, 60)), list(np.linspace(2.0, 0.5, 60))
    results = {"mlp": {"sgd": run([0.9, 0.91, 0.92], slow), "adam": run([0.8, 0.85, 0.9], fast)}}
    found = report.figures(results)
    sgd, adam = found["mlp"].values()
    assert (sgd["mean"], sgd["lowest"], sgd["highest"]) == (0.91, 0.9, 0.92)
    assert adam["mean"] == 0.85 and not adam["edge"]
    # The target is the mean of SGD's last 25 losses. They fall by 1/59 a step: 1 + 12/59.
    assert sgd["steps"] == 60.0
    assert adam["steps"] == np.ceil((2.0 - 1 - 12 / 59) / (1.5 / 59) + 12 + 1)
    _, rows = report.table(found)
    assert rows[0] == ["`sgd`", "**0.9100 (0.9000 to 0.9200)**", "60"]
    results["mlp"]["adam"]["validation_loss"][0] = [0.05] * 3
    found = report.figures(results)
    assert found["mlp"]["adam"]["edge"] and "(edge)" in report.table(found)[1][1][1]
    report.write(tmp_path / "figures.json", found)
    assert strict_json.loads((tmp_path / "figures.json").read_text()) == found


@pytest.mark.slow
def test_the_fast_setting_end_to_end(tmp_path, capsys):
    options = ["--fast", "--out", str(tmp_path), "--models", "softmax", "--optimizers", "sgd"]
    compare.main([*options, "adam"])
    assert "too short to decide anything" in capsys.readouterr().out
    found = strict_json.loads((tmp_path / "figures.json").read_text())["softmax"]
    assert min(row["mean"] for row in found.values()) > 0.75
    # Adam reaches SGD's final loss before SGD does.
    assert found["adam"]["steps"] < found["sgd"]["steps"]
    rows = table(tmp_path / "table.csv")
    assert [row["optimizer"] for row in rows] == ["`adam`", "`sgd`"]
    assert shows_something(tmp_path / "accuracies.png")
    # A further optimizer is added to the existing results.
    compare.main([*options, "adam", "lion"])
    assert "2 of 3 pieces were done before" in capsys.readouterr().out


def test_a_part_of_the_study_is_not_published(tmp_path, capsys):
    for part in (["--fast"], ["--optimizers", "adam"], ["--seed", "1"]):
        with pytest.raises(SystemExit):
            compare.main(["--publish", "--out", str(tmp_path / "none"), *part])
        assert "takes the whole study: leave the other options out" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
