"""Adam-mini, by Zhang et al. 2024: one second moment for each block of a transformer.

https://arxiv.org/abs/2406.16793
"""

import dataclasses
import re

import numpy as np

from adam_jax._types import Leaf
from adam_jax.formats.base import Format, SlotPolicy
from adam_jax.formats.block_means import BlockMeans
from adam_jax.roles import role_of
from adam_jax.slots import Slot


@dataclasses.dataclass(frozen=True)
class AdamMini(SlotPolicy):
    """The second moment of Adam-mini: one for each head, token, output neuron or norm.

    For `nu_dtype=`. The leaves, by their names (`adam_jax.roles`):

        leaf                                     one second moment for each
        query, key [inputs, heads, head_dim]     head
        embedding [tokens, width]                token
        other weights                            output neuron
        scale of a norm                          leaf
        bias, and unknown axes                   element

    A query or key kernel without a head axis, [inputs, heads·head_dim], has one for each output
    neuron, which is finer. `by_path({"qkv": BlockMeans((0, 3))}, AdamMini())` is for leaves whose
    names do not tell. For a model that is not a transformer, the paper uses one second moment for
    each leaf, `BlockMeans(None)`. Each layer of a stacked leaf has its own blocks, if `with_layers`
    declares it.

    Raises:
      ValueError: in `init`, use as `mu_dtype`: see `BlockMeans`.

    Differs from the authors' `Adam_mini` (version 1.1.1) in: heads are an axis of the kernel, not
    numbers to pass; the position table has one second moment for each position; other weights have
    one for each output neuron, where theirs have one for the leaf.

    Reference: Zhang et al. 2024, Adam-mini, algorithms 1 and 3, https://arxiv.org/abs/2406.16793
    """

    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        """Means over the blocks of one leaf."""
        role, path = role_of(path, np.ndim(param)), path.lower()
        axes = role.inputs
        if role.kind == "embedding":
            axes = role.outputs
        elif role.kind == "vector":
            axes = () if re.search(r"(bias|(^|/)b)(/|$)", path) else role.outputs
        elif re.search(r"(^|/)(query|key|[qk]_proj|w[qk])(/|$)", path) and len(role.outputs) > 1:
            axes = (*role.inputs, role.outputs[-1])
        return BlockMeans(axes).resolve(param, slot, path)
