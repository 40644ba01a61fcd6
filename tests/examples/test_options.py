"""Errors for invalid option values name the option, the value and the allowed range."""

import argparse
import importlib
import re
import sys
from pathlib import Path

import pytest

from examples.shared import command_line
from examples.mnist.__main__ import parser
from tests.examples.processes import ROOT

# An option, a value of the wrong type, a value out of range, and the range in words.
RATE, COUNT = "a number in [0, inf)", "a whole number of at least 1"
WRONG = {
    "mnist train": [
        ("--learning-rate", "abc", "-1", RATE),
        ("--epochs", "many", "0", COUNT),
        ("--batch-size", "1.5", "-3", COUNT),
        ("--seed", "x", str(2**63), "a whole number of 64 bits"),
        ("--processes", "two", "0", f'{COUNT}, or "auto"'),
        ("--process-id", "first", "-1", "a whole number of at least 0"),
        ("--coordinator", "localhost", "localhost:70000", "HOST:PORT"),
    ],
    "mnist serve model": [
        ("--port", "http", "65536", "a whole number from 0 to 65535"),
        ("--batch-sizes", "all", "1025", "a whole number from 1 to 1024"),
        ("--timeout", "1s", "nan", "a number in (0, 3600]"),
    ],
    "text train": [
        ("--steps", "1e3", "0", COUNT),
        ("--learning-rate", "fast", "nan", RATE),
        ("--weight-decay", "none", "-0.1", RATE),
        ("--seed", "x", "-1", "a whole number from 0 to 4294967295"),
    ],
    "text sample run": [
        ("--length", "long", "0", COUNT),
        ("--temperature", "hot", "0", "a number in (0, inf)"),
        ("--seed", "x", str(2**32), "a whole number from 0 to 4294967295"),
    ],
    "gradient_release": [("--layers", "all", "0", COUNT), ("--steps", "", "0", COUNT)],
    "tune": [("--trials", "few", "0", COUNT)],
    "compare": [("--seed", "x", str(2**32), "a whole number from 0 to 4294967295")],
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
def test_a_wrong_value_is_said_with_what_is_allowed(
    monkeypatch, capsys, command, option, value, allowed
):
    program, *words = command.split()
    monkeypatch.setattr(sys, "argv", [program, *words, f"{option}={value}"])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"examples.{program}.__main__").main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"error: argument {option}: must be {allowed}, got {value!r}")


def types_of(top):
    """The types of all options of a parser and its subcommands."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from types_of(inner)
        elif action.type not in (None, Path):
            yield action.option_strings, action.type


def test_no_type_of_mnists_options_has_a_name_that_argparse_would_show():
    found = list(types_of(parser("train")))
    assert len(found) >= 10
    for names, kind in found:
        with pytest.raises(argparse.ArgumentTypeError, match="^must be "):
            kind("no value of any option")
        assert names


def test_no_option_of_an_example_or_a_benchmark_is_any_number_at_all():
    files = [*(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    lines = [line for path in files for line in path.read_text().splitlines()]
    found = [m[1] for line in lines if (m := re.search(r"add_argument.*\btype=(\w+)", line))]
    assert len(found) > 30 and not {"int", "float"} & set(found)


def test_numbers_are_read_as_python_reads_them():
    assert options.positive(" 12 ") == 12
    assert options.rate("1e-3") == 1e-3 and options.rate("0") == 0.0
    for text in ("inf", "1e999", "nan", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError):
            options.rate(text)
    with pytest.raises(argparse.ArgumentTypeError, match="got '99999.*'") as error:
        options.positive("9" * 5000)
    assert len(str(error.value)) < 200
