"""The MNIST example from the command line: files, final output, one-line errors, killed runs."""

import contextlib
import gzip
import json
import os
import pty
import re
import struct
import subprocess
import sys

import pytest
from PIL import Image

from examples.mnist import data
from examples.mnist.__main__ import main
from tests.examples.processes import ROOT, command, environment, run, small_data


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
    assert set(summary) == {"test_accuracy", "test_loss", "seconds", "steps_per_second", "run"}
    assert summary["test_accuracy"] > 0.88 and summary["run"] == str(out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    assert lines[-1]["test_accuracy"] == summary["test_accuracy"]
    assert len(re.findall(r"^epoch \d/2 .* digits/s", stdout, re.MULTILINE)) == 2
    for picture, width in (("curves.png", 1000), ("predictions.png", 1000)):
        with Image.open(out / picture) as image:
            assert image.width > width and len(set(image.convert("L").tobytes())) > 20


@pytest.mark.slow
def test_a_terminal_gets_a_bar(tmp_path):
    """Augmented training with --data-dir, another optimizer and another schedule."""
    ours, theirs = pty.openpty()
    options = ["--model", "softmax", "--optimizer", "adamw", "--augment", "--batch-size", 32]
    options += ["--schedule", "warmup-stable-decay", "--epochs", 3]
    options += ["--data-dir", small_data(tmp_path)]
    process = subprocess.Popen(
        command("train", *options, "--out", tmp_path / "run"),
        cwd=ROOT,
        env=environment() | {"TERM": "xterm", "COLUMNS": "120"},
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    # On Linux, reading from a terminal without writers raises an error.
    with contextlib.suppress(OSError):
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r", "\n")
    bars = re.findall(r"^. epoch \d/3 ━.*$", text, re.MULTILINE)
    assert re.search(r"epoch 1/3 ━.* 0/16 compiling", bars[0])
    assert "loss 0.0000" not in text
    assert any(re.search(r"epoch \d/3 ━.* 16/16 loss \d\.\d+  accuracy \d\.\d+", b) for b in bars)
    assert re.search(r"^epoch 1/3  train loss .* s$", text, re.MULTILINE)
    summary = json.loads(text.strip().splitlines()[-1])
    assert summary["run"] == str(tmp_path / "run") and summary["test_accuracy"] > 0.5


@pytest.mark.slow
def test_evaluate_repeats_the_training_runs_figures(trained):
    out, stdout = trained
    figures = json.loads(run("evaluate", out).stdout)
    summary = json.loads(stdout.splitlines()[-1])
    assert figures == {key: summary[key] for key in ("test_accuracy", "test_loss")}


def test_export_writes_into_the_run(trained, monkeypatch, capsys):
    out, _ = trained
    monkeypatch.setattr(sys, "argv", ["examples.mnist", "export", str(out)])
    assert main() == 0
    assert capsys.readouterr().out.startswith(f"{out}/model.stablehlo: ")
    assert (out / "model.stablehlo").stat().st_size > 100_000


def test_predict_reads_pictures_and_idx(trained, tmp_path):
    out, _ = trained
    digits = data.load()
    right = 0
    paths = []
    idx = tmp_path / "some-idx3-ubyte.gz"
    header = struct.pack(">4I", 2051, 2, 28, 28)
    idx.write_bytes(gzip.compress(header + digits.test_images[:2].tobytes()))
    for i in range(20):
        paths.append(tmp_path / f"{i}.png")
        # Like a scan: large, dark on light, off centre.
        page = Image.new("L", (200, 160), 255)
        ink = Image.fromarray(255 - digits.test_images[i]).resize((112, 112))
        page.paste(ink, (60, 20))
        page.save(paths[-1])
    lines = run("predict", out, *paths, idx).stdout.splitlines()
    assert len(lines) == 22 and lines[21].startswith(f"{idx}[1]: ")
    for path, line, label in zip(paths, lines, digits.test_labels, strict=False):
        match = re.fullmatch(rf"{re.escape(str(path))}: (\d) \((\d+\.\d)%\)", line)
        assert match, line
        right += int(match[1]) == label
    assert right >= 15


@pytest.mark.slow
def test_what_the_user_can_mend_is_one_line(trained, tmp_path, monkeypatch, capsys):
    out, _ = trained
    blank, text = tmp_path / "blank.png", tmp_path / "text.png"
    Image.new("L", (50, 50), 255).save(blank)
    text.write_text("no picture")
    cases = [
        (["evaluate", tmp_path], "holds no run"),
        (["train", "--out", out], "already holds a run"),
        (["train", "--out", out, "--resume", "--seed", 7], "seed"),
        (["train", "--out", tmp_path / "new", "--batch-size", 9000], "batch_size"),
        (["train", "--out", tmp_path / "new", "--data-dir", tmp_path], "lacks"),
        (["train", "--out", tmp_path / "new", "--download"], "--data-dir"),
        (["predict", out, blank], "shows no digit"),
        (["predict", out, text], "not a picture"),
        (["export", out, out], "is a folder"),
        (["predict", out, tmp_path / "absent.png"], "absent.png cannot be read (No such file"),
        (["train", "--out", text], "text.png"),
    ]
    done = run(*cases[0][0], status=1)
    assert re.fullmatch(r"error: .*\n", done.stderr) and cases[0][1] in done.stderr
    for arguments, words in cases:
        monkeypatch.setattr(sys, "argv", ["examples.mnist", *map(str, arguments)])
        assert main() == 1
        said = capsys.readouterr().err
        assert re.fullmatch(r"error: .*\n", said) and words in said, said
        assert not (tmp_path / "new").exists()
    for option, value in (("--learning-rate", "nan"), ("--epochs", 0), ("--model", "gpt")):
        monkeypatch.setattr(sys, "argv", ["examples.mnist", "train", option, str(value)])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert option in capsys.readouterr().err
