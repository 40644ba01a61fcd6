"""Weights of 16 bits whose rounding errors go where they cost nothing: into the first moment."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from adam_jax.engine.call import Call
from adam_jax.engine.leafwise import applied, decoded, stored_like, wide
from adam_jax.engine.pipeline import Pipeline
from adam_jax.engine.transformation import Transformation, chosen
from adam_jax.engine.trees import align_params, align_slot, unflatten_slot
from adam_jax.formats.dtypes import leaf_dtype
from adam_jax.formats.noise import WEIGHTS, salt_of, salted
from adam_jax.formats.weights import RoundedStochastically
from adam_jax.rules.base import MomentRule
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import Average, Ema
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.rules.scaling import ScaleByLearningRate
from adam_jax.wrap.weights import check_seed, difference

FORM = RoundedStochastically()


@frozen_pytree
class Eco:
    """The body of `eco`; its state is the member's."""

    inner: Pipeline
    seed: int = static(default=0)

    def init(self, params: Any) -> Any:
        """The member's state, as for float32 weights."""
        return self.inner.init(jax.tree.map(FORM.widened, params))

    def run(self, updates: Any, state: Any, params: Any, call: Call) -> tuple[Any, Any]:
        """The member's step on float32 weights, rounded, and mu corrected by what that lost."""
        leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
        stored = align_params(treedef, params, needed=True, apply=call.apply)
        grads = treedef.unflatten([None if g is None else wide(g) for g in leaves])
        masters = treedef.unflatten(list(map(FORM.widened, stored)))
        result, new = self.inner.run(grads, state, masters, call._replace(dtypes=None))
        moved = result if call.apply else applied(result, masters)
        states = list(self.inner.split(new))
        index = self.inner.member
        assert index is not None  # `eco` has seen to it.
        rate, salt = self.rate(self.inner.split(state)), self.salt(self.inner.split(state))
        mus, nus = (align_slot(treedef, updates, getattr(states[index], k)) for k in ("mu", "nu"))
        results = treedef.flatten_up_to(result)
        for i, (p, x) in enumerate(zip(stored, treedef.flatten_up_to(moved), strict=True)):
            if results[i] is None or not FORM.applies(p):
                continue
            q, _ = FORM.split(x, leaf_dtype(p), salted(salt, i))
            q = q if call.ok is None else jnp.where(call.ok, q, p)
            results[i] = q if call.apply else difference(q, p)
            mu, lost = decoded(mus[i], jnp.float32), difference(x, q)
            # What mu is multiplied with on its way to the weights: α·(1/(1-b1ᵗ)) / (√nû + ε).
            gain = rate(decoded(nus[i], jnp.float32))
            mu = mu - jnp.where(gain > 0, self.share * lost / jnp.where(gain > 0, gain, 1), 0)
            corrected = stored_like(mus[i], mu)
            if call.ok is not None:
                corrected = chosen(call.ok, corrected, mus[i])
            mus[i] = corrected
        states[index] = states[index]._replace(mu=unflatten_slot(treedef, updates, mus))
        return treedef.unflatten(results), self.inner.join(states)

    @property
    def rule(self) -> MomentRule:
        """The member's."""
        assert self.inner.member is not None
        return cast(MomentRule, self.inner.stages[self.inner.member].rule)

    @property
    def share(self) -> Any:
        """1/b1 - 1: of what is put into mu, (1-b1)·(b1 + b1² + …) comes out, all told 1."""
        complement = cast(Ema, self.rule.first).rate.complement
        return complement / (1 - complement)

    def rate(self, states: tuple[Any, ...]) -> Callable[[jax.Array], jax.Array]:
        """From the new nu of a leaf to what each element of mu is multiplied with in this step."""
        count = self.count(states)
        # Of Python's precision, which with x64 is not float32.
        first, second, direction = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float32), self.rule.scalars(count)
        )
        last = cast(ScaleByLearningRate, self.inner.stages[-1].rule)
        own = states[-1].count if "count" in states[-1]._fields else count
        # That of the next step, which is the first to pay back.
        learning_rate = jnp.asarray(last.learning_rate.at(own + 1), jnp.float32)
        by_first = first if cast(Ema, self.rule.first).bias_correction else 1.0
        by_second = second if cast(Average, self.rule.second).bias_correction else 1.0

        def gain(nu: jax.Array) -> jax.Array:
            one = jnp.full_like(nu, by_first)
            return learning_rate * self.rule.direction.combine(one, nu * by_second, direction)

        return gain

    def count(self, states: tuple[Any, ...]) -> jax.Array:
        """The member's step count, before this step."""
        assert self.inner.member is not None
        return getattr(states[self.inner.member], self.inner.stages[self.inner.member].counts[0])

    def salt(self, states: tuple[Any, ...]) -> jax.Array:
        """Of this step."""
        return salt_of(WEIGHTS, self.seed, self.count(states))


def eco(inner: optax.GradientTransformation, seed: int = 0) -> Transformation:
    """16-bit weights whose rounding error goes into the first moment, which pays it back.

        θ' = θ - α·u in float32,  θ ← θ' rounded stochastically,  e = θ' - θ
        mu ← mu - (1/b1 - 1)·e / η,  η = α / (1 - b1ᵗ) / (√nû + ε)

    Costs no memory: the state is the member's own. Where `stochastic_rounding` is right in the mean
    and forgets each error, this one makes good for it over the next 1/(1-b1) steps.

    Args:
      inner: a member with a learning rate whose first moment is an average of gradients and whose
        second is an average of squares under a root, as adam, adamw, adabelief, yogi are. A
        schedule may fall, or rise slowly: what a step at 1e-7 lost, steps at 1e-3 would pay back
        many times over; warm up with `stochastic_rounding`. A mu of 8 bits is rounded twice in a
        step, and a stochastic one to the nearest: leave mu dense.
      seed: of the rounding, 0 to 2³²-1; see `stochastic_rounding`.

    Returns:
      A transformation with the state of `inner`. For its updates see `stochastic_rounding`.

    Raises:
      ValueError: `inner` is something else, has b1 = 0, or no learning rate.

    Reference: Nikdan et al. 2026, ECO, https://arxiv.org/abs/2601.22101, for FP8 and INT4 weights.
    """
    seed = check_seed(seed)
    body = inner.body if isinstance(inner, Transformation) else None
    rule = None
    if isinstance(body, Pipeline) and body.chained and body.member is not None:
        rule = body.stages[body.member].rule
        if _fits(rule) and isinstance(body.stages[-1].rule, ScaleByLearningRate):
            return Transformation.around(Eco(body, seed))
    raise ValueError(
        f"inner must be a member with a learning rate, b1 above 0, and a plain average as its first"
        f" moment, such as adamw(1e-3), got {type(rule or body or inner).__name__}: put chain,"
        f" accumulate, ... around eco; or write stochastic_rounding(...)."
    )


def _fits(rule: Any) -> bool:
    """Whether mu goes into the update linearly, as one product."""
    if not isinstance(rule, MomentRule) or not isinstance(rule.first, Ema):
        return False
    forgets = isinstance(rule.first.rate.complement, float) and rule.first.rate.complement == 1.0
    return isinstance(rule.second, Average) and isinstance(rule.direction, Root) and not forgets
