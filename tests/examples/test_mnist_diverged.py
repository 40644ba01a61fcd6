"""A diverged run: its files are valid JSON, it resumes, and its model is rejected."""

import json
import math
import re

import pytest

from examples.mnist.runs import Run
from tests.examples.processes import ROOT, in_this_process, small_data, strict

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diverged")
    options = ["--model", "mlp", "--epochs", 2, "--batch-size", 32, "--learning-rate", 1e38]
    return [*options, "--data-dir", small_data(folder), "--out", folder / "run"]


@pytest.fixture(scope="module")
def out(options):
    assert in_this_process("train", *options) == 0
    return options[-1]


def test_its_metrics_are_strict_json_and_are_read(out):
    lines = [strict(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["train_loss"]) for line in lines] == [(1, "NaN"), (2, "NaN")]
    strict((out / "config.json").read_text())
    run = Run.open(out)
    assert all(math.isnan(entry["test_loss"]) for entry in run.metrics())
    run.close()


def test_it_goes_on_also_from_a_file_with_bare_words(out, options, capsys):
    path = out / "metrics.jsonl"
    path.write_text(path.read_text().replace('"NaN"', "NaN"))
    assert in_this_process("train", *options, "--resume") == 0
    said = capsys.readouterr()
    assert strict(said.out.splitlines()[-1])["test_loss"] == "NaN" and said.err == ""
    assert in_this_process("evaluate", out) == 0
    assert strict(capsys.readouterr().out)["test_loss"] == "NaN"


def test_its_model_is_not_believed(out, tmp_path, capsys):
    digit = ROOT / "examples" / "mnist" / "digit.png"
    model = tmp_path / "model"
    assert in_this_process("export", out, model) == 0
    for command in (
        ["predict", out, digit],
        ["predict", "--exported", model, digit],
        ["serve", out, "--port", 0],
    ):
        assert in_this_process(*command) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(r"error: the model predicts NaN.* train it again with a .*\n", said)


def test_an_answer_of_the_server_is_strict_json():
    from examples.mnist.serve.app import as_json

    assert json.loads(as_json({"7": 0.5})) == {"7": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json({"7": math.nan})
