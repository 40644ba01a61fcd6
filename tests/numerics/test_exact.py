"""A product is rounded before it is added, without fused multiply-add."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax.numerics import exact
from tests.catalogue.scripts import process

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from adam_jax.numerics import exact

draw = np.random.default_rng(0)
a, b, c = (jnp.asarray(x, jnp.float32) for x in draw.standard_normal((3, 4096)))
right = np.asarray(a) * np.asarray(b) + np.asarray(c)
contracted = jax.jit(lambda a, b, c: a * b + c)(a, b, c)
rounded = jax.jit(lambda a, b, c: exact(a * b) + c)(a, b, c)
print(int(np.sum(np.asarray(contracted) != right)), int(np.sum(np.asarray(rounded) != right)))
"""


LEARNING_RATES = """
import jax, jax.numpy as jnp, numpy as np
import adam_jax

g, params = (jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).normal(size=(2, 999)))

def stepped(tx):
    step = jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p)[0])
    return np.asarray(step(g, tx.init(params), params))

for make in (adam_jax.laprop, adam_jax.adamax):
    static, argument = make(0.0123), adam_jax.with_hyperparams(make)(learning_rate=0.0123)
    print(int(np.sum(stepped(static) != stepped(argument))))
"""


@pytest.mark.bits
def test_constant_learning_rates_are_contracted_as_arguments_are_without_avx_512():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa=AVX2"
    printed = process("-c", LEARNING_RATES, in_a_hurry=False, XLA_FLAGS=flags).stdout
    assert printed.split() == ["0", "0"]


@pytest.mark.bits
def test_it_is_rounded_and_without_it_not_always():
    without, with_it = map(int, process("-c", PROGRAM, in_a_hurry=False).stdout.split())
    assert with_it == 0
    # A processor without FMA has nothing to contract.
    assert without > 0 or "fma" not in Path("/proc/cpuinfo").read_text()


def test_it_is_the_number_itself():
    x = jnp.asarray([-jnp.inf, -2, -0.0, 0.0, 1e-37, jnp.inf, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(exact(x), x)
    z = jax.lax.complex(x[1:-2], x[1:-2])
    np.testing.assert_array_equal(jax.jit(jax.vmap(exact))(z), z)
    assert jax.grad(lambda x: exact(x) * 3)(2.0) == 3
    assert jax.grad(lambda x: exact(x) * 3)(0.0) == 3


def test_elsewhere_it_is_nothing():
    text = jax.jit(exact).trace(jnp.ones(3)).lower(lowering_platforms=("tpu",)).as_text()
    assert "select" not in text
