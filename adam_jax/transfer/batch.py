"""Hyperparameters for other batch sizes.

Malladi et al. 2022, On the SDEs and Scaling Rules for Adaptive Gradient Algorithms,
https://arxiv.org/abs/2205.10287
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp

from adam_jax._types import Leaf, Named
from adam_jax.modifiers import Factory
from adam_jax.rates import DecayRate, Schedule
from adam_jax.validation import (
    as_scalar,
    bound,
    check_factory,
    check_number,
    is_number,
    name_of,
    preset,
    same_kind,
)

# The powers of the factor, None for a decay rate. ε is compared with √nu, which falls as 1/√k; l2
# belongs to the loss and does not depend on the batch; alpha and threshold are ratios.
_POWERS = {
    **dict.fromkeys(("b1", "b2", "b3", "decay")),
    "learning_rate": 0.5,
    "weight_decay": 0.5,
    "eps": -0.5,
    "eps_hat": -0.5,
    "eps_root": -1.0,
    "alpha": 0.0,
    "l2": 0.0,
    "threshold": 0.0,
}
# Functions of this package and of Optax for which the rule holds. The noise of a batch enters other
# updates differently: by a sign (lion), a trust ratio (lamb), the difference from the last gradient
# (adan, mars_adamw, optimistic_adam) or from mu (adabelief), or undivided (sgd). b1 of
# schedule_free_adamw is not a decay rate.
_MEMBERS = "adam", "nadam", "amsgrad", "adamax", "radam", "adopt", "laprop", "ademamix", "yogi"
_WITH_RULE = {
    *(name for x in _MEMBERS for name in (x, f"{x}w", f"scale_by_{x}")),
    *("rmsprop", "scale_by_rms", "ema_params", "scale_by_learning_rate"),
}


def scale_batch(factory: Callable[..., Any], factor: float) -> "ScaledBatch":
    """Trains with batches k times as large from the hyperparameters for the small ones.

    After the same number of examples the loss matches that of the run with small batches.

        learning rate   α_t → √k·α_kt
        decay rates     1-b → k·(1-b)      b1, b2, b3, and the decay of ema_params
        ε               ε → ε/√k           eps, eps_hat; eps_root, of the unit ε², is divided by k
        weight decay    λ_t → √k·λ_kt      keeps α·λ per example; with scale_decay=False, k·λ_kt

    t counts optimizer steps. A schedule is called with k·t, a floating-point number, so that it
    ends after the same number of examples. alpha, l2 and threshold keep their values; only the
    steps of their schedules are scaled.

    The rule holds below the critical batch size, where noise dominates the gradient of a batch and
    √nu falls as 1/√k. It ends at k = 1/(1-b1), where b1 becomes 0. k < 1 is for smaller batches.

    Args:
      factory: `adamw`, another function of this package or of Optax that makes a transformation
        from numbers, or a modifier of one.
      factor: k, the new batch size over the old one, > 0.

    Returns:
      A function with the arguments of `factory`: the hyperparameters for the old batch size. It
      scales defaults too. Its method `hyperparameters` takes the same arguments and returns all of
      them for the new batch size, as a dict.

    Raises:
      ValueError: in this call, a function of this package or of Optax for which the rule does not
        hold (`lion`, `lamb`, `adan`, `optax.sgd`), or a factory that does not name its
        arguments; in a call of the result, a decay rate that would be negative, or a number without
        a rule that is passed (`momentum_decay`).

    `groups(scale_batch(adamw, 4), ...)` and `mup(scale_batch(adamw, 4), ...)` scale the numbers of
    every leaf. `scale_batch(with_hyperparams(adamw), 4)` keeps the scaled numbers in the state,
    `with_hyperparams(scale_batch(adamw, 4))` the others.

    Reference: Malladi et al. 2022, section 5, for Adam and RMSprop. The rule for AMSGrad, NAdam,
    RAdam, ADOPT, LaProp, AdEMAMix and Yogi follows from the same units. It is approximate for
    Adamax, since the maximum over fewer batches is smaller, and for `atan2`, since mu/√nu is larger
    with a smaller b1.
    """
    check_factory(factory, "scale_batch(adamw, 4)(learning_rate=1e-3)")
    inner = inspect.unwrap(factory)
    kinds = {p.kind for p in inspect.signature(factory).parameters.values()}
    unnamed = kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    if unnamed or (isinstance(inner, functools.partial) and inner.args):
        raise ValueError(
            f"factory must name all its arguments, got {name_of(factory)}, which hides some from"
            f" the rule: write groups(scale_batch(adamw, 4), ...), and keywords in"
            f" functools.partial(adamw, learning_rate=1e-3)."
        )
    name, library = name_of(inner), getattr(inner, "func", inner).__module__.partition(".")[0]
    if library in ("adam_jax", "optax") and name not in _WITH_RULE:
        raise ValueError(
            f"factory must be a member that divides an average of the gradient by the root of one"
            f" of its square, got {name}, for which the rule does not hold: write adamw, or tune"
            f" {name} for the new batch size."
        )
    instead = "write the new batch size over the old one"
    return ScaledBatch(factory, float(check_number("factor", factor, 1e-30, instead=instead)))


@dataclasses.dataclass(frozen=True)
class ScaledBatch(Factory):
    """A function that makes the same transformation for batches `factor` times as large."""

    factor: float

    def __call__(self, *args: Leaf, **kwargs: Leaf) -> Any:
        """The transformation, from the numbers for the small batch."""
        return self.factory(**self.hyperparameters(*args, **kwargs))

    def hyperparameters(self, *args: Leaf, **kwargs: Leaf) -> dict[str, Any]:
        """All arguments for the large batch by name, including defaults."""
        arguments = self.arguments(args, kwargs)
        given = preset(self.factory) | bound(self.factory, args, kwargs).arguments
        for name in given.keys() - _POWERS:
            if is_number(given[name]):
                raise ValueError(
                    f"{name} has no rule for other batch sizes, got {given[name]!r}: scale the"
                    f" numbers of {name_of(self.factory)} yourself, or leave it out. There is a"
                    f" rule for {', '.join(_POWERS)}."
                )
        return {name: self._scaled(name, x, arguments) for name, x in arguments.items()}

    def _scaled(self, name: str, x: Leaf, arguments: Named) -> Any:
        if name not in _POWERS or self.factor == 1.0:
            return x
        power = _POWERS[name]
        if name == "weight_decay" and arguments.get("scale_decay") is False:
            power = 1.0
        if name == "eps" and arguments.get("eps_in_sqrt"):  # Of optax.rmsprop.
            power = -1.0
        if callable(x):
            return ScaledSchedule(cast(Schedule, x), self.factor, power)
        if isinstance(x, DecayRate):  # From with_hyperparams.
            complement = jnp.minimum(self.factor * x.complement, 1)
            following = x.following and self._scaled(name, x.following, arguments)
            log = jnp.maximum(jnp.log1p(-complement), math.log(jnp.finfo(jnp.float32).tiny))
            parts = {"complement": complement, "log": log, "following": following}
            return dataclasses.replace(x, **parts, mostly_old=None)
        if not is_number(x):
            return x
        if power is not None:
            return as_scalar(x) * self.factor**power
        b = check_number(name, x, 0.0, 1.0, closed=True, instead="usual rates are 0.9 to 0.9999")
        if isinstance(b, jax.core.Tracer):
            return 1 - self.factor * (1 - b)
        complement = self.factor * (1.0 - float(b))
        if complement > 1 + 1e-9:  # 100·(1 - 0.99) is above 1 by rounding.
            raise ValueError(
                f"factor must be at most {1 / (1.0 - float(b)):g}, where {name} = {float(b):g}"
                f" becomes 0, got {self.factor:g}: take smaller batches, or another {name}."
            )
        return same_kind(max(1.0 - complement, 0.0), b)


# A class, not a closure: equal schedules then make equal transformations.
@dataclasses.dataclass(frozen=True)
class ScaledSchedule:
    """A schedule for batches `factor` times as large; `power` is one of `_POWERS`."""

    schedule: Schedule
    factor: float
    power: float | None

    def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
        """The number after `count` optimizer steps with large batches."""
        dtype = jnp.result_type(float)
        small = jnp.asarray(self.schedule(jnp.asarray(count, dtype) * self.factor), dtype)
        if self.power is None:
            return jnp.maximum(1 - self.factor * (1 - small), 0)
        return small * self.factor**self.power
