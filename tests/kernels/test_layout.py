"""XLA:TPU chooses the memory layout that the kernels read."""

import re

import jax
import jax.numpy as jnp
import pytest

from adam_jax.kernels.tiles import order_on_tpus

SHAPES = [
    (1024, 16, 64),
    (16, 64, 1024),
    (768, 12, 64),
    (24, 1024, 16, 64),
    (24, 1024, 3, 16, 64),
    (3, 3, 256, 512),
    (50257, 768),
    (768, 50257),
    (1024, 12, 12, 256),
    (500, 160, 12),
    (48, 100, 500),
    (8, 8, 64),
    (4096, 11008),
]


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.int4])
def test_arguments_lie_in_the_order_that_wastes_least(dtype):
    from benchmarks.tpu.machine import compile_for_tpu

    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in SHAPES]
    program = compile_for_tpu("v5e", lambda xs: [x[...] for x in xs], arguments)
    layouts = re.findall(r"\w+\[[\d,]+\]\{([\d,]+)", program.as_text().splitlines()[0])
    found = [tuple(int(axis) for axis in reversed(x.split(","))) for x in layouts[: len(SHAPES)]]
    assert found == [order_on_tpus(shape) for shape in SHAPES]
    rows = [tuple(range(len(shape))) for shape in SHAPES]
    assert found != rows, "order_on_tpus of kernels/tiles.py can go"
