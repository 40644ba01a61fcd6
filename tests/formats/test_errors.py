"""Forms of storage that are refused: the argument, the value or the leaf, and what to write."""

import jax.numpy as jnp
import optax
import pytest

import adam_jax
from tests.catalogue.runs import raised

MATRIX, CODED = {"w": jnp.ones((4, 6))}, {"w": jnp.ones((64, 64))}


def of_state(optimizer, params, **forms):
    """Makes a state in these forms."""
    return lambda: optimizer(1e-3, **forms).init(params)


def of_conversion(optimizer, params):
    return lambda: adam_jax.convert_state(optimizer(1e-3).init(params), mu_dtype=jnp.int8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: adam_jax.Quantized("int3"), ["codes", "'int3'", "int8"]),
        (lambda: adam_jax.Quantized(block=16), ["block", "16", "128"]),
        (lambda: adam_jax.Quantized("float8_e5m2"), ["codes", "float8_e5m2", "int8"]),
        (lambda: adam_jax.adamw(1e-3, nu_dtype=jnp.float8_e5m2), ["nu_dtype", "jnp.int8"]),
        (lambda: adam_jax.stochastic(jnp.float32), ["dtype", "float32", "bfloat16"]),
        (lambda: adam_jax.stochastic(jnp.float16), ["dtype", "float16", "write jnp.bfloat16"]),
        (lambda: adam_jax.by_path({"(": jnp.int8}), ["choices", "'('"]),
        (lambda: adam_jax.by_path({"a": jnp.int16}), ["choices['a']", "int16"]),
        (lambda: adam_jax.BlockMeans(1.5), ["axes", "1.5", "write 0"]),
        (lambda: adam_jax.BlockMeans((0, True)), ["axes", "(0, True)"]),
        (lambda: adam_jax.Factored(0), ["min_dim_size", "0", "128"]),
        (lambda: adam_jax.Factored(min_size=1.5), ["min_size", "1.5", "4096"]),
        (
            of_state(adam_jax.adamw, {"b": jnp.ones(4)}, nu_dtype=adam_jax.BlockMeans(1)),
            ["'b'", "axes", "got 1", "(4,)", "by_path"],
        ),
        *(
            (
                of_state(adam_jax.adamw, MATRIX, mu_dtype=form),
                ["'w'", "mu_dtype must not be one mean per block", "nu_dtype=adam_jax.BlockMeans"],
            )
            for form in (adam_jax.BlockMeans(0), adam_jax.AdamMini())
        ),
        (
            of_state(adam_jax.adamw, MATRIX, mu_dtype=adam_jax.Factored(2, 1)),
            ["'w'", "mu_dtype cannot be factored", "nu_dtype=adam_jax.Factored()"],
        ),
        (
            of_state(adam_jax.adamw, {"w": jnp.ones((64, 64), "c8")}, mu_dtype=jnp.int8),
            ["'w'", "complex64", "mu_dtype"],
        ),
        (of_conversion(optax.sgd, CODED), ["state", "moments"]),
        (of_conversion(adam_jax.adam, {"w": jnp.ones((64, 128), complex)}), ["'w'", "imaginary"]),
    ],
)
def test_what_is_refused(make, words):
    message = raised(make)
    assert all(word in message for word in words), message
