"""The table that `mup` prints, and its notes about changes the model must make itself."""

import math

import jax
import jax.numpy as jnp
import pytest

from adam_jax.transfer import mup_table, output_factor, residual_factor
from adam_jax.transfer.growth import growths
from adam_jax.transfer.mup import factors_of, readable


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, jnp.float32)


def transformer(width, count, tied=False):
    block = {
        "norm": {"scale": shape(width)},
        "query": {"kernel": shape(width, 4, width // 4), "bias": shape(4, width // 4)},
        "up": {"kernel": shape(width, 4 * width)},
        "down": {"kernel": shape(4 * width, width)},
    }
    head = {} if tied else {"head": {"kernel": shape(width, 50), "bias": shape(50)}}
    return {"embedding": shape(50, width), "blocks": [block] * count} | head


TABLE = """\
factors
                                          base         shape    role  learning rate    eps  weight decay  initial RMS
blocks/#/down/kernel (32 of them)    [256, 64]  [4096, 1024]  hidden           1/16  1/256            16          1/4
blocks/#/norm/scale (32 of them)          [64]        [1024]  vector              1  1/256             1            1
"""  # noqa: E501


def test_the_table_of_a_transformer():
    table = mup_table(transformer(64, 2), transformer(1024, 32))
    lines = str(table).splitlines()
    # Columns are as wide as their longest entry, which is in a later row.
    assert [line.split() for line in lines[:4]] == [line.split() for line in TABLE.splitlines()]
    assert len(set(map(len, lines[1:10]))) == 1 and lines[10] == ""
    assert lines[11:] == [
        "Initial values: transfer.mup_init(params, base).",
        "Multiply the output of `head/kernel` by 1/16: transfer.output_factor(1024, 64).",
        "Multiply the output of each residual block by 1/16: transfer.residual_factor(32, 2).",
        "Scores of attention: times transfer.attention_scale(head_size, base_head_size).",
    ]
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
    assert output_factor(1024, 64) == residual_factor(32, 2) == 1 / 16


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


def test_an_embedding_that_makes_the_logits():
    table = mup_table(transformer(64, 2, tied=True), transformer(128, 8, tied=True), alpha=0.5)
    assert table.hints[1:3] == (
        "No leaf is an output. If `embedding` makes the logits, multiply them by 1/2:"
        " transfer.output_factor(128, 64).",
        "Multiply the output of each residual block by 1/2: transfer.residual_factor(8, 2, 0.5).",
    )
    assert residual_factor(8, 2, 0.5) == 1 / 2


def test_an_embedding_with_outputs_first_may_look_like_an_output():
    base, params = ({"e": shape(50, n), "hidden": shape(n, n)} for n in (4, 16))
    hints = mup_table(base, params, outputs_last=False).hints
    assert "Multiply the output of `e`, unless it is an embedding, by 1/4:" in hints[1]
    # The factors are the same.
    rows = [mup_table(base, params, outputs_last=last).rows[0] for last in (True, False)]
    assert [row.role for row in rows] == ["input", "output"]
    assert len({(row.learning_rate, row.eps, row.weight_decay) for row in rows}) == 1


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
    assert "transfer.residual_factor(32, 2)" in table.hints[-2]
    assert "transfer.mup_init(params, base, layers='blocks/.*')" in table.hints[0]
    assert not any("logits" in hint for hint in table.hints)
    with pytest.raises(ValueError, match="^layers must match every leaf"):
        mup_table(init(2, 4), init(8, 16))


def test_what_grows_in_depth_alone_and_what_does_not_grow():
    same = mup_table(transformer(64, 2), transformer(64, 2))
    assert same.hints == ("Nothing grows: every factor is 1.",)
    assert {(row.role, row.learning_rate, row.eps, row.weight_decay, row.initial_rms)
            for row in same.rows} == {("fixed", 1, 1, 1, 1)}  # fmt: skip
    deeper = mup_table(transformer(64, 2), transformer(64, 8))
    assert deeper.hints == (
        "Multiply the output of each residual block by 1/4: transfer.residual_factor(8, 2).",
    )
    assert {row.eps for row in deeper.rows if row.count == 8} == {1 / 4}
    with pytest.raises(ValueError, match=r"^alpha must be in \[0.5, 1\]"):
        mup_table(transformer(64, 2), transformer(64, 2), alpha=2)


def test_factors_as_one_reads_them():
    numbers = (1, 16, 1 / 16, 1.5, 2 / 3, 1 / 4096, 2**-0.5, 32**0.5, 1 / 3**0.5, 0.3**0.5)
    words = ("1", "16", "1/16", "3/2", "2/3", "1/4096", "1/√2", "√32", "1/√3", "0.5477")
    assert tuple(map(readable, numbers)) == words
