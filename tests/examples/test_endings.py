"""Commands that fail or are interrupted, even during import: one line on stderr and a status."""

import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from examples.shared import study
from examples.mnist import __main__ as mnist
from examples.mnist import distributed
from tests.examples.processes import DIGIT, ROOT, command, environment, in_this_process, small_data
from tests.examples.serving import ask, even, png, served

pytestmark = pytest.mark.slow


def interrupted_at_import(name, words, time=1):
    """The output and exit status of a command interrupted by ctrl-C while it imports a module.

    Args:
      name: name of the module.
      words: the command's words.
      time: which of the command's imports of the module, one per process, counted from 1.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=environment() | {"PYTHONPROFILEIMPORTTIME": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # As in a terminal, all of its processes get the signal.
    )
    said, seen = [], 0
    with process:
        for line in iter(process.stderr.readline, ""):
            if not line.startswith("import time:"):
                said.append(line)
            elif re.search(rf"\| +{re.escape(name)}$", line.rstrip("\n")):
                seen += 1
                if seen == time:
                    os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == "" and seen >= time
    return "".join(said), process.returncode


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("numpy.version", ["examples.mnist", "evaluate", "runs/none"]),
        ("jax.version", ["examples.mnist", "serve", "runs/none"]),
        ("flax.core.frozen_dict", ["examples.mnist", "train", "--epochs", "none"]),
        ("flax.core.frozen_dict", ["examples.mnist", "predict", "runs/none", "digit.png"]),
        ("jax.version", ["examples.studies.text", "train", "--steps", "none"]),
        ("jax.version", ["examples.usage.gradient_release", "--layers", "none"]),
    ],
)
def test_ctrl_c_during_imports_is_one_line(name, words):
    assert interrupted_at_import(name, words) == ("interrupted\n", 130)


GOES_ON = "interrupted; run the same command with --resume to continue\n"


def test_ctrl_c_during_the_imports_of_one_of_several_is_one_line(tmp_path):
    options = ["--data-dir", str(small_data(tmp_path)), "--out", str(tmp_path / "run")]
    words = ["examples.mnist", "train", "--processes", "2", "--model", "softmax", *options]
    assert interrupted_at_import("jax.version", words, time=2) == (GOES_ON, 130)


def test_ctrl_c_where_nothing_is_imported_any_more_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(
        command("train", "--model", "softmax", "--data-dir", small_data(tmp_path), "--epochs", 9999)
        + ["--out", str(tmp_path / "run"), "--batch-size", "32", "--processes", "2"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    with process:
        assert process.stdout.readline().startswith("training: 9999 x 16 steps")
        assert process.stdout.readline().startswith("epoch 1/9999")
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr.read() == GOES_ON
    assert process.returncode == 130


PROGRAMS = {
    "study": ("from examples import study\nstudy.command(run)", "again to resume"),
    "mnist": (
        "import sys\nfrom types import SimpleNamespace as Space\n"
        "from examples.mnist import __main__\n"
        "arguments = Space(command='train', call=lambda _: run())\n"
        "__main__.parser = lambda _: Space(parse_args=lambda: arguments)\n"
        "sys.exit(__main__.main())",
        "with --resume to continue",
    ),
}
IN_EXEC = """
def run():
    exec("import signal; signal.raise_signal(signal.SIGINT)\\nfor i in range(9): pass")
"""
IN_GARBAGE_COLLECTION = """
def run():
    import gc, signal, threading
    def interrupt(phase, _):
        if phase == "start" and not gone.is_set():
            gone.set()
            signal.raise_signal(signal.SIGINT)
    gone = threading.Event()
    gc.callbacks.append(interrupt)
    gc.collect()
    assert gone.is_set()
    threading.Event().wait(30)
"""


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("run", [IN_EXEC, IN_GARBAGE_COLLECTION])
def test_ctrl_c_is_one_line_and_130_wherever_python_is(program, run, tmp_path):
    source, said = PROGRAMS[program]
    package = tmp_path / "interrupted"
    package.mkdir()
    (package / "__init__.py").write_text("import examples\n")
    (package / "__main__.py").write_text(f"{run}\n{source}\n")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    ended = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env=environment() | path,
        capture_output=True,
        text=True,
    )
    assert re.fullmatch(f"interrupted; run the same command {said}\n", ended.stderr)
    assert ended.returncode == 130


def of_xla():
    jnp.zeros(1 << 50, jnp.int8).block_until_ready()


def of_numpy():
    import numpy as np

    np.zeros(1 << 60, np.int8)


def of_python():
    raise MemoryError


@pytest.mark.parametrize("ended", [of_xla, of_numpy, of_python])
def test_memory_that_ends_is_one_line(ended, monkeypatch, capsys, tmp_path):
    from examples.mnist import training

    monkeypatch.setattr(training, "train", lambda *_: ended())
    options = ["--model", "softmax", "--out", tmp_path / "run"]
    assert in_this_process("train", *options) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: out of memory( \(.*\))?; free some, .*--batch-size.*\n", said)

    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(SystemExit, match="1"):
        study.command(ended)
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: out of memory( \(.*\))?; free some.*\n", said)


def test_memory_that_ends_in_one_of_several_is_not_a_lost_process(monkeypatch):
    said = []
    monkeypatch.setenv(distributed.WORKER, "0 1")
    monkeypatch.setattr(distributed, "report", said.append)
    arguments = SimpleNamespace(command="train", call=lambda _: of_xla())
    monkeypatch.setattr(mnist, "parser", lambda _: SimpleNamespace(parse_args=lambda: arguments))
    assert mnist.main() == 1
    assert "out of memory" in said[0] and "lost" not in said[0]


@pytest.mark.parametrize("ended", [of_xla, of_python])
def test_memory_that_ends_in_the_server_is_a_503(ended):
    programs = iter([lambda images: ended(), even, even])
    with served(lambda images: next(programs)(images)) as address:
        status, content = ask(address, png(DIGIT))
        assert (status, content) == (503, {"error": "out of memory; try again later"})
        assert ask(address, png(DIGIT))[0] == 200


def test_another_error_of_xla_keeps_its_traceback(monkeypatch):
    import jax

    def failing(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: no memory is mentioned here")

    arguments = SimpleNamespace(command="train", call=failing)
    monkeypatch.setattr(mnist, "parser", lambda _: SimpleNamespace(parse_args=lambda: arguments))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        mnist.main()
