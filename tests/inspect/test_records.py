"""Records of measurements: whole lines after any interruption, TensorBoard files, and plots."""

import json
import math
import pickle
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from adam_jax import inspect

TITLES = {
    "gradient_rms": "Size of the gradient",
    "update_rms": "Size of the update",
    "parameter_rms": "Size of the parameters",
    "update_to_parameter": "Update relative to parameters",
    "cosine": "Direction: update and gradient",
    "lost_to_rounding": "Updates lost to rounding",
}


def statistics(**changed):
    numbers = {
        "gradient_rms": 1e-3,
        "update_rms": 1e-4,
        "parameter_rms": 0.05,
        "update_to_parameter": 2e-3,
        "cosine": -0.31,
        "lost_to_rounding": 0.4,
    }
    return numbers | changed


def record(step, **groups):
    return {"step": step, "groups": groups or {"encoder": statistics(), "head": statistics()}}


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
    for r in records:
        assert inspect.append_json_line(str(path), r) is True
    assert inspect.read_json_lines(path) == records
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == records


def test_nan_and_infinities_survive(path):
    odd = statistics(gradient_rms=math.nan, update_rms=math.inf, cosine=-math.inf)
    written(path, record(1, all=odd))
    text = path.read_text()
    assert '"gradient_rms": "NaN"' in text and '"update_rms": "Infinity"' in text
    (back,) = inspect.read_json_lines(str(path))
    assert back == json.loads(text) | {"groups": back["groups"]}
    np.testing.assert_equal(back["groups"]["all"], odd)


def test_scalars_of_numpy_and_jax_are_numbers(path):
    entries = {"a": np.float32(0.5), "b": jnp.float32(math.nan), "c": jnp.bfloat16(2), "d": [True]}
    written(path, entries | record(jnp.int32(3)))
    (back,) = inspect.read_json_lines(path)
    assert back["step"] == 3 and back["a"] == 0.5 and math.isnan(back["b"]) and back["c"] == 2.0
    assert inspect.append_json_line(path, record(3)) is False
    with pytest.raises(TypeError, match="float"):
        inspect.append_json_line(path, record(4) | {"model": object()})
    assert len(inspect.read_json_lines(path)) == 1


def test_a_step_is_not_written_twice_in_a_row(path):
    steps = [100, 100, 100, 200, 200, 100]
    told = [inspect.append_json_line(path, record(step)) for step in steps]
    assert told == [True, False, False, True, False, True]
    assert [r["step"] for r in inspect.read_json_lines(path)] == [100, 200, 100]


def test_killed_at_any_byte(path):
    def record(step):
        return {"step": step, "groups": {"all": {"cosine": -0.5}}}

    whole = written(path, record(1), record(2)).read_bytes()
    first = whole.index(b"\n") + 1
    for kept in range(len(whole) + 1):
        path.write_bytes(whole[:kept])
        # A line that lacks only its newline is a complete record.
        ends = [n for n in (first - 1, len(whole) - 1) if kept >= n]
        assert [r["step"] for r in inspect.read_json_lines(path)] == [1, 2][: len(ends)], kept
        again = record(1 + len(ends))
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
    wide = {f"layer_{i}": statistics() for i in range(1000)}
    assert len(json.dumps(wide)) > 2 * 2**16
    for step in (1, 2, 2, 3):
        inspect.append_json_line(path, record(step, **wide))
    written(path, record(4), record(4))
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


def scalars(folder):
    """Reads TFRecords: length, checksum of the length, bytes, checksum of the bytes."""
    (file,) = folder.glob("events.out.tfevents.*")
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,), head = struct.unpack_from("<Q", data, at), data[at : at + 8]
        body = data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 8) == (masked_crc32c(head),)
        assert struct.unpack_from("<I", data, at + 12 + length) == (masked_crc32c(body),)
        event = Event.FromString(body)
        yield from (((v.tag, event.step), v.simple_value) for v in event.summary.value)
        at += 16 + length


def test_tensorboard_reads_each_statistic_at_its_step(tmp_path):
    few = statistics(cosine=math.nan)
    del few["lost_to_rounding"]
    records = [record(100), record(300, encoder=few, **{"head/bias": statistics()})]
    with SummaryWriter(str(tmp_path)) as writer:
        for r in [*records, {"step": 400}]:
            inspect.write_tensorboard(writer, r)
    expected = {
        (f"{group}/{name}", r["step"]): np.float32(value)
        for r in records
        for group, numbers in r["groups"].items()
        for name, value in numbers.items()
    }
    found = list(scalars(tmp_path))
    assert len(found) == len(expected) == 12 + 11
    np.testing.assert_equal(dict(found), expected)


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_a_panel_for_each_statistic_and_a_line_for_each_group(path):
    records = [record(step) for step in (100, 200, 300)]
    figure = inspect.plot(records)
    assert type(figure) is Figure
    assert list(panels(figure)) == list(TITLES.values())
    for name, title in TITLES.items():
        axes = panels(figure)[title]
        assert axes.get_yscale() == ("log" if "rms" in name or "_to_p" in name else "linear")
        for line in axes.get_lines():
            np.testing.assert_array_equal(line.get_xdata(), [100, 200, 300])
            np.testing.assert_array_equal(line.get_ydata(), [statistics()[name]] * 3)
        assert len(axes.get_lines()) == 2 and axes.get_legend() is None
    assert panels(figure)[TITLES["cosine"]].get_ylim() == pytest.approx((-1, 1), abs=0.1)
    assert panels(figure)[TITLES["lost_to_rounding"]].get_ylim() == pytest.approx((0, 1), abs=0.1)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["encoder", "head"]
    for file in (written(path, *records), str(path)):
        again = inspect.plot(file, ("cosine", "update_rms"))
        assert list(panels(again)) == [TITLES["cosine"], TITLES["update_rms"]]
        for title, axes in panels(again).items():
            for a, b in zip(axes.get_lines(), panels(figure)[title].get_lines(), strict=True):
                np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())


