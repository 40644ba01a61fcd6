"""Optimization barriers: without them XLA stores shared values and computes ahead of loops."""

import functools

import jax
import jax.numpy as jnp
import pytest

import adam_jax
from tests.catalogue import temporaries


def without_barriers(monkeypatch):
    monkeypatch.setattr(jax.lax, "optimization_barrier", lambda x: x)


@pytest.mark.bits
def test_xla_computes_ahead_of_a_loop(monkeypatch):
    params = [jax.ShapeDtypeStruct((256, 256), jnp.float32)] * 3
    tx = adam_jax.telemetry(adam_jax.adamw(1e-3))
    assert temporaries.of_step(tx, params) < 2.5
    without_barriers(monkeypatch)
    more = temporaries.of_step(tx, params)
    assert more > 8, "kept_apart of adam_jax/xla/barrier.py can go"


@pytest.mark.usefixtures("h200_compiler")
def test_xla_stores_what_two_kernels_share(monkeypatch):
    params = [jax.ShapeDtypeStruct((4096, 4096), jnp.float32)]
    tx = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    assert temporaries.of_step(tx, params, temporaries.for_h200) < 0.2
    without_barriers(monkeypatch)
    more = temporaries.of_step(tx, params, temporaries.for_h200)
    assert more > 4, "computed_again of adam_jax/xla/barrier.py can go"


@pytest.mark.usefixtures("tpu_compiler")
def test_xla_makes_weights_and_rests_from_moments_twice(monkeypatch):
    tx = adam_jax.master_residual(adam_jax.with_kernel(adam_jax.adamw(1e-3), "xla"), 8)
    params = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16)
    assert temporaries.on_v5e(tx, params)[0] < 32.5
    monkeypatch.setattr("adam_jax.formats.rounding.stored_on_tpus", lambda x: x)
    hbm, _ = temporaries.on_v5e(tx, params)
    jax.clear_caches()
    assert hbm > 34, "stored_on_tpus of adam_jax/xla/barrier.py can go"


@pytest.mark.usefixtures("h200_compiler")
def test_xla_deletes_a_rounding_to_float16(monkeypatch):
    from benchmarks import gpu

    def large_kernels():
        tx = adam_jax.chain(adam_jax.scale_by_learning_rate(0.1), adam_jax.ema_params(0.9))
        p = jax.ShapeDtypeStruct((1024, 1024), jnp.float16)
        step = functools.partial(adam_jax.step, tx)
        state = jax.eval_shape(tx.init, p)
        compiled = temporaries.for_h200(step, p, state, p, donate=(1, 2))
        return sum(x.bytes > gpu.SMALL for x in gpu.launches(compiled))

    # The average of the rounded parameters needs a kernel that reads them.
    assert large_kernels() == 2
    without_barriers(monkeypatch)
    jax.clear_caches()
    assert large_kernels() == 1, "kept_apart of adam_jax/wrap/ema.py can go"
