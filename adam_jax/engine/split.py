"""Parameters whose bfloat16 weights are joined with their rests only in the loop that reads them.

Joined before that loop, float32 weights would be stored: 8 bytes per parameter in a kernel's step.
"""

import dataclasses
import functools

import jax

from adam_jax._types import Leaf, Params, PyTree, Result, State, Updates
from adam_jax.engine.call import Body, Call
from adam_jax.engine.layers import over_layers
from adam_jax.engine.unrounded import Unrounded, applied, dtypes_of, rounded, values
from adam_jax.formats.rounding import Split


@dataclasses.dataclass(frozen=True)
class SplitParams:
    """Parameters of which some weights are not yet joined.

    Attributes:
      params: as they are stored.
      treedef: of the updates.
      weights: by the index of the leaf.
    """

    params: Params
    treedef: PyTree
    weights: dict[int, Split]

    @functools.cached_property
    def joined(self) -> Params:
        """The parameters with all weights joined; computed once for all readers."""
        leaves = self.treedef.flatten_up_to(self.params)
        for i, split in _joined(self.weights).items():
            leaves[i] = split
        return self.treedef.unflatten(leaves)


_joined = jax.jit(lambda weights: {i: split.joined() for i, split in weights.items()})


@dataclasses.dataclass(frozen=True)
class SplitResult:
    """The result of a step on `SplitParams`.

    Attributes:
      result: the new stored parameters, or the updates, which may be `Unrounded`.
      rests: the rests of the new weights, by the index of the leaf.
    """

    result: Updates
    rests: dict[int, Leaf]


def joined(params: Params) -> Params:
    """The parameters with all weights joined."""
    return params.joined if isinstance(params, SplitParams) else params


def stored_params(params: Params) -> Params:
    """The parameters as they are stored."""
    return params.params if isinstance(params, SplitParams) else params


def run_split(body: Body, updates: Updates, state: State, params: Params, call: Call) -> Result:
    """A body's step on parameters that may be `SplitParams`, even if the body cannot join them.

    Args:
      body: of any transformation.
      updates: the gradients.
      state: of the body.
      params: the parameters.
      call: the options of the step.

    Returns:
      The body's result, in a `SplitResult` for `SplitParams`; and its new state.
    """
    if body.joins or not isinstance(params, SplitParams):
        return body.run(updates, state, params, call)
    result, new = body.run(updates, state, params.joined, call)
    moved = result if call.apply else applied(rounded(result), params.joined)
    return _landed(params, moved, result, call), new


def _landed(params: SplitParams, moved: PyTree, result: Updates, call: Call) -> SplitResult:
    """The weights after a step on joined weights, split again."""
    moved = params.treedef.flatten_up_to(moved)
    results = params.treedef.flatten_up_to(values(result))
    rests = {}
    for i, p in params.weights.items():
        landed = p.stepped_to(call.taken(_renewed(p, moved[i]), p), call.apply)
        results[i], rests[i] = landed
    made = params.treedef.unflatten(results)
    return SplitResult(made if call.apply else Unrounded(made, dtypes_of(result)), rests)


@jax.jit  # Traced once per shape, not per leaf.
def _renewed(p: Split, x: jax.Array) -> Split:
    def one_layer(number: jax.Array, p: Split, x: jax.Array) -> Split:
        return p.of_layer(number).renewed(x, p.shape)

    return over_layers(one_layer, p.layers, p.stride, p, x) if p.layers else p.renewed(x, p.shape)
