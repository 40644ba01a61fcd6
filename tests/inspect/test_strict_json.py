"""JSON files contain no bare `NaN`, which strict parsers reject; non-finite numbers round-trip."""

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

ODD = [math.nan, math.inf, -math.inf, 0.5, -0.0, 5e-324]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=9,
)


def telemetry(**changed):
    return {"step": 3, "groups": {"all": {"cosine": -0.5, "update_rms": 1.0} | changed}}


def test_a_record_is_strict_json_and_comes_back(tmp_path):
    path = tmp_path / "telemetry.jsonl"
    odd = telemetry(cosine=math.nan, update_rms=math.inf) | {
        "step": jnp.int32(3),
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


def test_a_record_of_before_with_bare_words_is_read_and_added_to(tmp_path):
    path = tmp_path / "telemetry.jsonl"
    old = telemetry(cosine=math.nan, update_rms=-math.inf)
    path.write_text(json.dumps(old) + "\n")
    assert "NaN" in path.read_text() and '"NaN"' not in path.read_text()
    np.testing.assert_equal(inspect.read_json_lines(path), [old])
    assert inspect.append_json_line(path, old) is False
    assert inspect.append_json_line(path, old | {"step": 4}) is True
    np.testing.assert_equal(inspect.read_json_lines(path), [old, old | {"step": 4}])
    strict(path.read_text().splitlines()[1])


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
