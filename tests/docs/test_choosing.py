"""The tables of docs/choosing.md are complete and match the members and modifiers."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import adam_jax
from tests.catalogue.pages import DOCS, codes, table

PAGE = DOCS / "choosing.md"
MEMBERS = table(PAGE, "## Members")


def is_alias(f):
    if not inspect.isfunction(f):
        return False
    return next(iter(inspect.signature(f).parameters), None) == "learning_rate"


ALIASES = {name for name in adam_jax.__all__ if is_alias(getattr(adam_jax, name))}
ALIASES -= {"scale_by_learning_rate", "scale_on_sphere"}


def decay_of(name):
    """The default λ; None for a member without weight decay by default."""
    parameter = inspect.signature(getattr(adam_jax, name)).parameters.get("weight_decay")
    return None if parameter is None else parameter.default


def test_the_table_of_members_is_complete():
    assert {name for row in MEMBERS for name in codes(row["member"])} == ALIASES


@pytest.mark.parametrize("row", MEMBERS, ids=lambda row: row["member"])
def test_states_and_bytes_of_the_table_of_members(row):
    params = jax.ShapeDtypeStruct((1000,), jnp.float32)
    for name in codes(row["member"]):
        state = jax.eval_shape(getattr(adam_jax, name)(1e-3).init, params)
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        large = {path[-1].name: x for path, x in leaves if x.size > 1}
        assert set(large) == set(row["state"].split(", "))
        size = sum(x.size * x.dtype.itemsize for x in large.values())
        assert size == 1000 * int(row["bytes"])


def test_members_that_decay_and_by_how_much():
    for row in MEMBERS:
        names = codes(row["member"])
        # A number for all members of the row, or "`adamw`: `1e-4`" for one of them.
        only, _, shown = row["λ"].rpartition(": ")
        decaying = codes(only) or (names if shown else [])
        for name in names:
            default = decay_of(name)
            assert (default is not None) == (name in decaying), name
            assert default is None or default == float(shown.strip("`")), name


REQUIRED = {"corrected_weight_decay": {"peak_learning_rate": 1e-3}}


@pytest.mark.parametrize("row", table(PAGE, "## Modifiers"), ids=lambda row: row["modifier"])
def test_the_table_of_modifiers_says_where_each_does_not_go(row):
    [name] = codes(row["modifier"])
    refused = set()
    for member in ALIASES:
        try:
            getattr(adam_jax, name)(getattr(adam_jax, member)(1e-3), **REQUIRED.get(name, {}))
        except ValueError:
            refused.add(member)
    if row["not on"] == "members without λ":
        assert refused == {m for m in ALIASES if decay_of(m) is None}
    else:
        listed = set(row["not on"].split(", ")) - {""}
        assert refused == listed | {m + "w" for m in listed if m + "w" in ALIASES}


def test_the_cases_name_members_and_modifiers_that_there_are():
    rows = table(PAGE, "# Choosing a member")
    named = {name.partition("(")[0] for row in rows for name in codes(row["take"])}
    assert len(rows) >= 10
    assert named <= set(adam_jax.__all__)
