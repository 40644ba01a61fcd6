"""docs/migrating/optax.md, "Where arguments are read differently": both libraries run each row."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue.pages import DOCS, code, table

ROWS = table(DOCS / "migrating" / "optax.md", "## Where arguments are read differently")

pytestmark = pytest.mark.usefixtures("standard_promotion")  # Optax needs it.


def made(library, row):
    written = code(row["written"])
    if library is adam_jax:
        written = written.replace("contrib.", "")
    return eval(written, {"o": library, "jnp": jnp})


def update(library, row, grads, params=None):
    tx = made(library, row)
    return tx.update(grads, tx.init(params if params is not None else grads), params)[0]


def scalar_parameter(row):
    shapes = [update(o, row, jnp.ones(()), jnp.ones(())).shape for o in (optax, adam_jax)]
    assert shapes == [(1,), ()]


def zero_gradient(row):
    theirs, ours = (update(o, row, jnp.zeros(3)) for o in (optax, adam_jax))
    assert np.isnan(theirs).all() and (ours == 0).all()


def nan_in_the_gradient(row):
    grads = jnp.array([1.0, jnp.nan])
    assert np.isnan(update(optax, row, grads)).all()
    np.testing.assert_array_equal(update(adam_jax, row, grads), grads)


def no_links(row):
    with pytest.raises(ValueError, match="not enough values"):
        made(optax, row)
    np.testing.assert_array_equal(update(adam_jax, row, jnp.ones(3)), 1)


def python_floats(row):
    params, grads = {"w": 2.0}, {"w": 0.5}
    with pytest.raises(AttributeError, match="dtype"):
        update(optax, row, grads, params)
    expected = update(adam_jax, row, *(jax.tree.map(jnp.asarray, tree) for tree in (grads, params)))
    np.testing.assert_array_equal(update(adam_jax, row, grads, params)["w"], expected["w"])


def refused(row):
    assert row["here"].startswith("an error")
    grads = {"w": jnp.ones(3), "b": jnp.ones(1)}
    shapes = jax.tree.map(jnp.shape, update(optax, row, grads, grads))
    assert shapes["b"] == ((3,) if "(3," in row["written"] else (1,))
    assert ("shape" in row["Optax 0.2.8"]) == (shapes["b"] == (3,))
    with pytest.raises(ValueError, match="must be"):
        made(adam_jax, row)


DIFFERENT = {
    "a parameter that is a scalar": scalar_parameter,
    "a gradient of zero": zero_gradient,
    "a NaN in the gradient": nan_in_the_gradient,
    "": refused,
    "parameters that are Python floats": python_floats,
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["written"])
def test_what_is_written_does_what_the_row_says(row):
    """The words after the expression name the difference; without words, we raise an error."""
    words = re.sub(r"^`[^`]*`(, )?", "", row["written"])
    check = no_links if code(row["written"]) == "o.chain()" else DIFFERENT[words]
    check(row)


def test_every_kind_of_row_is_there():
    assert {re.sub(r"^`[^`]*`(, )?", "", row["written"]) for row in ROWS} == set(DIFFERENT)
