"""16-bit weights without a float32 copy: lower bits are stored, or rounding is stochastic."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import AnyTransformation, Function, Leaf, Params, State
from adam_jax.core.stacked import Layers
from adam_jax.core.states import only, register
from adam_jax.core.step import Body, Step, check_state
from adam_jax.core.transformation import Transformation
from adam_jax.core.trees import align_slot, leaf_paths, unflatten_slot, unflatten_stored
from adam_jax.formats.noise import WEIGHTS, salt_of, salted
from adam_jax.formats.rounding import Residual, RoundedStochastically, Split, WeightFormat
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import check_integer
from adam_jax.wrap.chain import inner_body


class WeightsState(NamedTuple):
    """State of `stochastic_rounding` and `master_residual`.

    `rest` has the lower bits of the weights, a tree like the parameters.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    rest: Leaf
    inner_state: State


register(WeightsState, counts=["count"], inner=["inner_state"])


@frozen_pytree
class Weights(Body):
    """The body of both; the inner transformation sees float32 weights."""

    inner: Body
    form: WeightFormat = static()
    seed: int = static(default=0)
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> WeightsState:
        def rest(p: Leaf) -> Leaf:
            dtype = self.form.rest_dtype if self.form.applies(p) else None
            return optax.MaskedNode() if dtype is None else jnp.zeros_like(p, dtype)

        inner_state = self.inner.init(jax.tree.map(self.form.widened, params))
        rests = unflatten_stored(params, list(map(rest, jax.tree.leaves(params))))
        return WeightsState(jnp.zeros([], jnp.int32), rests, inner_state)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, WeightsState)
        step.needed_params()
        rests, dtypes, p = step.align(state.rest), list(step.dtypes), list(step.p)
        salt, own = salt_of(WEIGHTS, self.seed, state.count), []
        for n, (i, stack) in enumerate(zip(step.here, step.stacks(self.layers), strict=True)):
            rest = None if isinstance(rests[i], optax.MaskedNode) else rests[i]
            self.form.check(step.paths[n], p[n], rest)
            if self.form.applies(p[n]):
                salt_of_leaf = salted(salt, stack.first)
                p[n] = Split(p[n], rest, salt_of_leaf, self.form, stack.axes, stack.stride)
                own.append((n, i))
                dtypes[n] = jnp.dtype(jnp.float32)  # The inner transformation sees only float32.
        its = step.but(p=p, dtypes=dtypes, last=True, apply=step.apply and step.last)
        out, inner_state = self.inner.run(its, state.inner_state)
        results = list(out.finished())
        for n, i in own:
            results[n], rest = results[n]
            rests[i] = rests[i] if rest is None else rest
        new = WeightsState(step.counted(state.count), step.back(state.rest, rests), inner_state)
        step = step.with_results(results, out.dtypes, done=step.last, update_factors=())
        return step, new


def stochastic_rounding(inner: optax.GradientTransformation, seed: int = 0) -> Transformation:
    """Rounds bfloat16 weights stochastically, so that small updates act on average.

        θ' = θ + u in float32,  θ ← one of the two neighbors of θ', the nearer one more likely

    The random bits are a hash of the seed, the step, the leaf and the element's index, the same
    after a resume and on any number of devices. (Inside `shard_map` and `vmap` all devices and
    models share the bits.)

    Args:
      inner: any Optax transformation, which sees float32 weights and gradients.
      seed: of the random bits, 0 to 2³²-1.

    Returns:
      A transformation with the state `WeightsState`. Its updates are float32:
      `optax.apply_updates` yields exactly the rounded weights, as long as no weight becomes 2¹⁵
      times smaller in one step; `adam_jax.step` always does. Weights of other dtypes pass through
      unchanged.

    Raises:
      ValueError: a seed out of range; in `update`, params missing.

    Differs from PyTorch in: torchao's `bf16_stochastic_round` draws from a generator whose state is
    not in a checkpoint.

    Reference: Gupta et al. 2015, https://arxiv.org/abs/1502.02551; Zamirai et al. 2020,
    https://arxiv.org/abs/2010.06192.
    """
    seed = check_integer("seed", seed, 0, instead="any number up to 2³²-1")
    if seed >= 2**32:
        raise ValueError(f"seed must be below 2³², got {seed}: write seed % 2**32.")
    return _around(inner, RoundedStochastically(), seed)