def test_what_is_missing_is_a_gap_and_what_stands_alone_a_dot():
    nan, frozen = math.nan, statistics(update_rms=0.0, cosine=math.nan)
    few = statistics(gradient_rms=math.inf)
    del few["lost_to_rounding"]
    records = [
        record(1, a=statistics()),
        record(2, a=few, b=frozen),
        record(3, b=frozen),
        record(4, a=statistics(), b=frozen),
        record(5, a=statistics(), b=frozen),
    ]
    figure = inspect.plot(records)

    def line(name, i):
        return panels(figure)[TITLES[name]].get_lines()[i]

    np.testing.assert_equal(line("gradient_rms", 0).get_ydata(), [1e-3, nan, nan, 1e-3, 1e-3])
    np.testing.assert_equal(line("lost_to_rounding", 0).get_ydata(), [0.4, nan, nan, 0.4, 0.4])
    np.testing.assert_equal(line("update_rms", 0).get_ydata(), [1e-4, 1e-4, nan, 1e-4, 1e-4])
    np.testing.assert_equal(line("update_rms", 1).get_ydata(), [nan] * 5)
    np.testing.assert_equal(line("lost_to_rounding", 1).get_ydata(), [nan, *[0.4] * 4])
    assert line("gradient_rms", 0).get_markevery() == [True, False, False, False, False]
    assert not any(line("update_rms", 0).get_markevery())
    # Also if the first steps are missing.
    assert all(axes.get_xlim() == (1, 5) for axes in figure.axes)
    figure.draw_without_rendering()


def test_nothing_to_see_in_a_panel():
    figure = inspect.plot([record(1, lion=statistics(update_rms=0.0))], ["cosine", "update_rms"])
    assert list(panels(figure)) == [TITLES["cosine"], TITLES["update_rms"]]
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert texts == [[], ["no values"]]
    figure.draw_without_rendering()


def test_a_run_that_went_back_to_a_checkpoint():
    first = [record(step, all=statistics(cosine=-0.1)) for step in (100, 200, 300, 400)]
    then = [record(step, all=statistics(cosine=-0.9)) for step in (250, 350)]
    (line,) = inspect.plot([*first, *then], "cosine").axes[0].get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [100, 200, 250, 350])
    np.testing.assert_array_equal(line.get_ydata(), [-0.1, -0.1, -0.9, -0.9])


def test_one_record_and_many_groups_of_odd_names():
    names = [r".*(bias|scale)$|^norm$", "_private", *(f"layers/{i}" for i in range(30))]
    one = record(7, **{name: statistics(gradient_noise=3.0) for name in names})
    figure = inspect.plot(one)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        *TITLES.values(),
        "gradient noise",
    ]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 32
    box, page = legend.get_window_extent(), figure.bbox
    assert box.x1 <= page.x1 and box.y0 >= figure.axes[0].get_window_extent().y1
    looks = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(looks) == 28


def test_a_notebook_shows_the_figure_without_pyplot():
    figure = inspect.plot([record(1), record(2)], "cosine")
    shown, _ = DisplayFormatter().format(figure)
    assert shown["image/png"].startswith(b"\x89PNG")
    copy = pickle.loads(pickle.dumps(figure))
    assert copy._repr_png_() == figure._repr_png_()


@pytest.mark.parametrize("records", [[], [{"step": 1, "groups": {}}], {"step": 1}])
def test_no_measurements(records):
    with pytest.raises(ValueError, match="records must hold a measurement, got none: train for"):
        inspect.plot(records)


@pytest.mark.parametrize("metrics", ["gradient", ["cosine", "gradient"], []])
def test_an_unknown_statistic(metrics):
    one = record(1, all=statistics(extra=1.0))
    message = r"metrics must be among \['gradient_rms', .*'extra'\], got .*: None draws all"
    with pytest.raises(ValueError, match=message):
        inspect.plot(one, metrics)


def test_matplotlib_is_asked_for_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'adam_jax\[inspect\]'"):
        inspect.plot(record(1))


def test_the_module_needs_jax_and_optax_alone(path):
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['matplotlib', 'tensorboardX', 'IPython'])\n"
        "from adam_jax import inspect\n"
        "inspect.append_json_line(sys.argv[1], {'step': 1})\n"
        "assert inspect.read_json_lines(sys.argv[1]) == [{'step': 1}]\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
