"""Records of measurements: whole lines after any interruption."""

import json

import pytest

from adam_jax import inspect

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
