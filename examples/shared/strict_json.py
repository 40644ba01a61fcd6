"""JSON that every reader accepts, even with NaN and infinities.

Python writes `NaN` and `Infinity`, which are not JSON: JavaScript, jq and most databases refuse the
whole file. Here they are written as the strings "NaN", "Infinity" and "-Infinity" and read back as
numbers, as in protobuf's JSON and in the lines of `adam_jax.inspect.append_json_line`. null would
lose which of the three it was.
"""

import json
import math
from collections.abc import Callable
from typing import Any

WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dumps(
    value: Any, default: Callable[[Any], Any] | None = None, indent: int | None = None
) -> str:
    """The text of a value; `default` and `indent` are those of `json.dumps`."""
    plain = json.loads(json.dumps(value, default=default), parse_constant=str)
    return json.dumps(plain, allow_nan=False, indent=indent)


def loads(text: str | bytes) -> Any:
    """The value of a text from `dumps` or `json.dumps`; the three strings become numbers."""
    return _numbers(json.loads(text))


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return WORDS.get(value, value)
