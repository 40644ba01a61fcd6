"""`if_due`: operations that run only in some steps run in place."""

import jax
import jax.numpy as jnp
import pytest

from adam_jax.xla.once import if_due

SIZE = 2**20


def by_conditional(due, f, carry):
    return jax.lax.cond(due, f, lambda carry: carry, carry)


def temporary(form, compiled_by):
    """Temporary bytes per element, with the carry donated."""

    def step(due, carry):
        def f(carry):
            mean, x = carry
            mean = mean + 0.1 * (jnp.sin(x) - mean)
            return mean, x - mean

        return form(due, f, carry)

    array = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    compiled = compiled_by(step, jax.ShapeDtypeStruct((), jnp.bool_), (array, array))
    return compiled.memory_analysis().temp_size_in_bytes / SIZE


@pytest.mark.bits
def test_on_a_cpu_nothing_is_copied():
    def compiled_by(f, *args):
        return jax.jit(f, donate_argnums=1).lower(*args).compile()

    assert temporary(if_due, compiled_by) < 0.01


@pytest.mark.usefixtures("h200_compiler")
def test_on_a_gpu_nothing_is_copied_but_by_a_conditional():
    from benchmarks.gpu import compile_for_h200

    def compiled_by(f, *args):
        return compile_for_h200(f, *args, donate=(1,))

    assert temporary(if_due, compiled_by) < 0.01
    assert temporary(by_conditional, compiled_by) > 4, "adam_jax/xla/once.py can go"
