"""Records of `adam_jax.measured(state)` over time: in a file, in TensorBoard, in one picture.

A record is its result: {"step": 1200, "groups": {"encoder": {"gradient_rms": 1e-3, ...}, ...}}
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from adam_jax._types import Leaf, Named
from adam_jax.inspect.style import empty_figure, line_style, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
# Title, unit, kind of axis.
_PANELS = {
    "gradient_rms": ("Size of the gradient", "RMS", "log"),
    "update_rms": ("Size of the update", "RMS", "log"),
    "parameter_rms": ("Size of the parameters", "RMS", "log"),
    "update_to_parameter": ("Update relative to parameters", "ratio of the RMS", "log"),
    "cosine": ("Direction: update and gradient", "cosine, −1 is downhill", "cosine"),
    "lost_to_rounding": ("Updates lost to rounding", "share of non-zero updates", "share"),
}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def append_json_line(path: str | os.PathLike[str], record: Record) -> bool:
    """Appends a record to a JSON-lines file, unless it was the last one appended.

    Call it in every step: a file that ends with the record's step is left unchanged. A process that
    is killed while it writes leaves at most half a line, which `read_json_lines` skips and the next
    call replaces.

    Each line is strict JSON: NaN and infinities are the strings "NaN", "Infinity" and "-Infinity",
    as in protobuf's JSON, which `read_json_lines` reads as floats.

    Args:
      path: the file; it is created, with its folder, if it is missing. One process writes it.
      record: from `adam_jax.measured(state)`, with any other entries: numbers, including NumPy and
        JAX scalars, strings, lists and dicts of them.

    Returns:
      Whether the record was written. If so, it is new and can also be written elsewhere.

    Raises:
      ValueError: the record has no step, or the file holds anything other than records.
    """
    if "step" not in record:
        raise ValueError(
            f"record must have a step, got the entries {sorted(record)}: pass"
            f" adam_jax.measured(state)."
        )
    text = json.dumps({"step": record["step"], **record}, default=float)
    named = json.loads(text, parse_constant=str)  # NaN and infinities, which are not strict JSON.
    line = json.dumps(named).encode() + b"\n"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        whole, rest = _last_lines(file)
        last = _record(rest) or _record(whole)
        begun = not whole and line.startswith(rest[: len(b'{"step": ')])
        if not last and not begun:  # Never truncates a file of another origin.
            raise ValueError(
                f"path must be a new file or one that append_json_line wrote, got {str(path)!r},"
                f" which ends in {(rest or whole)[-60:]!r}: write to another file."
            )
        if last and last["step"] == record["step"]:
            return False
        if not _record(rest):
            file.truncate(file.seek(0, os.SEEK_END) - len(rest))
            rest = b""
        file.write(b"\n" + line if rest else line)
    return True


def read_json_lines(path: str | os.PathLike[str]) -> list[Named]:
    """The records of a file that `append_json_line` wrote, in its order.

    The strings "NaN", "Infinity" and "-Infinity" are read as floats anywhere, as are the bare words
    that adam_jax 0.1.0 wrote. An incomplete last line, of a process that was killed or is still
    writing, is skipped.

    Raises:
      ValueError: another line is not a record.
    """
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        if line.strip() and not _record(line):
            raise ValueError(
                f"path must be a file that append_json_line wrote, got {str(path)!r}, whose line"
                f" {number} is {line[:60]!r}: remove that line, or read another file."
            )
    return [_with_floats(record) for line in lines if (record := _record(line))]


def write_tensorboard(writer: Leaf, record: Record) -> None:
    """Writes a record as TensorBoard's scalars `group/statistic`, at the record's step.

    Each call writes; a record is new when `append_json_line` returns True. NaN and infinities are
    written unchanged.

    Args:
      writer: has `add_scalar(tag, value, step)`, like the `SummaryWriter` of tensorboardX or
        PyTorch, which replaces characters that are invalid in a tag by `_`.
      record: from `adam_jax.measured(state)`. For several models under vmap the tag ends in the
        model's index, `group/statistic/3`.
    """
    models = _models(record)
    for i, model in enumerate(models):
        end = f"/{i}" if len(models) > 1 else ""
        for group, statistics in model.get("groups", {}).items():
            for name, value in statistics.items():
                writer.add_scalar(f"{group}/{name}{end}", value, model["step"])


def plot(
    records: str | os.PathLike[str] | Iterable[Record] | Record,
    metrics: str | Sequence[str] | None = None,
) -> "Figure":
    """Draws a panel for each statistic, with a line for each group.

    Sizes and their ratio have a logarithmic axis. A line has a gap where its group or its statistic
    is missing, where it is NaN or infinite, and on a logarithmic axis where it is 0. If steps
    repeat, as in a run resumed from a checkpoint, the later records are drawn. Each of several
    models under vmap has its own line, in the colour of the group.

    Args:
      records: records from `adam_jax.measured(state)`, one or more, or the path of a file that
        `append_json_line` wrote.
      metrics: names of the statistics to draw, in this order; None draws all that were measured.

    Returns:
      A matplotlib figure, which a notebook shows and `figure.savefig(path)` writes.

    Raises:
      ValueError: there are no measurements, or no such statistic.
      ModuleNotFoundError: matplotlib is not installed.
    """
    figure = empty_figure("adam_jax.inspect.plot")
    if isinstance(records, str | os.PathLike):
        records = read_json_lines(records)
    timelines: dict[int, list[Record]] = {}
    for record in cast(Iterable[Record], [records] if isinstance(records, Mapping) else records):
        for i, model in enumerate(_models(record)):
            timeline = timelines.setdefault(i, [])
            while timeline and timeline[-1]["step"] >= model["step"]:
                timeline.pop()
            timeline += [model] if model.get("groups") else []
    every = [record for timeline in timelines.values() for record in timeline]
    measured = {name: None for r in every for g in r["groups"].values() for name in g}
    if not measured:
        raise ValueError(
            "records must hold a measurement, got none: train for as many steps as the `every` of"
            " adam_jax.telemetry first."
        )
    known = list({**_PANELS, **measured})
    if metrics is None:
        metrics = [name for name in known if name in measured]
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    if not metrics or not set(metrics) <= set(known):
        raise ValueError(f"metrics must be among {known}, got {metrics}: None draws all.")

    groups = list(dict.fromkeys(group for record in every for group in record["groups"]))
    columns = min(len(metrics), 3 if len(metrics) in (3, 5, 6, 9) else 4)
    rows = math.ceil(len(metrics) / columns)
    width = max(3.1 * columns, 4.5)
    labels = [group.replace("$", r"\$") for group in groups]  # Patterns, not formulas.
    per_row = max(1, int(width / (0.6 + 0.08 * max(map(len, labels)))))
    figure.set_size_inches(width, 0.3 + 2.3 * rows + 0.18 * math.ceil(len(labels) / per_row))
    for i, name in enumerate(metrics):
        axes = figure.add_subplot(rows, columns, i + 1)
        _draw(axes, name, list(timelines.values()), groups)
        axes.set_xlabel("step" if i + columns >= len(metrics) else "", fontsize=9)
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], linewidth=1.4, **line_style(i)) for i in range(len(groups))]
    figure.legend(lines, labels, loc="outside upper left", ncols=per_row, frameon=False, fontsize=9)
    return figure


def _models(record: Record) -> list[Record]:
    """One record per model; under vmap a record holds lists with a number per model."""
    if not isinstance(record["step"], list):
        return [record]
    steps = np.asarray(record["step"])

    def of_model(i: int, x: Leaf) -> Leaf:
        return np.broadcast_to(x, steps.shape).flat[i].item()

    models = []
    for i, step in enumerate(steps.ravel().tolist()):
        groups = record.get("groups", {}) if step else {}  # Not measured yet.
        its = {g: {k: of_model(i, x) for k, x in found.items()} for g, found in groups.items()}
        models.append({"step": step, "groups": its})
    return models


def _record(line: bytes) -> Named | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def _with_floats(value: Leaf) -> Leaf:
    """A value from JSON, with NaN and infinities restored."""
    if isinstance(value, dict):
        return {key: _with_floats(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_floats(each) for each in value]
    return _NOT_FINITE.get(value, value)


def _last_lines(file: IO[bytes]) -> tuple[bytes, bytes]:
    """The last complete line and the text after it; reads only the end of the file."""
    size, block = file.seek(0, os.SEEK_END), 1 << 16
    while True:
        start = max(0, size - block)
        file.seek(start)
        *lines, rest = file.read().split(b"\n")
        lines = [line for line in lines if line.strip()]
        if start == 0 or len(lines) > 1:  # The first one may have begun before the block.
            return (lines[-1] if lines else b""), rest
        block *= 2


def _draw(axes: "Axes", name: str, timelines: list[list[Record]], groups: list[str]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    title, unit, kind = _PANELS.get(name, (name.replace("_", " "), "", "linear"))
    low = 0.0 if kind == "log" else -math.inf
    empty, ends = True, set[int]()
    for (i, group), timeline in itertools.product(enumerate(groups), timelines):
        steps = [record["step"] for record in timeline]
        ends |= {*steps[:1], *steps[-1:]}
        values = [record["groups"].get(group, {}).get(name, math.nan) for record in timeline]
        values = [y if low < y < math.inf else math.nan for y in values]
        # A point with gaps on both sides is drawn as a dot, since it has no line.
        seen = [False, *(not math.isnan(y) for y in values), False]
        alone = [b and not (a or c) for a, b, c in zip(seen, seen[1:], seen[2:], strict=False)]
        empty = empty and not any(seen)
        dots = {"marker": "o", "markersize": 3.5, "markevery": alone}
        axes.plot(steps, values, linewidth=1.4, **line_style(i), **dots)
    if empty:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color="#666666")
    elif kind == "log":
        axes.set_yscale("log")
    if kind == "cosine":  # Here and below: room for lines that run along the limits.
        axes.set(ylim=(-1.05, 1.05), yticks=[-1, -0.5, 0, 0.5, 1])
    elif kind == "share":
        axes.set_ylim(-0.025, 1.025)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(ends) > 1:
        axes.set_xlim(min(ends), max(ends))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylabel(unit, fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    plain(axes)
