"""The bytes of temporaries that XLA allocates for a step, read from compiled programs."""

import jax

import adam_jax
from tests.catalogue.scripts import process

EIGHT_BITS = """
import jax, jax.numpy as jnp, adam_jax
from adam_jax.core import leaf
from adam_jax.xla import maxima
{first}
tx = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
params = [jax.ShapeDtypeStruct((64, 1024), jnp.float32)] * 12
step = jax.jit(lambda p, s, g: adam_jax.step(tx, g, s, p), donate_argnums=(0, 1))
compiled = step.lower(params, jax.eval_shape(tx.init, params), params).compile()
print(compiled.memory_analysis().temp_size_in_bytes / (12 * 64 * 1024))
"""


def of_eight_bits(devices: int, first: str = "") -> float:
    """Bytes per parameter of AdamW with 8-bit moments, in a process with this many CPU devices.

    The code `first` may replace functions.
    """
    environment = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return float(
        process("-c", EIGHT_BITS.format(first=first), in_a_hurry=False, **environment).stdout
    )


def for_cpu(step, *args, donate=(0, 1)):
    return jax.jit(step, donate_argnums=donate).lower(*args).compile()


def for_h200(step, *args, donate=(0, 1)):
    from benchmarks.gpu import compile_for_h200

    return compile_for_h200(step, *args, donate=donate)


def of_step(tx, params, compiled_by=for_cpu):
    """Bytes per parameter of `adam_jax.step`, with parameters and state donated."""

    def step(params, state, grads):
        return adam_jax.step(tx, grads, state, params)

    jax.clear_caches()  # Discards programs that were traced before a test replaced a function.
    compiled = compiled_by(step, params, jax.eval_shape(tx.init, params), params)
    return compiled.memory_analysis().temp_size_in_bytes / sum(p.size for p in params)


def on_v5e(tx, params):
    """Bytes per parameter of `adam_jax.step` on a TPU: HBM traffic, and temporaries."""
    from benchmarks.tpu.machine import compile_for_tpu
    from benchmarks.tpu.program import operations

    programs = []

    def compiled_by(step, *args):
        programs.append(compile_for_tpu("v5e", step, *args, donate=(0, 1)))
        return programs[-1]

    temporary = of_step(tx, [params], compiled_by)
    return sum(op.hbm for op in operations(programs[-1].as_text())) / params.size, temporary
