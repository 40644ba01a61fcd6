"""The maximum of each block, with NaN and infinity, and its memory traffic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax.xla.maxima import InBlocks, largest
from tests.catalogue import temporaries

# The program of other platforms than the CPU.
BY_ELEMENT = """
def largest(arrays):
    return [jnp.max(maxima.in_blocks(maxima.magnitudes(x), n), axis=-1) for x, n, _ in arrays]
leaf.largest = largest
"""


def rows_with(number, size):
    """A row for each position of the value."""
    rows = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    np.fill_diagonal(rows, number)
    return rows


@pytest.mark.parametrize("size", [40, 128])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, -100.0])
def test_the_largest_magnitude_is_found_at_each_place(size, number):
    [found] = jax.jit(lambda x: largest([InBlocks(x, size)]))(rows_with(number, size))
    np.testing.assert_array_equal(found, 100.0 if number == -100 else np.inf)


@pytest.mark.bits
def test_xla_loses_nans():
    found = jax.jit(lambda x: jnp.max(x, axis=-1))(rows_with(np.nan, 128))
    assert not np.any(np.isnan(found)), "adam_jax/xla/maxima.py can perhaps go"


@pytest.mark.slow
@pytest.mark.bits
def test_xla_stores_moments_twice_for_a_search_by_element():
    by_element = temporaries.of_eight_bits(devices=1, first=BY_ELEMENT)
    assert by_element > temporaries.of_eight_bits(devices=1) + 0.4
