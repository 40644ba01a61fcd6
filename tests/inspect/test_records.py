"""Records: whole lines after any interruption, and strict JSON, which has no bare `NaN`."""

import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adam_jax import inspect
from examples.shared import strict_json
from tests.examples.processes import ROOT, strict

NAMES = ("gradient_rms", "update_rms", "parameter_rms", "update_to_parameter", "cosine")


def record(step, groups=("encoder", "head")):
    return {"step": step, "groups": {group: dict.fromkeys(NAMES, -0.31) for group in groups}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "telemetry.jsonl"


def written(path, *records):
    for r in records:
        inspect.append_json_line(path, r)
    return path


def test_what_is_appended_is_read(tmp_path):
    path = tmp_path / "runs" / "new" / "telemetry.jsonl"
    records = [record(100), record(200) | {"loss": 0.5, "note": "zwölf\n\u2028"}]
    assert all(inspect.append_json_line(str(path), r) for r in records)
    assert inspect.read_json_lines(path) == records
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == records


def test_a_step_is_not_written_twice_in_a_row(path):
    steps = [100, 100, 100, 200, 200, 100]
    told = [inspect.append_json_line(path, record(step)) for step in steps]
    assert told == [True, False, False, True, False, True]
    assert [r["step"] for r in inspect.read_json_lines(path)] == [100, 200, 100]


def test_killed_at_any_byte(path):
    whole = written(path, {"step": 1}, {"step": 2}).read_bytes()
    first = whole.index(b"\n") + 1
    for kept in range(len(whole) + 1):
        path.write_bytes(whole[:kept])
        # A line that lacks only its newline is a complete record.
        ends = [n for n in (first - 1, len(whole) - 1) if kept >= n]
        assert [r["step"] for r in inspect.read_json_lines(path)] == [1, 2][: len(ends)], kept
        again = {"step": 1 + len(ends), "cosine": -0.5}
        assert inspect.append_json_line(path, again) is True
        assert inspect.read_json_lines(path)[-1] == again
        assert inspect.append_json_line(path, again) is False
        lines = path.read_bytes().split(b"\n")
        assert [json.loads(line)["step"] for line in lines[:-1]] == [1, 2, 3][: len(lines) - 1]
        assert lines[-1] == b""


def test_a_crash_of_the_machine_may_leave_zeros(path):
    written(path, record(1))
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert inspect.read_json_lines(path) == [record(1)]
    written(path, record(2))
    assert inspect.read_json_lines(path) == [record(1), record(2)]


def test_only_the_end_of_a_long_file_is_read_and_long_lines_are_whole(path):
    layers = [f"layer_{i}" for i in range(1500)]
    wide = [record(step, layers) for step in (1, 2, 2, 3)]
    assert len(json.dumps(wide[0])) > 2 * 2**16
    written(path, *wide, record(4), record(4))
    path.write_bytes(path.read_bytes() + b"\n")  # As by an editor.
    assert inspect.append_json_line(path, record(4)) is False
    assert [r["step"] for r in inspect.read_json_lines(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "text", ['{"a": 1}', '{\n "step": 1\n}', "loss\n0.1", "5\n", "[]\n", '"', "\xe4"]
)
def test_nothing_is_cut_off_a_file_of_another_kind(path, text):
    path.write_text(text, encoding="latin-1")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"^path must be a new file .* got '.*telemetry.jsonl'"):
        inspect.append_json_line(path, record(1))
    assert path.read_bytes() == before


def test_reading_says_which_line_is_wrong(path):
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"telemetry.jsonl', whose line 2 is .*: remove that line"):
        inspect.read_json_lines(path)
    with pytest.raises(FileNotFoundError):
        inspect.read_json_lines(path.with_name("none.jsonl"))


def test_a_record_has_a_step(path):
    with pytest.raises(ValueError, match=r"record must have a step, got the entries \['loss'\]"):
        inspect.append_json_line(path, {"loss": 1.0})
    assert not path.exists()


def test_a_record_is_strict_json_and_comes_back(path):
    odd = {
        "step": jnp.int32(3),
        "groups": {"all": {"cosine": math.nan, "update_rms": math.inf}},
        "loss": np.float32(-np.inf),
        "jax": jnp.bfloat16(jnp.nan),
        "list": [ODD, {"deep": [math.nan]}],
        "note": "NaN and Infinity",
    }
    assert inspect.append_json_line(path, odd) is True
    assert inspect.append_json_line(path, odd | {"step": 3}) is False
    found = strict(path.read_text())
    assert found["groups"]["all"] == {"cosine": "NaN", "update_rms": "Infinity"}
    assert (found["loss"], found["jax"]) == ("-Infinity", "NaN")
    (back,) = inspect.read_json_lines(path)
    np.testing.assert_equal(back, odd | {"step": 3, "loss": -math.inf, "jax": math.nan})
    with pytest.raises(TypeError, match="float"):
        inspect.append_json_line(path, {"step": 4, "model": object()})


def test_a_record_of_before_with_bare_words_is_read_and_added_to(path):
    old = {"step": 3, "cosine": math.nan, "update_rms": -math.inf}
    path.write_text(json.dumps(old) + "\n")
    assert "NaN" in path.read_text() and '"NaN"' not in path.read_text()
    np.testing.assert_equal(inspect.read_json_lines(path), [old])
    assert inspect.append_json_line(path, old) is False
    assert inspect.append_json_line(path, old | {"step": 4}) is True
    np.testing.assert_equal(inspect.read_json_lines(path), [old, old | {"step": 4}])
    strict(path.read_text().splitlines()[1])


ODD = [math.nan, math.inf, -math.inf, 0.5, -0.0, 5e-324]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=9,
)


@given(values)
def test_any_value_is_strict_json_and_comes_back(value):
    text = strict_json.dumps(value)
    strict(text)
    assert "\n" not in text

    def expected(value):
        if isinstance(value, list):
            return [expected(each) for each in value]
        if isinstance(value, dict):
            return {key: expected(each) for key, each in value.items()}
        # A string with one of the three words is read as the number.
        return float(value) if value in ("NaN", "Infinity", "-Infinity") else value

    np.testing.assert_equal(strict_json.loads(text), expected(value))
    np.testing.assert_equal(strict_json.loads(json.dumps(value)), expected(value))  # Old files.


def test_arrays_are_lists_where_they_are_asked_to_be():
    text = strict_json.dumps({"x": np.float32(ODD[:3])}, default=np.ndarray.tolist, indent=1)
    assert strict(text) == {"x": ["NaN", "Infinity", "-Infinity"]} and text.count("\n") > 3
    with pytest.raises(TypeError):
        strict_json.dumps({"x": object()})


def test_all_that_examples_and_benchmarks_write_is_strict():
    """A plain `json.dump` is allowed for strings and integers, or if it rejects other numbers."""
    files = [*(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    found = [
        (path.relative_to(ROOT).as_posix(), line.strip())
        for path in files
        for line in path.read_text().splitlines()
        if re.search(r"(?<!strict_)json\.dumps?\(", line) and "allow_nan=False" not in line
    ]
    assert {path for path, _ in found} <= {
        "examples/shared/strict_json.py",
        "examples/shared/study.py",  # Compares settings
        "examples/mnist/runs.py",  # Settings, which are finite
    }, found
