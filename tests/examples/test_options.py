"""Errors for invalid option values name the option, the value and the allowed range."""

import argparse
import importlib
import re

import pytest

from examples.shared import command_line
from tests.catalogue.scripts import ROOT

# An option, a value of the wrong type, a value out of range, and the range in words.
RATE, COUNT = "a number in [0, inf)", "a whole number of at least 1"
SEED = "a whole number from 0 to 4294967295"
WRONG = {
    "mnist train": [
        ("--learning-rate", "abc", "-1", RATE),
        ("--epochs", "many", "0", COUNT),
        ("--batch-size", "1.5", "-3", COUNT),
        ("--seed", "x", "-1", SEED),
    ],
    "mnist serve model": [
        ("--port", "http", "65536", "a whole number from 0 to 65535"),
        ("--timeout", "1s", "nan", "a number in (0, 3600]"),
    ],
    "studies.text train": [
        ("--steps", "1e3", "0", COUNT),
        ("--learning-rate", "fast", "nan", RATE),
        ("--seed", "x", "-1", SEED),
    ],
    "studies.text sample run": [
        ("--length", "long", "0", COUNT),
        ("--temperature", "hot", "0", "a number in (0, inf)"),
    ],
    **{
        name: [("--seed", "x", str(2**32), SEED)]
        for name in ("studies.compare", "studies.tune", "studies.transfer", "studies.paper")
    },
    "usage.basics": [("--seed", "x", "-1", SEED)],
}


@pytest.mark.parametrize(
    ("command", "option", "value", "allowed"),
    [
        (command, option, value, allowed)
        for command, cases in WRONG.items()
        for option, *values, allowed in cases
        for value in values
    ],
)
def test_a_wrong_value_is_said_with_what_is_allowed(capsys, command, option, value, allowed):
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
