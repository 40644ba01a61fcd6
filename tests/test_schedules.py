import jax
import jax.numpy as jnp
import numpy as np

from adam_jax import schedules


def test_inverse_sqrt_is_the_theorems():
    counts = np.array([0, 1, 3, 99, 10**6])
    rates = jax.jit(jax.vmap(schedules.inverse_sqrt_schedule(0.5)))(jnp.asarray(counts))
    np.testing.assert_allclose(rates, 0.5 / np.sqrt(counts + 1.0), rtol=1e-6)
