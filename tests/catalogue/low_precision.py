"""The storage forms of moments and weights, as data: the low-precision tests run over them."""

import jax
import jax.numpy as jnp
import pytest

import adam_jax
from adam_jax.formats.blockwise import Power

CODECS = {
    "int8 mu": Power(signed=True),
    "int8 nu": Power(signed=False),
    "int4 mu": Power(signed=True, bits=4),
    "int4 nu": Power(signed=False, bits=4),
}
# mu and nu.
MOMENTS = {
    "int8": (jnp.int8, jnp.int8),
    "int4": (jnp.int4, jnp.int4),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "stochastic int8": (adam_jax.stochastic(jnp.int8), adam_jax.stochastic(jnp.int8)),
    "stochastic int4": (adam_jax.stochastic(jnp.int4), adam_jax.stochastic(jnp.int4)),
    "block means": (jnp.float32, adam_jax.BlockMeans(0)),
    "int8, block means": (jnp.int8, adam_jax.BlockMeans(0)),
    "stochastic bfloat16": (adam_jax.stochastic(jnp.bfloat16), adam_jax.stochastic(jnp.bfloat16)),
}
WEIGHTS = {
    "stochastic_rounding": adam_jax.stochastic_rounding,
    "master_residual 16": adam_jax.master_residual,
    "master_residual 8": lambda tx: adam_jax.master_residual(tx, 8),
}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
every_form_of_moments = pytest.mark.parametrize("form", MOMENTS.values(), ids=MOMENTS)
every_form_of_weights = pytest.mark.parametrize("wrap", WEIGHTS.values(), ids=WEIGHTS)


def gradients(turn, params):
    def gradient(key, p):
        # The same values for every dtype of the weights.
        g = jax.random.normal(jax.random.fold_in(key, turn), p.shape)
        return g.astype(jnp.bfloat16).astype(p.dtype)

    return {n: gradient(jax.random.key(i), p) for i, (n, p) in enumerate(sorted(params.items()))}
