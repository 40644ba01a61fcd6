"""Reads the tables of docs/migrating/ that list the arguments of another library's classes."""

import inspect

import adam_jax
from tests.catalogue.pages import code, codes, table


def check_arguments(page, classes):
    """Checks the table "Every argument" against the signatures of classes and members here."""
    rows = table(page, "## Every argument")
    library = next(column for column in rows[0] if column.startswith("default in "))
    for theirs, ours in classes.items():
        own = [row for row in rows if row["classes"] == "all" or theirs.__name__ in row["classes"]]
        own = [r for r in own if r["classes"] == "all" or theirs.__name__ in codes(r["classes"])]
        parameters = inspect.signature(theirs).parameters
        assert sorted(code(row["argument"]) for row in own) == sorted(parameters), theirs
        here = inspect.signature(getattr(adam_jax, ours)).parameters
        for row in own:
            name = code(row["argument"])
            assert number(row[library]) == parameters[name].default, (theirs, name)
            names = codes(row["here"])
            shown = [number(part.strip()) for part in row["default here"].split(",")]
            assert [here[n].default for n in names] == shown[: len(names)], (theirs, name)
            assert names or not row["default here"], (theirs, name)
    named = {name for row in rows for name in codes(row["classes"])}
    assert named <= {theirs.__name__ for theirs in classes}


def number(cell):
    """A default as written in a table cell."""
    if cell == "required":
        return inspect.Parameter.empty
    return eval(cell.strip("`"), {}) if cell else None


def pairs(page, library):
    """The rows of "The same numbers": the other library's expression and ours."""
    return [(code(row[library]), code(row["here"])) for row in table(page, "## The same numbers")]
