"""JSON that every reader takes, for numbers of which some may not be finite.

Python writes `NaN` and `Infinity`, which JSON does not have: JavaScript, jq and most databases
refuse the whole file. Here they are the texts "NaN", "Infinity" and "-Infinity", as in protobuf's
JSON and in the lines of `adam_jax.inspect.append_json_line`, and are read as the numbers. null
would lose which of them it was.
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
    """The value of a text that `dumps` or `json.dumps` wrote; a text of the three is a number."""
    return _numbers(json.loads(text))


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return WORDS.get(value, value)
