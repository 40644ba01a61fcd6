"""docs/errors.md has a row for each message of the package, by its first words."""

import ast
import re
from pathlib import Path

import adam_jax
from tests.catalogue.pages import DOCS, codes

PACKAGE = Path(adam_jax.__file__).parent
PAGE = DOCS / "errors.md"
OF_JAX = "memory_space of all inputs passed to"  # For `sharding.offload`; see its tests.


def text(node):
    """A string in the source, with … for each value; "" if it is none."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=parts):
            return "".join(text(part) for part in parts)
        case ast.FormattedValue():
            return "…"
    return ""


def strings(tree):
    """The messages of errors and warnings, also those that are assigned to `message` first."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, *_]):
                if name.endswith("Error") or name in ("kind", "warn"):
                    yield text(first)
            case ast.Assign(targets=[ast.Name(id="message")], value=value):
                yield text(value)


def messages():
    """All sentences, without the path of the leaf."""
    found = {m for path in PACKAGE.rglob("*.py") for m in strings(ast.parse(path.read_text()))}
    found = {re.sub(r"^at …, ", "", message) for message in found}
    return {message for message in found if re.search(r"\w.*[.?…]$", message, re.DOTALL)}


def keys():
    rows = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE)
    return [key for row in rows for key in codes(row)]


def test_every_message_begins_as_a_row_does():
    found, listed = messages(), tuple(keys())
    assert len(found) > 100
    assert sorted(m for m in found if not m.startswith(listed)) == []


def test_every_row_has_its_message_and_every_key_its_words():
    listed, found = keys(), messages() | {OF_JAX}
    assert sorted(set(listed)) == sorted(listed)
    assert [key for key in listed if not any(m.startswith(key) for m in found)] == []
    assert [key for key in listed if len(key.split()) < 2] == []
