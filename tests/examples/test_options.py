"""Errors for invalid option values name the option, the value and the allowed range."""

import argparse
import importlib
import re

import pytest

from examples.shared import command_line
from tests.catalogue.scripts import ROOT

RATE, COUNT = "a number in [0, inf)", "a whole number of at least 1"
SEED = "a whole number from 0 to 4294967295"
# A program, an option, the range in words, a value of the wrong type, and one out of range.
WRONG = [
    ("mnist train", "--learning-rate", RATE, "abc", "-1"),
    ("mnist train", "--epochs", COUNT, "many", "0"),
    ("mnist train", "--batch-size", COUNT, "1.5", "-3"),
    ("mnist train", "--seed", SEED, "x", "-1"),
    ("mnist serve model", "--port", "a whole number from 0 to 65535", "http", "65536"),
    ("mnist serve model", "--timeout", "a number in (0, 3600]", "1s", "nan"),
    ("studies.text train", "--steps", COUNT, "1e3", "0"),
    ("studies.text train", "--learning-rate", RATE, "fast", "nan"),
    ("studies.text sample run", "--length", COUNT, "long", "0"),
    ("studies.text sample run", "--temperature", "a number in (0, inf)", "hot", "0"),
]
# All of these have the options of examples.shared.study.
STUDIES = ("studies.compare", "studies.tune", "studies.transfer", "studies.paper", "usage.basics")
WRONG += [(name, "--seed", SEED, "x", f"{2**32}") for name in (*STUDIES, "studies.text train")]


@pytest.mark.parametrize(
    ("command", "option", "allowed", "value"),
    [(*its, value) for *its, wrong, out_of_range in WRONG for value in (wrong, out_of_range)],
)
def test_a_wrong_value_is_said_with_what_is_allowed(capsys, command, option, allowed, value):
    program, *words = command.split()
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"examples.{program}.__main__").main([*words, f"{option}={value}"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"error: argument {option}: must be {allowed}, got {value!r}")


def test_no_option_of_an_example_or_a_benchmark_is_any_number_at_all():
    """But for the program that README quotes, which shows Adam and not argparse."""
    files = [*(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    files.remove(ROOT / "examples" / "flax_mnist.py")
    lines = [line for path in files for line in path.read_text().splitlines()]
    found = [m[1] for line in lines if (m := re.search(r"add_argument.*\btype=(\w+)", line))]
    assert len(found) > 20 and not {"int", "float"} & set(found)


def test_numbers_are_read_as_python_reads_them():
    assert command_line.positive(" 12 ") == 12
    assert command_line.rate("1e-3") == 1e-3 and command_line.rate("0") == 0.0
    for text in ("inf", "1e999", "nan", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError):
            command_line.rate(text)
    with pytest.raises(argparse.ArgumentTypeError, match="got '99999.*'") as error:
        command_line.positive("9" * 5000)
    assert len(str(error.value)) < 200
