"""Gradient accumulation: several micro-batches for one optimizer step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_jax._types import DType, Leaf, Params, PyTree, State
from adam_jax.core.stacked import Layers
from adam_jax.core.states import register
from adam_jax.core.step import Body, Step, check_state, joined
from adam_jax.core.transformation import Transformation
from adam_jax.core.trees import unflatten_stored
from adam_jax.formats.dense import AT_LEAST_FLOAT32, format_of, is_floating, leaf_dtype, wider_dtype
from adam_jax.formats.policy import (
    SlotDType,
    check_mapped,
    check_nearest_dtype,
    resolve,
    stored_format,
)
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.slots import Slot
from adam_jax.validation import check_integer, check_scalar
from adam_jax.wrap.chain import inner_body
from adam_jax.xla.barrier import kept_apart
from adam_jax.xla.once import if_due


class AccumulateState(NamedTuple):
    """State of `accumulate`; the first four fields are those of `optax.MultiStepsState`.

    `acc_grads` is the average of the gradients since the last optimizer step, and `weight` the sum
    of their weights. While `mini_step` is 0, it has leftovers of the last step, which are ignored.
    """

    mini_step: jax.Array
    gradient_step: jax.Array
    inner_opt_state: State
    acc_grads: PyTree
    weight: jax.Array


register(
    AccumulateState, counts=["gradient_step"], inner=["inner_opt_state"], others_matter="mini_step"
)


@frozen_pytree
class Accumulate(Body):
    """The body of `accumulate`."""

    inner: Body
    every: int | Callable[[jax.Array], jax.Array] = static()
    dtype: SlotDType = static()
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> AccumulateState:
        def start(p: Leaf, layer: Leaf) -> Leaf:
            if not is_floating(p):
                return optax.MaskedNode()
            return resolve(self.dtype, layer, Slot("acc_grads")).init(jnp.asarray(p), 0.0)

        inner_state = self.inner.init(params)  # First, since its errors name a leaf's path.
        check_mapped(params, self.dtype, Slot("acc_grads"))
        started = map(start, jax.tree.leaves(params), self.layers.single(params))
        grads = unflatten_stored(params, list(started))
        steps = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
        return AccumulateState(*steps, inner_state, grads, jnp.zeros([], jnp.float32))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, AccumulateState)
        extra = dict(step.extra)
        instead = "pass the micro-batch's number of tokens, for example, or leave it out for 1"
        new = check_scalar("weight", extra.pop("weight", 1.0), instead=instead)
        new = jnp.asarray(new, jnp.float32)
        # NaN, from 0/0 tokens, counts as 0, which leaves the accumulator unchanged.
        new = step.taken(jnp.where(new > 0, new, 0), 0)
        weight = jnp.where(state.mini_step == 0, 0, state.weight) + new
        every = self.every
        if callable(every):
            every = every(state.gradient_step)
            check_scalar("the result of every", every, instead="return a number of micro-steps")
        full = step.taken(state.mini_step + 1 >= every, False)
        due = full & (weight > 0)  # If all weights are 0, there is no average.
        acc = self.averaged(step, state, new, weight)
        out, own, inner_state = self.stepped(step.but(extra=extra), due, acc, state.inner_opt_state)
        for i, x in zip(step.here, own, strict=True):
            acc[i] = x
        mini_step = jnp.where(full, 0, state.mini_step + 1)
        mini_step, weight = step.taken((mini_step, weight), (state.mini_step, state.weight))
        done = step.only_if(due).counted(state.gradient_step)
        acc = step.back(state.acc_grads, acc)
        return out, AccumulateState(mini_step, done, inner_state, acc, weight)

    def averaged(
        self, step: Step, state: AccumulateState, new: jax.Array, weight: jax.Array
    ) -> list[Any]:
        """The accumulators with a gradient of weight `new`; `weight` is the sum including it."""
        entries = step.align(state.acc_grads)
        values = dict(zip(step.here, step.values, strict=True))
        for i in step.own:
            acc, g = entries[i], values.get(i)
            fmt = format_of(acc)
            if fmt is None and g is None:  # The parameter is None or an integer.
                continue
            if fmt is None:
                raise ValueError(
                    f"at {step.every_path[i]!r}, the state is empty and the gradient is not: pass"
                    f" None instead."
                )
            dtype = _arithmetic(g, acc)
            # Reset here, by a select, not after the optimizer step: if a branch returned zeros for
            # the accumulator, XLA would keep two of them.
            old = jnp.where(state.mini_step == 0, 0, fmt.decode(acc, dtype))
            if g is not None:
                x, real = jax.lax.convert_element_type(g, dtype), jnp.finfo(dtype).dtype
                part = jax.lax.convert_element_type(new, real)
                whole = jax.lax.convert_element_type(jnp.where(weight > 0, weight, 1), real)
                with jax.numpy_dtype_promotion("standard"):  # A complex number and a real one.
                    # Halved, since the difference of two finite numbers may overflow.
                    moved = old + (2 * part / whole) * (x * 0.5 - old * 0.5)
                old = jnp.where(new > 0, moved, old)  # With weight 0, the gradient may be 0/0.
            entries[i] = fmt.encode(old)
        return entries

    def stepped(
        self, step: Step, due: jax.Array, acc: list[Any], inner_state: State
    ) -> tuple[Step, list[Any], State]:
        """The optimizer step, if it is due; the accumulators that are here; the inner state.

        New parameters replace the old ones in place. Updates, which are zeros at other micro-steps,
        reuse the accumulators' memory, which is free until the reset: separate results would
        allocate memory at every micro-step, and its page faults take twice the time of everything
        else on CPU.
        """
        applies = step.apply and step.last
        its = step.but(factors=(), ok=None, last=applies)
        own, p, dtypes = [acc[i] for i in step.here], list(map(joined, step.p)), step.dtypes

        def inner_step(own: PyTree, p: PyTree, inner_state: State) -> tuple[list[Any], State]:
            nonlocal dtypes
            pairs = zip(own, step.g, strict=True)
            g = [stored_format(x).decode(x, _arithmetic(g, x)) for x, g in pairs]
            out, inner_state = self.inner.run(its.but(g=g, p=p), inner_state)
            dtypes = out.widened().dtypes
            return list(out.finished()), inner_state

        kept, held = own, p  # What the results replace is held, the other is kept.
        if not applies:
            made, _ = jax.eval_shape(inner_step, own, p, inner_state)
            if _types(made) == _types(own):
                kept, held = [], own
            else:
                held = [jnp.zeros(x.shape, x.dtype) for x in made]

        def taken(carry: PyTree) -> PyTree:
            kept, held, inner_state = carry
            results = inner_step(kept or held, held if applies else p, inner_state)
            return kept_apart(kept), *results

        kept, held, inner_state = if_due(due, taken, (kept, held, inner_state))
        if applies:
            g = [step.stepped_to(x, p) for x, p in zip(held, step.p, strict=True)]
        else:
            g = [jnp.where(due, x, 0) for x in held]
        return step.with_results(g, dtypes, done=applies), kept or held, inner_state


def _arithmetic(g: Leaf, acc: PyTree) -> DType:
    """The wider dtype of a gradient and its accumulator, at least float32."""
    dtypes = [leaf_dtype(x) for x in (g, acc) if hasattr(x, "dtype")]
    return functools.reduce(wider_dtype, dtypes, jnp.dtype(jnp.float32))


def _types(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def accumulate(
    inner: optax.GradientTransformation,
    every: int | Callable[[jax.Array], jax.Array],
    dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Averages the gradients of several micro-batches and takes one optimizer step with them.

        ḡ = Σ wᵢ·gᵢ / Σ wᵢ, at the last of `every` micro-steps; no update at the others

    Args:
      inner: any Optax transformation. Its counts, and thus its schedules, count optimizer steps.
      every: micro-steps per optimizer step, ≥ 1; or a function from the optimizer steps completed
        to that number.
      dtype: how the accumulator is stored; by default float32, or a parameter's dtype if wider.

    Returns:
      A transformation with the state `AccumulateState`. `step` and `update` take `weight=`, the
      micro-batch's weight ≥ 0, such as its number of tokens; the default is 1. Other extra
      arguments of the last micro-step reach `inner`. If all weights are 0, no optimizer step is
      taken or counted, and the next micro-step is again the first of `every`.

    Raises:
      ValueError: `every` below 1, a weight that is not a number or not a scalar.

    Differs from Optax (`MultiSteps`) in: the optimizer step runs once, not at every micro-step;
    gradients have weights; `inner` gets the average as stored, not rounded to the gradient's dtype.
    """
    if not callable(every):
        every = check_integer("every", every, 1, instead="1 takes a step with each gradient")
    dtype = check_nearest_dtype("dtype", dtype)
    return Transformation.around(Accumulate(inner_body("inner", inner), every, dtype))
