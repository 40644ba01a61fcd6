import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax import schedules


def test_inverse_sqrt_is_the_theorems():
    counts = np.array([0, 1, 3, 99, 10**6])
    rates = jax.jit(jax.vmap(schedules.inverse_sqrt_schedule(0.5)))(jnp.asarray(counts))
    np.testing.assert_allclose(rates, 0.5 / np.sqrt(counts + 1.0), rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("warmup", "stable", "decay"), [(4, 3, 5), (0, 3, 5), (4, 0, 5), (4, 3, 0)]
)
def test_warmup_stable_decay(warmup, stable, decay):
    schedule = schedules.warmup_stable_decay_schedule(2.0, warmup, stable, decay, 0.5, 0.25)
    rates = [float(schedule(count)) for count in range(warmup + stable + decay + 3)]
    expected = [0.5 + 1.5 * i / warmup for i in range(warmup)] + [2.0] * stable
    expected += [2.0 - 1.75 * i / decay for i in range(decay)] + [0.25] * 3
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
