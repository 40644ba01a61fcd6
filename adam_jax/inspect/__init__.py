"""The memory of a run, what happens to each leaf, and records of measurements."""

from adam_jax.inspect.advice import Advice, LeafAdvice, advise
from adam_jax.inspect.memory import Bytes, PerParameter, Report, bytes_per_parameter, report
from adam_jax.inspect.records import Record, append_json_line, read_json_lines
from adam_jax.inspect.restored import Fault, check_state

__all__ = [
    "Advice",
    "Bytes",
    "Fault",
    "LeafAdvice",
    "PerParameter",
    "Record",
    "Report",
    "advise",
    "append_json_line",
    "bytes_per_parameter",
    "check_state",
    "read_json_lines",
    "report",
]
