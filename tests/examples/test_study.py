"""Experiments share a store of results: each piece is computed once, even after a kill."""

import json

import numpy as np
import pytest

from examples.shared import study
from examples.shared.command_line import UserError


def counting(calls, name, result):
    def compute():
        calls.append(name)
        return result

    return study.Piece(name, compute)


def test_pieces_are_computed_once_and_come_back_as_they_were(tmp_path, capsys):
    calls = []
    pieces = [counting(calls, n, {"x": np.arange(3), "t": "a"}) for n in ("first", "second")]
    first = study.Study(tmp_path / "s", {"seed": 0}).run(pieces[:1])
    again = study.Study(tmp_path / "s", {"seed": 0}).run(pieces)
    assert calls == ["first", "second"]
    assert again["first"] == first["first"] == {"x": [0, 1, 2], "t": "a"}
    assert "1 of 2 pieces were done before" in capsys.readouterr().out


def test_a_torn_last_line_is_computed_again(tmp_path):
    calls = []
    pieces = [counting(calls, n, {"x": 1}) for n in ("first", "second")]
    study.Study(tmp_path, {}).run(pieces)
    path = tmp_path / "pieces.jsonl"
    path.write_text(path.read_text()[:-9])
    found = study.Study(tmp_path, {}).run(pieces)
    assert calls == ["first", "second", "second"]
    assert found["second"] == {"x": 1}
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == [
        "first",
        "second",
    ]


def test_other_settings_do_not_mix(tmp_path):
    study.Study(tmp_path, {"seed": 0, "steps": [1, 2]})
    study.Study(tmp_path, {"seed": 0, "steps": (1, 2)})
    with pytest.raises(UserError, match=r"other settings \(seed\); choose another --out"):
        study.Study(tmp_path, {"seed": 1, "steps": [1, 2]})


def test_the_table_is_markdown_and_csv(tmp_path):
    text = study.Study(tmp_path, {}).table(["a", "b"], [[1, "x"], [2, "y"]], "table")
    assert text == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | y |\n"
    assert (tmp_path / "table.md").read_text() == text
    assert (tmp_path / "table.csv").read_text().splitlines() == ["a,b", "1,x", "2,y"]


def test_two_studies_in_one_folder_do_not_mix(tmp_path):
    def meanwhile():
        with pytest.raises(UserError, match="is in use by process"):
            study.Study(tmp_path, {})
        return {}

    study.Study(tmp_path, {}).run([study.Piece("first", meanwhile)])
    assert study.Study(tmp_path, {}).done == {"first": {}}


def test_what_another_study_has_computed_is_not_computed_again(tmp_path):
    calls = []
    early, late = study.Study(tmp_path, {}), study.Study(tmp_path, {})
    piece = counting(calls, "first", {"x": 1})
    assert early.run([piece]) == late.run([piece]) == {"first": {"x": 1}}
    assert calls == ["first"]


def test_a_piece_prints_its_loss(tmp_path, capsys):
    piece = study.Piece("first", lambda: {"loss": [2.0, 1.5]}, loss="loss")
    study.Study(tmp_path, {}).run([piece])
    assert capsys.readouterr().out.startswith("1/1 first: loss 1.5000, ")
