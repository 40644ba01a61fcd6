"""The documentation's text about the comparison matches figures.json."""

import re

import numpy as np
import pytest

from examples.shared.pages import replaced
from examples.studies.compare import __main__ as compare
from examples.studies.compare import figures, pages, report
from examples.studies.compare.optimizers import OPTIMIZERS

PUBLISHED = figures.read(pages.FIGURES)
every_page = pytest.mark.parametrize("page", pages.parts(PUBLISHED), ids=lambda page: page.name)


@every_page
def test_the_pages_say_what_the_figures_say(page):
    """Run `python -m examples.studies.compare.pages` to update the pages."""
    text = page.read_text()
    assert replaced(text, pages.parts(PUBLISHED)[page]) == text
    assert set(re.findall("<!-- (compare-.*?) -->", text)) == pages.parts(PUBLISHED)[page].keys()


@every_page
def test_words_of_a_line_are_not_taken_for_html(page):
    """Markdown treats a line that starts with a comment as HTML, including the text after it."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("<!--")]
    assert [line for line in lines if not re.fullmatch("<!-- [^>]* -->", line)] == []


def test_every_optimizer_has_its_figures_on_every_model():
    """Run `python -m examples.studies.compare --publish` to update figures.json."""
    assert set(PUBLISHED["models"]) == set(compare.STEPS) == set(pages.MODELS)
    for rows in PUBLISHED["models"].values():
        assert list(rows) == list(OPTIMIZERS)
        assert all(row["lowest"] <= row["highest"] for row in rows.values())
        assert rows["sgd"]["steps"] < np.inf


def test_figures_are_written_and_read(tmp_path):
    rows = {"sgd": row(0.9, 0.89, 0.91, steps=np.inf), "grams(adamw)": row(0.8, 0.7, 0.85)}
    found = {"seconds": 3, "models": {"mlp": rows, "softmax": rows}}
    figures.write(tmp_path / "figures.json", found)
    assert figures.read(tmp_path / "figures.json") == found
    assert (tmp_path / "figures.json").read_text().count("\n") == 2 * 4 + 5


def row(accuracy, lowest, highest, steps=50.0):
    values = {"accuracy": accuracy, "lowest": lowest, "highest": highest}
    return {**values, "steps": steps, "edge": False}


def run(accuracies, loss):
    return {
        "rates": [0.1, 0.2, 0.3],
        "validation_loss": [[2.0] * 3, [0.1] * 3, [np.nan] * 3],
        "step_loss": [[loss] * 3] * 3,
        "test_loss": [[0.1] * 3] * 3,
        "test_accuracy": [[0.1] * 3, accuracies, [0.1] * 3],
        "step_seconds": 0.1,
    }


def test_the_figures_are_those_of_the_best_rate():
    slow, fast = list(np.linspace(2.0, 1.0, 60)), list(np.linspace(2.0, 0.5, 60))
    results = {"mlp": {"sgd": run([0.9, 0.91, 0.92], slow), "adam": run([0.8, 0.85, 0.9], fast)}}
    found = figures.figures(results, 12.6)
    sgd, adam = found["models"]["mlp"].values()
    assert found["seconds"] == 13
    assert (sgd["accuracy"], sgd["lowest"], sgd["highest"]) == (0.91, 0.9, 0.92)
    assert adam["accuracy"] == 0.85 and not adam["edge"]
    # The target is the mean of SGD's last 25 losses. They fall by 1/59 a step: 1 + 12/59.
    assert figures.target(results["mlp"]) == pytest.approx(1 + 12 / 59)
    assert sgd["steps"] == 60.0
    assert adam["steps"] == np.ceil((2.0 - 1 - 12 / 59) / (1.5 / 59) + 12 + 1)
    results["mlp"]["adam"]["validation_loss"][0] = [0.05] * 3
    assert figures.figures(results, 1.0)["models"]["mlp"]["adam"]["edge"]


def test_the_verdict_says_where_adam_does_not_win():
    def said(*adam):
        rows = {"sgd": row(0.91, 0.9, 0.92), "adam": row(*adam, steps=40.0)}
        return pages.verdict({"seconds": 1, "models": {"mlp": rows | {"lion": row(0.5, 0.5, 0.5)}}})

    text = said(0.85, 0.8, 0.89)
    assert "`sgd` is the most accurate, 0.9100; the seed ranges of 0 of the 2 others" in text
    assert "`adam` reaches the target first, after 40 steps" in text
    assert "`adam` is second, 6.0 points behind; all its seeds are lower." in text
    assert "`lion` is last, 41.0 points behind." in text
    text = said(0.9099, 0.8, 0.9)
    assert "the seed ranges of 1 of the 2 others overlap" in text
    assert "second, less than 0.1 points behind; the ranges overlap." in text
    text = said(0.95, 0.92, 0.99)
    assert "`adam` is the most accurate" in text and "`adam` is second" not in text
    assert "the seed ranges of 1 of the 2 others overlap" in text


def test_places_in_words():
    rows = {str(i): row(1 - 0.01 * i, 0.0, 1.0) for i in range(1, 25)}
    words = [pages.place(name, rows) for name in rows]
    assert words[:2] == ["first", "second"] and words[9:13] == ["tenth", "11th", "12th", "13th"]
    assert words[19:] == ["20th", "21st", "22nd", "23rd", "last"]


def test_a_part_must_be_on_the_page_once():
    page = "a <!-- x -->old<!-- end of x --> b"
    assert replaced(page, {"x": r"\1"}) == r"a <!-- x -->\1<!-- end of x --> b"
    for wrong in ("a", page + page):
        with pytest.raises(ValueError, match="a page must have <!-- x --> ... <!-- end of x -->"):
            replaced(wrong, {"x": "new"})


@pytest.mark.slow
def test_the_whole_study_is_published(tmp_path, monkeypatch, capsys):
    def measured(model, optimizer, params, splits, steps, seed):
        best = 0.9 + 0.0005 * list(OPTIMIZERS).index(optimizer)
        result = run([best - 0.001, best, best + 0.001], list(np.linspace(2.0, 1.0, steps)))
        return result | {"accuracy": [[[0.5] * (steps // compare.CHUNK)] * 3] * 3}

    monkeypatch.setattr(compare, "measure", measured)
    monkeypatch.setattr(compare.population, "initial", lambda keys, model: None)
    for name in ("CHOOSING", "EXAMPLES", "FIGURES", "PICTURE"):
        path = getattr(pages, name)
        monkeypatch.setattr(pages, name, tmp_path / f"{name}{path.suffix}")
        if path.suffix == ".md":
            getattr(pages, name).write_text(path.read_text())
    compare.main(["--publish", "--out", str(tmp_path / "out")])
    found = figures.read(pages.FIGURES)
    assert found == figures.read(tmp_path / "out" / "figures.json")
    *others, last = OPTIMIZERS
    sentence = f"`{last}` is the most accurate, {0.9 + 0.0005 * len(others):.4f}"
    assert sentence in capsys.readouterr().out
    assert sentence in pages.EXAMPLES.read_text()
    for page, parts in pages.parts(found).items():
        assert replaced(page.read_text(), parts) == page.read_text()
    assert pages.PICTURE.read_bytes() == (tmp_path / "out" / "curves.png").read_bytes()


def test_a_part_of_the_study_is_not_published(tmp_path, capsys):
    options = ["--publish", "--out", str(tmp_path / "none")]
    for part in (["--fast"], ["--optimizers", "adam"], ["--data-dir", "digits"], ["--seed", "1"]):
        with pytest.raises(SystemExit):
            compare.main([*options, *part])
        assert f"takes the whole study: leave {part[0]} out" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_colours_are_of_roles():
    rows = {"adam": row(0.9, 0.9, 0.9), "lion": row(0.8, 0.8, 0.8), "adan": row(0.85, 0.8, 0.9)}
    rows["adan"]["steps"] = 3.0
    expected = {"adam": "adam", "adan": "the first at the target", "lion": "the last"}
    found = report.colours(rows)
    assert found == {name: report.ROLES[role] for name, role in expected.items()}
    assert len(set(report.ROLES.values())) == len(report.ROLES)
