"""`if_due`: operations that run only in some steps run in place."""

import jax
import jax.numpy as jnp
import pytest

from adam_jax.xla.once import if_due
from tests.catalogue.temporaries import for_cpu, for_h200

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
    due = jax.ShapeDtypeStruct((), jnp.bool_)
    compiled = compiled_by(step, due, (array, array), donate=(1,))
    return compiled.memory_analysis().temp_size_in_bytes / SIZE


@pytest.mark.bits
def test_on_a_cpu_nothing_is_copied():
    assert temporary(if_due, for_cpu) < 0.01


@pytest.mark.usefixtures("h200_compiler")
def test_on_a_gpu_nothing_is_copied_but_by_a_conditional():
    assert temporary(if_due, for_h200) < 0.01
    assert temporary(by_conditional, for_h200) > 4, "adam_jax/xla/once.py can go"
