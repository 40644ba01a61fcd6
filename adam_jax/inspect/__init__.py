"""Measurements of a run, and its memory, predicted and live."""

from adam_jax.inspect.advice import Advice, LeafAdvice, advise
from adam_jax.inspect.memory import (
    Bytes,
    LiveBytes,
    PerParameter,
    Report,
    bytes_per_parameter,
    live_bytes,
    report,
)
from adam_jax.inspect.records import (
    Record,
    append_json_line,
    plot,
    read_json_lines,
    write_tensorboard,
)

__all__ = [
    "Advice",
    "Bytes",
    "LeafAdvice",
    "LiveBytes",
    "PerParameter",
    "Record",
    "Report",
    "advise",
    "append_json_line",
    "bytes_per_parameter",
    "live_bytes",
    "plot",
    "read_json_lines",
    "report",
    "write_tensorboard",
]
