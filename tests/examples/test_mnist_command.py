"""The MNIST example from the command line: files, final output, one-line errors."""

import gzip
import json
import re

import pytest

from adam_jax import inspect
from examples.mnist import data, train
from tests.examples.processes import (
    ROOT,
    idx,
    in_this_process,
    refused,
    run,
    scan,
    shows_something,
    strict,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs: its folder and its output."""
    out = tmp_path_factory.mktemp("trained") / "run"
    done = run("train", "--model", "mlp", "--epochs", 2, "--schedule", "cosine", "--out", out)
    return out, done.stdout


@pytest.mark.smoke
def test_train_learns_and_leaves_a_run(trained):
    out, stdout = trained
    summary = json.loads(stdout.splitlines()[-1])
    assert set(summary) == {"test_accuracy", "test_loss", "seconds", "run"}
    assert summary["test_accuracy"] > 0.88 and summary["run"] == str(out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    assert lines[-1]["test_accuracy"] == summary["test_accuracy"]
    assert len(re.findall(r"^epoch \d/2 .* digits/s", stdout, re.MULTILINE)) == 2
    for picture in ("curves.png", "predictions.png"):
        assert shows_something(out / picture)
    measured = inspect.read_json_lines(out / "telemetry.jsonl")
    assert [record["step"] for record in measured] == [50, 100, 150, 200, 250]
    assert measured[-1]["loss"] < measured[0]["loss"] and measured[-1]["groups"].keys() == {
        "hidden",
        "out",
    }


@pytest.mark.slow
def test_a_loss_is_printed_every_few_seconds_without_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "SECONDS", 0)
    options = ["--model", "softmax", "--optimizer", "adamw", "--augment", "--batch-size", 32]
    options += ["--schedule", "warmup-stable-decay", "--epochs", 2]
    assert in_this_process("train", *options, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    losses = re.findall(
        r"^epoch \d/2  step (\d+)/250  loss (\d\.\d{4})  about .* left$", said, re.M
    )
    assert [int(step) for step, _ in losses] == [50, 100, 150, 200] * 2
    assert float(losses[-1][1]) < float(losses[0][1])


@pytest.mark.slow
def test_evaluate_repeats_the_training_runs_figures(trained):
    out, stdout = trained
    figures = json.loads(run("evaluate", out).stdout)
    summary = json.loads(stdout.splitlines()[-1])
    assert figures == {key: summary[key] for key in ("test_accuracy", "test_loss")}


def test_predict_reads_pictures_and_idx(trained, tmp_path):
    out, _ = trained
    digits, paths, right = data.load(), [], 0
    two = tmp_path / "some-idx3-ubyte.gz"
    two.write_bytes(gzip.compress(idx(digits.test_images[:2])))
    for i in range(20):
        paths.append(tmp_path / f"{i}.png")
        scan(digits.test_images[i]).save(paths[-1])
    lines = run("predict", out, *paths, two).stdout.splitlines()
    assert len(lines) == 22 and lines[21].startswith(f"{two}[1]: ")
    for path, line, label in zip(paths, lines, digits.test_labels, strict=False):
        match = re.fullmatch(rf"{re.escape(str(path))}: (\d) \((\d+\.\d)%\)", line)
        assert match, line
        right += int(match[1]) == label
    assert right >= 15


@pytest.mark.slow
def test_what_the_user_can_mend_is_one_line(trained, tmp_path):
    out, _ = trained
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for arguments, words in (
        (["evaluate", tmp_path], "holds no run"),
        (["train", "--out", tmp_path / "new", "--batch-size", 9000], "batch_size"),
        (["train", "--out", tmp_path / "new", "--data-dir", tmp_path], "lacks"),
        (["train", "--out", tmp_path / "new", "--model", "gpt"], "one of softmax, mlp, small-cnn"),
        (["predict", out, text], "not a picture"),
        (["export", out, out], "Is a directory"),
        (["predict", out, tmp_path / "absent.png"], "absent.png cannot be read (No such file"),
        (["train", "--out", text], "text.png"),
    ):
        assert words in refused(*arguments)
        assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_diverged_model_is_strict_json_and_is_not_believed(tmp_path, capsys):
    options = ["--model", "mlp", "--epochs", 1, "--learning-rate", 1e38, "--out", tmp_path / "run"]
    assert in_this_process("train", *options) == 0
    assert strict(capsys.readouterr().out.splitlines()[-1])["test_loss"] == "NaN"
    assert strict((tmp_path / "run" / "metrics.jsonl").read_text())["train_loss"] == "NaN"
    assert in_this_process("evaluate", tmp_path / "run") == 0
    assert strict(capsys.readouterr().out)["test_loss"] == "NaN"
    digit = ROOT / "examples" / "mnist" / "digit.png"
    for command in (["predict", tmp_path / "run", digit], ["serve", tmp_path / "run", "--port", 0]):
        said = refused(*command)
        assert re.match(r"error: the model predicts NaN.* train it again with a ", said)
