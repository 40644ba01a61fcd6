"""Resuming a finished MNIST run with more epochs, and the settings that its command leaves out."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import optax
import pytest

from examples.mnist import runs
from examples.mnist.__main__ import main
from examples.mnist.config import Config
from tests.examples.processes import params_of, small_data

pytestmark = pytest.mark.slow

BATCHES = 512 // 64  # an epoch


@pytest.fixture
def train(monkeypatch, capsys, digits, standard_promotion):
    """Trains in this process; returns the text on stderr."""

    def call(*options, status=0):
        line = ["train", *options, "--data-dir", digits]
        monkeypatch.setattr(sys, "argv", ["examples.mnist", *map(str, line)])
        assert main() == status
        return capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("digits"))


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_more_epochs_end_with_the_bits_of_a_run_that_had_them_at_once(train, tmp_path):
    at_once, extended = tmp_path / "at once", tmp_path / "extended"
    options = ["--model", "softmax", "--schedule", "inverse-sqrt", "--augment"]
    train(*options, "--epochs", 3, "--out", at_once)
    train(*options, "--epochs", 1, "--out", extended)
    assert runs.settings(extended).epochs == 1
    train("--resume", "--epochs", 3, "--out", extended)  # Other settings: the run's.
    assert params_of(extended) == params_of(at_once)
    assert metrics(extended) == metrics(at_once)
    assert runs.settings(extended) == runs.settings(at_once)


def test_a_schedule_that_ends_with_the_run_is_stretched_on_request_alone(train, tmp_path):
    out = tmp_path / "run"
    train("--model", "softmax", "--schedule", "cosine", "--epochs", 2, "--out", out)
    before = {path: path.read_bytes() for path in out.glob("*.json*")}
    said = train("--resume", "--epochs", 4, "--out", out, status=1)
    assert "cosine schedule that ends with epoch 2" in said and "add --stretch" in said
    assert "the learning rate is then 0.0005)" in said  # Half of 1e-3.
    assert {path: path.read_bytes() for path in before} == before

    more = ["--resume", "--epochs", 4, "--stretch", "--out", out]
    train(*more)
    rates = [line["learning_rate"] for line in metrics(out)]
    two, four = (optax.cosine_decay_schedule(1e-3, n * BATCHES) for n in (2, 4))
    ends = [(epoch + 1) * BATCHES - 1 for epoch in range(4)]
    expected = [*map(two, ends[:2]), *map(four, ends[2:])]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert runs.settings(out).earlier_epochs == (2,)

    # Repeating the command of a completed extension does nothing.
    after = metrics(out)
    train(*more)
    assert metrics(out) == after and runs.settings(out).earlier_epochs == (2,)


def test_what_does_not_fit_the_run_is_one_line(train, tmp_path):
    out = tmp_path / "run"
    train("--model", "softmax", "--epochs", 2, "--out", out)
    for options, words in (
        (["--resume", "--epochs", 1], "a run of 2 epochs; --epochs must be at least that, got 1"),
        (["--resume", "--epochs", 3, "--optimizer", "sgd"], "other settings (optimizer)"),
        (["--epochs", 3], "already holds a run; continue it with --resume"),
        (["--epochs", 3, "--stretch"], "--stretch requires --resume; add it"),
    ):
        said = train(*options, "--out", out, status=1)
        assert said.startswith("error: ") and said.count("\n") == 1 and words in said
    assert runs.settings(out).epochs == 2 and len(metrics(out)) == 2


def test_the_settings_survive_their_json(tmp_path):
    config = Config(epochs=8, schedule="cosine", earlier_epochs=(2, 4))
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    assert runs.settings(tmp_path) == config
    before = dataclasses.asdict(Config())
    del before["earlier_epochs"]  # As in runs older than this setting.
    (tmp_path / "config.json").write_text(json.dumps(before))
    assert runs.settings(tmp_path) == Config()
    for wrong in ([0], ["a"], "4", 4):
        (tmp_path / "config.json").write_text(json.dumps({"earlier_epochs": wrong}))
        with pytest.raises(runs.RunError, match="earlier_epochs is"):
            runs.settings(tmp_path)


@pytest.mark.parametrize(("name", "rate"), [("sgd", 0.3), ("momentum", 0.03)])
def test_the_baselines_are_optax_s(train, tmp_path, name, rate):
    out = tmp_path / name
    options = ["--model", "softmax", "--optimizer", name, "--learning-rate", rate, "--epochs", 2]
    train(*options, "--out", out)
    after = metrics(out)
    assert after[-1]["test_accuracy"] > 0.6 and after[-1]["learning_rate"] == pytest.approx(rate)
    assert after[1]["train_loss"] < after[0]["train_loss"]
    shutil.rmtree(out)


def test_help_says_every_default(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["examples.mnist", "train", "--help"])
    monkeypatch.setenv("COLUMNS", "500")  # An option and its help fit on one line.
    with pytest.raises(SystemExit, match="0"):
        main()
    lines = capsys.readouterr().out.splitlines()
    for field in dataclasses.fields(Config):
        if field.name in ("data_dir", "earlier_epochs"):
            continue
        value = getattr(Config(), field.name)
        option = f"  --{field.name.replace('_', '-')} "
        about = " ".join(lines[next(i for i, s in enumerate(lines) if s.startswith(option)) :][:2])
        assert f"(default: {'off' if value is False else value})" in about
