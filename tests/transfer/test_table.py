"""The table that `mup_table` prints."""

import math

import jax
import jax.numpy as jnp
import pytest

from adam_jax.transfer import mup_table
from adam_jax.transfer.growth import growths
from adam_jax.transfer.mup import factors_of, readable


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, jnp.float32)


def transformer(width, count):
    block = {
        "norm": {"scale": shape(width)},
        "query": {"kernel": shape(width, 4, width // 4), "bias": shape(4, width // 4)},
        "up": {"kernel": shape(width, 4 * width)},
        "down": {"kernel": shape(4 * width, width)},
    }
    head = {"kernel": shape(width, 50), "bias": shape(50)}
    return {"embedding": shape(50, width), "blocks": [block] * count, "head": head}


def test_the_table_of_a_transformer():
    table = mup_table(transformer(64, 2), transformer(1024, 32))
    heading, *lines = str(table).splitlines()
    assert heading == "factors" and len({*map(len, lines)}) == 1 and len(lines) == 9
    words = "blocks/#/norm/scale (32 of them) [64] [1024] vector 1 1/256 1 1"
    assert lines[2].split() == words.split()
    roles = {row.path: (row.role, row.count) for row in table.rows}
    assert roles == {
        "blocks/#/down/kernel": ("hidden", 32),
        "blocks/#/norm/scale": ("vector", 32),
        "blocks/#/query/bias": ("vector", 32),
        "blocks/#/query/kernel": ("hidden", 32),
        "blocks/#/up/kernel": ("hidden", 32),
        "embedding": ("input", 1),
        "head/bias": ("fixed", 1),
        "head/kernel": ("output", 1),
    }
    [kernel] = [row for row in table.rows if row.path == "blocks/#/query/kernel"]
    assert (kernel.base_shape, kernel.shape) == ((64, 4, 16), (1024, 4, 256))
    assert (kernel.learning_rate, kernel.weight_decay, kernel.initial_rms) == (1 / 16, 16, 1 / 4)


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0])
def test_its_numbers_are_those_of_mup(alpha):
    base, params = transformer(64, 2), transformer(96, 4)
    rows = mup_table(base, params, alpha=alpha).rows
    by_shape = {(row.path.split("/")[-2:][0], row.shape): row for row in rows}
    leaves = growths(base, params)
    assert sum(row.count for row in rows) == len(leaves)
    for g in leaves:
        row = by_shape[(g.path.split("/")[-2:][0], g.shape)]
        assert (row.learning_rate, row.eps, row.weight_decay) == factors_of(g, alpha), g.path
        assert row.initial_rms == 1 / math.sqrt(g.hidden_inputs)


def test_layers_of_two_shapes_are_two_rows():
    def init(width):
        widths = (5, width, width, width, 3)
        return {f"Dense_{i}": {"kernel": shape(*widths[i : i + 2])} for i in range(4)}

    rows = mup_table(init(4), init(16)).rows
    assert [(row.path, row.count) for row in rows] == [
        ("Dense_0/kernel", 1),
        ("Dense_#/kernel", 2),
        ("Dense_3/kernel", 1),
    ]


def test_stacked_layers_are_one_row():
    def init(count, width):
        return {"blocks": {"w": shape(count, width, width), "b": shape(count, width)}}

    table = mup_table(init(2, 4), init(32, 16), layers="blocks/.*")
    assert [(row.role, row.count) for row in table.rows] == [("vector", 1), ("hidden", 1)]
    with pytest.raises(ValueError, match="^layers must match every leaf"):
        mup_table(init(2, 4), init(8, 16))


def test_what_grows_in_depth_alone_and_what_does_not_grow():
    same = mup_table(transformer(64, 2), transformer(64, 2))
    assert {(row.role, row.learning_rate, row.eps, row.weight_decay, row.initial_rms)
            for row in same.rows} == {("fixed", 1, 1, 1, 1)}  # fmt: skip
    deeper = mup_table(transformer(64, 2), transformer(64, 8))
    assert {row.eps for row in deeper.rows if row.count == 8} == {1 / 4}
    with pytest.raises(ValueError, match=r"^alpha must be in \[0.5, 1\]"):
        mup_table(transformer(64, 2), transformer(64, 2), alpha=2)


def test_factors_as_one_reads_them():
    numbers = (1, 16, 1 / 16, 1.5, 2 / 3, 1 / 4096, 2**-0.5, 32**0.5, 1 / 3**0.5, 0.3**0.5)
    words = ("1", "16", "1/16", "3/2", "2/3", "1/4096", "1/√2", "√32", "1/√3", "0.5477")
    assert tuple(map(readable, numbers)) == words
