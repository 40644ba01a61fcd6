"""Calls that pyright must accept or reject; checked by `make lint` and never executed.

If pyright no longer reports an error, its `ignore` is unused, which is an error here.
"""
# pyright: reportArgumentType=error, reportCallIssue=error
# pyright: reportUnnecessaryTypeIgnoreComment=error

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax


def accepted(traced: jax.Array) -> list[adam_jax.Transformation]:
    schedule = optax.cosine_decay_schedule(1e-3, 100)
    own = adam_jax.schedules.inverse_sqrt_schedule(1e-3)
    mask = {"kernel": True, "bias": False}
    return [
        adam_jax.adamw(1e-3),
        adam_jax.adamw(1e-3, 0.9, 0.95, 1e-8, 0.0, jnp.bfloat16, 0.1, mask),
        adam_jax.adamw(schedule, weight_decay=schedule, mask=adam_jax.decay_mask),
        adam_jax.adamw(traced, traced, b2=traced, weight_decay=traced, scale_decay=False),
        adam_jax.adam(own, mu_dtype=None, nu_dtype=adam_jax.stochastic(jnp.bfloat16), l2=own),
        adam_jax.nadamw(1e-3, b1=np.float32(0.9), momentum_decay=0.004, mu_dtype=jnp.int8),
        adam_jax.ademamix(1e-3, b3=lambda count: 0.9999, alpha=own),
        adam_jax.adopt(1e-3, clip_value_fn=jnp.sqrt),
        adam_jax.yogi(1e-3, initial_accumulator_value=1e-3),
        adam_jax.schedule_free_adamw(warmup_steps=100, weight_decay=0.1),
    ]


def refused() -> None:
    adam_jax.adamw(1e-3, wieght_decay=0.1)  # pyright: ignore[reportCallIssue]
    adam_jax.adamw(1e-3, b1="x")  # pyright: ignore[reportArgumentType]
    adam_jax.adamw("1e-3")  # pyright: ignore[reportArgumentType]
    adam_jax.adamw()  # pyright: ignore[reportCallIssue]
    adam_jax.adam(1e-3, weight_decay=0.1)  # pyright: ignore[reportCallIssue]
    adam_jax.nadamw(1e-3, nesterov=lambda count: 1.0)  # pyright: ignore[reportArgumentType]
    adam_jax.adamax(1e-3, 0.9, 0.999, 1e-8, jnp.int8)  # pyright: ignore[reportCallIssue]
    adam_jax.lion(1e-3, eps=1e-8)  # pyright: ignore[reportCallIssue]
    adam_jax.scale_by_adam(b1=None)  # pyright: ignore[reportArgumentType]
