"""A leaf sharded along any of its axes, stacked or not: the same steps, and no leaf sent."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adam_jax
from tests.catalogue.sharded import TRANSFORMATIONS

SHAPE = (8, 16, 1024)  # A part along the last axis holds a block of 128.
OURS = [name for name, tx in TRANSFORMATIONS.items() if isinstance(tx, adam_jax.Transformation)]


def stepped(tx, params, where):
    """The parameters after 3 steps, and the most elements that a collective of a step returns."""
    grads = jax.random.normal(jax.random.key(1), SHAPE).astype(params.dtype)
    params, grads = ({"w": jax.device_put(x, where)} for x in (params, grads))
    state = tx.init(params)
    step = jax.jit(tx.step)
    program = step.lower(grads, state, params).compile().as_text()
    sent = re.findall(r"= (\S+|\(.*?\)) (?:all-|collective-|reduce-)[\w-]+\(", program)
    sizes = [re.findall(r"\d+", size) for x in sent for size in re.findall(r"\[(.*?)\]", x)]
    for _ in range(3):
        params, state = step(grads, state, params)
    return np.asarray(params["w"], np.float32), max([math.prod(map(int, x)) for x in sizes] or [0])


@pytest.mark.slow
@pytest.mark.parametrize("layers", [False, True], ids=["a leaf", "layers"])
@pytest.mark.parametrize("name", OURS)
def test_along_each_axis(name, layers, standard_promotion):
    tx = TRANSFORMATIONS[name]
    tx = adam_jax.with_layers(tx, "w") if layers else tx
    params = jax.random.normal(jax.random.key(0), SHAPE)
    params = params.astype(jnp.bfloat16) if "residual" in name else params
    whole, _ = stepped(tx, params, None)
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        for axis in range(3):
            spec = PartitionSpec(*[None] * axis, "data")
            parts, sent = stepped(tx, params, NamedSharding(mesh, spec))
            np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)
            # On automatic axes, where no type shows the sharding, layers may be sent for a norm.
            if kind == AxisType.Explicit:
                assert sent <= math.prod(SHAPE) / 16, axis  # Means over the second axis.
