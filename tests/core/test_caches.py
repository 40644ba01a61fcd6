"""Nothing outlives the optimizer that made it, and repeated calls without `jit` compile once."""

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import adam_jax
from adam_jax import adamw
from adam_jax.sharding import offload, shard_state
from tests.catalogue.recipes import stepper
from tests.tools import record


class Schedule:
    """A schedule that accepts weak references."""

    def __call__(self, count):
        return 1e-3 / (1 + jnp.asarray(count, jnp.float32))


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


MODIFIED = {n: record.MODIFIERS[n] for n in ("cautious", "corrected_weight_decay")}
GROUPS = {"b": dict(weight_decay=0.0)}
WRAPPERS: dict[str, Any] = {
    **{n: lambda s, f=f: f(adamw(s)) for n, f in record.WRAPPERS.items() if n != "frozen"},
    **{n: lambda s, f=f: f(adamw(s)) for n, f in MODIFIED.items()},
    "adamw": adamw,
    "weight decay": lambda schedule: adamw(1e-3, weight_decay=schedule),
    "adopt": lambda schedule: adam_jax.adopt(schedule, clip_value_fn=schedule),
    "ademamix": lambda schedule: adam_jax.ademamix(schedule, b3=schedule, alpha=schedule),
    "int8": lambda s: adamw(s, mu_dtype=jnp.int8, nu_dtype=jnp.int8),
    "skip optax": lambda s: adam_jax.skip_nonfinite(optax.adamw(s), warn=True),
    "accumulate by a function": lambda s: adam_jax.accumulate(adamw(s), lambda n: 2 + 0 * n),
    "accumulate optax": lambda s: adam_jax.accumulate(optax.adamw(s), 2),
    "groups": lambda s: adam_jax.groups(adamw, GROUPS, learning_rate=s),
    "hyperparams": lambda s: adam_jax.with_hyperparams(adamw)(learning_rate=s),
    "ema in int8": lambda s: adam_jax.chain(adamw(s), adam_jax.ema_params(0.9, dtype=jnp.int8)),
    "shard": lambda s: shard_state(adamw(s), mesh(), min_size=0),
    "offload": lambda s: offload(adamw(s)),
}
every_wrapper = pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
every_form = pytest.mark.parametrize(
    "through", ["step", pytest.param("update", marks=pytest.mark.slow)]
)


def train(step, params, state, steps):
    for i in range(steps):
        grads = jax.tree.map(lambda p, i=i: p if i % 4 < 3 else p * jnp.nan, params)
        params, state = step(params, state, grads)
    return jax.block_until_ready((params, state))


def parameters():
    return {"w": jnp.ones((16, 8), jnp.bfloat16), "b": jnp.ones(8, jnp.bfloat16)}


@pytest.mark.parametrize(
    ("name", "through"),
    [(name, "step") for name in WRAPPERS]
    + [(name, "update") for name in ("adamw", "optax.chain", "groups", "offload", "recipe")],
)
def test_a_schedule_is_freed_with_its_optimizer(name, through, standard_promotion):
    """Also after eager updates."""
    schedule = Schedule()
    freed = weakref.ref(schedule)
    tx, params = WRAPPERS[name](schedule), parameters()
    step = stepper(tx, through)
    train(jax.jit(step) if through == "step" else step, params, tx.init(params), 2)
    del schedule, tx, step
    gc.collect()
    assert freed() is None


@pytest.fixture
def compilations():
    """The programs compiled so far, one entry per program."""
    found = []

    def listen(event, seconds, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x + 1)(1.0)
    assert len(found) == 1  # JAX still uses this name for the event.
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@every_form
@every_wrapper
def test_eager_steps_compile_nothing_more(make, through, compilations, standard_promotion):
    tx, params = make(Schedule()), parameters()
    step = stepper(tx, through)
    params, state = train(step, params, tx.init(params), 8)
    warm = len(compilations)
    train(step, params, state, 8)
    assert len(compilations) == warm


def test_another_schedule_compiles_nothing(compilations):
    """As in a notebook in which every step builds its optimizer."""
    params = parameters()
    for factor in (1.0, 2.0, 3.0):
        warm = len(compilations)
        tx = adamw(lambda count, factor=factor: 1e-3 * factor, weight_decay=factor)
        train(stepper(tx, "step"), params, tx.init(params), 2)
    assert len(compilations) == warm
