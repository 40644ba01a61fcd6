"""Records of `adam_jax.measured(state)` over time, in a file.

A record is its result: {"step": 1200, "groups": {"encoder": {"gradient_rms": 1e-3, ...}, ...}}
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from adam_jax._types import Leaf, Named

Record = Mapping[str, Any]
LONGEST = 1 << 22  # Bytes of a record and of a part of the next.
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
        last = record_of(rest) or record_of(whole)
        begun = not whole and line.startswith(rest[: len(b'{"step": ')])
        if not last and not begun:  # Never truncates a file of another origin.
            raise ValueError(
                f"path must be a new file or one that append_json_line wrote, got {str(path)!r},"
                f" which ends in {(rest or whole)[-60:]!r}: write to another file."
            )
        if last and last["step"] == named["step"]:
            return False
        if not record_of(rest):
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
        if line.strip() and not record_of(line):
            raise ValueError(
                f"path must be a file that append_json_line wrote, got {str(path)!r}, whose line"
                f" {number} is {line[:60]!r}: remove that line, or read another file."
            )
    return [with_floats(record) for line in lines if (record := record_of(line))]


def record_of(line: bytes) -> Named | None:
    """The record in a line; None if it has none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def with_floats(value: Leaf) -> Leaf:
    """A value from JSON, with NaN and infinities restored."""
    if isinstance(value, dict):
        return {key: with_floats(each) for key, each in value.items()}
    if isinstance(value, list):
        return [with_floats(each) for each in value]
    return _NOT_FINITE.get(value, value)


def _last_lines(file: IO[bytes]) -> tuple[bytes, bytes]:
    """The last complete line and the text after it, from the end of the file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST))
    *lines, rest = file.read().split(b"\n")
    return next((line for line in reversed(lines) if line.strip()), b""), rest