def master_residual(inner: optax.GradientTransformation, bits: int = 16) -> Transformation:
    """Keeps bfloat16 weights and, in the state, the lower bits of the float32 weights they round.

    With 16 bits the two equal the float32 weights bit for bit, at 4 bytes per parameter, where
    bfloat16 weights and a float32 copy take 6. With 8 bits they are 24-bit floating-point numbers,
    rounded stochastically as in `stochastic_rounding`, but 256 times finer.

    Args:
      inner: any Optax transformation, which sees float32 weights and gradients.
      bits: 16 or 8.

    Returns:
      A transformation with the state `WeightsState`, with the bits in its `rest`. Updates, and
      weights of other dtypes, are as in `stochastic_rounding`.

    Raises:
      ValueError: other bits; in `update`, params missing.

    Differs from PyTorch in: Transformer Engine's `store_param_remainders` is the same split, but
    rounds ties up; here they are rounded away from zero.

    Reference: Zamirai et al. 2020, https://arxiv.org/abs/2010.06192, for the lower bits; for 8 of
    them FlashOptim (2026), https://arxiv.org/abs/2602.23349.
    """
    if not isinstance(bits, (int, np.integer)) or bits not in (8, 16):
        raise ValueError(f"bits must be 16 or 8, got {bits!r}: 16 is exact.")
    return _around(inner, Residual(int(bits)))


def _around(inner: AnyTransformation, form: WeightFormat, seed: int = 0) -> Transformation:
    return Transformation.around(Weights(inner_body("inner", inner), form, seed))


def float32_weights(state: State, params: Params) -> Params:
    """The full weights of `master_residual`, to evaluate, export or hand on.

    Args:
      state: of the wrapper, at any depth.
      params: the bfloat16 parameters of the same step. Leaves without a rest are returned as given.

    Raises:
      ValueError: `state` does not have exactly one such wrapper, or has another rest for a leaf.
    """

    def joined(form: WeightFormat, path: str, p: Leaf, rest: Leaf) -> tuple[Leaf, Leaf]:
        form.check(path, p, rest)
        return form.join(p, rest), rest

    return _converted(state, params, joined)[0]


def split_float32_weights(state: State, weights: Params) -> tuple[Params, State]:
    """The inverse of `float32_weights`, to start from other weights: `(params, state)`.

    Args:
      state: of the wrapper, at any depth: of `tx.init` with the weights as bfloat16.
      weights: float32, a tree like the parameters.

    Raises:
      ValueError: as `float32_weights`.
    """

    def split(form: WeightFormat, path: str, x: Leaf, rest: Leaf) -> tuple[Leaf, Leaf]:
        form.check(path, jnp.asarray(x, jnp.bfloat16), rest)
        # The random bits that round to nearest, where 8 bits are kept.
        return form.split(jnp.asarray(x, jnp.float32), np.uint32(1 << 31))

    return _converted(state, weights, split)


def _converted(state: State, params: Params, change: Function) -> tuple[Params, State]:
    instead = "pass the state of master_residual(...)"
    own = only(state, lambda x: isinstance(x, WeightsState), "wrapper of 16-bit weights", instead)
    leaves, treedef = jax.tree.flatten(params, is_leaf=lambda x: x is None)
    rests = align_slot(treedef, params, own.rest)
    forms = {"int16": Residual(16), "int8": Residual(8)}
    for i, path in enumerate(leaf_paths(params)):
        if (form := forms.get(str(getattr(rests[i], "dtype", None)))) is not None:
            leaves[i], rests[i] = change(form, path, leaves[i], rests[i])
    new = own._replace(rest=unflatten_slot(own.rest, rests))
    state = jax.tree.map(lambda x: new if x is own else x, state, is_leaf=lambda x: x is own)
    return treedef.unflatten(leaves), state
