"""Experiments share a store of results: each piece is computed once, even after a kill."""

import json
import subprocess
import sys

import numpy as np
import pytest

from examples.shared import study
from tests.examples.processes import ROOT, environment


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
    with pytest.raises(study.StudyError, match=r"other settings \(seed\); choose another --out"):
        study.Study(tmp_path, {"seed": 1, "steps": [1, 2]})


def test_the_table_is_markdown_and_csv(tmp_path):
    text = study.Study(tmp_path, {}).table(["a", "b"], [[1, "x"], [2, "y"]], "table")
    assert text == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | y |\n"
    assert (tmp_path / "table.md").read_text() == text
    assert (tmp_path / "table.csv").read_text().splitlines() == ["a,b", "1,x", "2,y"]


INTERRUPTED = """
import os, signal
from pathlib import Path
from examples.shared import study

def stop():
    os.kill(os.getpid(), signal.SIGINT)
    return {}

def main():
    work = study.Study(Path(OUT), {})
    work.run([study.Piece("first", lambda: {"x": 1}), study.Piece("second", stop)])

study.command(main)
"""


def test_an_interruption_is_one_line_and_leaves_what_was_done(tmp_path):
    code = INTERRUPTED.replace("OUT", repr(str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 130
    assert done.stderr == "interrupted; run the same command again to resume\n"
    assert study.Study(tmp_path, {}).done == {"first": {"x": 1}}
