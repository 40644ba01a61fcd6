"""Parameters on their way to the loop that joins weights of 16 bits with what belongs to them.

Joined before it, float32 weights would be stored: 8 bytes per parameter, where a kernel steps them.
"""

import dataclasses
import functools

import jax

from adam_jax._types import Leaf, Params, PyTree, Updates
from adam_jax.formats.weights import Split


@dataclasses.dataclass(frozen=True)
class SplitParams:
    """Parameters of which some weights are not joined yet.

    Attributes:
      params: as they are stored.
      treedef: of the updates.
      weights: by the number of the leaf.
    """

    params: Params
    treedef: PyTree
    weights: dict[int, Split]

    @functools.cached_property
    def joined(self) -> Params:
        """The parameters, all weights joined; once for all that read them."""
        leaves = self.treedef.flatten_up_to(self.params)
        for i, split in _joined(self.weights).items():
            leaves[i] = split
        return self.treedef.unflatten(leaves)


_joined = jax.jit(lambda weights: {i: split.joined() for i, split in weights.items()})


@dataclasses.dataclass(frozen=True)
class SplitResult:
    """What a step returns for `SplitParams`.

    Attributes:
      result: the new parameters as they are stored, or the updates, which may be `Unrounded`.
      rests: what belongs to the new weights, by the number of the leaf.
    """

    result: Updates
    rests: dict[int, Leaf]


def joined(params: Params) -> Params:
    """The parameters, all weights joined."""
    return params.joined if isinstance(params, SplitParams) else params


def stored_params(params: Params) -> Params:
    """The parameters as they are stored."""
    return params.params if isinstance(params, SplitParams) else params
