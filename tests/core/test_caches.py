"""Nothing outlives the optimizer that made it, and repeated calls without `jit` compile once."""

import gc
import weakref

import jax
import jax.numpy as jnp
import optax
import pytest

import adam_jax
from adam_jax import adamw
from adam_jax.sharding import offload, shard_state


class Schedule:
    """A schedule that accepts weak references."""

    def __call__(self, count):
        return 1e-3 / (1 + jnp.asarray(count, jnp.float32))


def hyperparams(schedule):
    return adam_jax.with_hyperparams(adamw)(learning_rate=schedule)


def groups(schedule):
    by_path = {"b": dict(weight_decay=0.0, learning_rate=schedule)}
    return adam_jax.groups(adamw, by_path, learning_rate=schedule)


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def around(wrapper, *args, **kwargs):
    return lambda schedule: wrapper(adamw(schedule), *args, **kwargs)


WRAPPERS = {
    "adamw": adamw,
    "weight decay": lambda schedule: adamw(1e-3, weight_decay=schedule),
    "adopt": lambda schedule: adam_jax.adopt(schedule, clip_value_fn=schedule),
    "ademamix": lambda schedule: adam_jax.ademamix(schedule, b3=schedule, alpha=schedule),
    "schedule_free": around(lambda tx: adam_jax.schedule_free_adamw(1e-3, weight_decay=0.1)),
    "cautious": around(adam_jax.cautious),
    "corrected decay": around(adam_jax.corrected_weight_decay, peak_learning_rate=1e-3),
    "grokfast": around(adam_jax.grokfast),
    "int8": lambda schedule: adamw(schedule, mu_dtype=jnp.int8, nu_dtype=jnp.int8),
    "stochastic": lambda schedule: adamw(schedule, nu_dtype=adam_jax.stochastic(jnp.bfloat16)),
    "chain": lambda s: adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adamw(s)),
    "optax.chain": lambda s: optax.chain(adam_jax.clip_by_global_norm(1.0), adamw(s)),
    "skip": around(adam_jax.skip_nonfinite, spike_sigmas=6.0, warn=True),
    "skip optax": lambda s: adam_jax.skip_nonfinite(optax.adamw(s)),
    "accumulate": around(adam_jax.accumulate, 2),
    "accumulate in int8": around(adam_jax.accumulate, 2, dtype=jnp.int8),
    "accumulate by a function": lambda s: adam_jax.accumulate(adamw(s), lambda n: 2 + 0 * n),
    "accumulate optax": lambda s: adam_jax.accumulate(optax.adamw(s), 2),
    "telemetry": around(adam_jax.telemetry, 2),
    "groups": groups,
    "hyperparams": hyperparams,
    "ema": lambda s: adam_jax.chain(adamw(s), adam_jax.ema_params(0.9)),
    "ema in int8": lambda s: adam_jax.chain(adamw(s), adam_jax.ema_params(0.9, dtype=jnp.int8)),
    "stochastic_rounding": around(adam_jax.stochastic_rounding),
    "kahan_summation": around(adam_jax.kahan_summation),
    "master_residual": around(adam_jax.master_residual),
    "shard": lambda s: shard_state(adamw(s), mesh(), min_size=0),
    "offload": around(offload),
    "everything": lambda s: adam_jax.accumulate(
        adam_jax.telemetry(
            adam_jax.skip_nonfinite(adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adamw(s))), 2
        ),
        2,
    ),
}
every_wrapper = pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
every_form = pytest.mark.parametrize(
    "through", ["step", pytest.param("update", marks=pytest.mark.slow)]
)


def stepper(tx, through):
    def step(params, state, grads):
        if through == "step":
            return adam_jax.step(tx, grads, state, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(step, params, state, steps):
    for i in range(steps):
        grads = jax.tree.map(lambda p, i=i: p if i % 4 < 3 else p * jnp.nan, params)
        params, state = step(params, state, grads)
    return jax.block_until_ready((params, state))


def parameters():
    return {"w": jnp.ones((16, 8), jnp.bfloat16), "b": jnp.ones(8, jnp.bfloat16)}


@every_wrapper
def test_a_schedule_is_freed_with_its_optimizer(make, standard_promotion):
    check_freed(make, True, "step")


@pytest.mark.parametrize("name", ["adamw", "optax.chain", "groups", "offload", "everything"])
def test_a_schedule_is_freed_after_eager_updates(name, standard_promotion):
    check_freed(WRAPPERS[name], False, "update")


def check_freed(make, jitted, through):
    schedule = Schedule()
    freed = weakref.ref(schedule)
    tx, params = make(schedule), parameters()
    step = stepper(tx, through)
    train(jax.jit(step) if jitted else step, params, tx.init(params), 2)
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
