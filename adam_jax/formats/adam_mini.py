"""Adam-mini's partition of a transformer into blocks, by the paths of its leaves."""

import dataclasses
import re

import numpy as np

from adam_jax._types import Leaf
from adam_jax.formats.base import Format, SlotPolicy
from adam_jax.formats.block_means import BlockMeans
from adam_jax.slots import Slot
from adam_jax.validation import check_expression


@dataclasses.dataclass(frozen=True)
class AdamMini(SlotPolicy):
    """The second moment of Adam-mini: one for each head, token, output neuron or norm.

    For `nu_dtype=`. With outputs last, as in Flax:

        leaf                                     one second moment for each
        query, key [inputs, heads, head_dim]     head
        value [inputs, heads, head_dim]          output neuron
        embedding [tokens, width]                token
        other kernels [..., outputs]             output neuron
        biases                                   element
        other vectors, as the scale of a norm    leaf

    A query or key kernel without a head axis, [inputs, heads·head_dim], gets one second moment for
    each output neuron, which is finer. For a fused query-key-value kernel, [inputs, 3, heads,
    head_dim], write a `query_key` that matches it. For a model that is not a transformer, the paper
    uses one second moment for each leaf, `BlockMeans(None)`.

    Expressions must match the whole path of a leaf, as in `by_path`. Each layer of a stacked leaf
    has its own blocks, if `with_layers` declares it.

    Attributes:
      query_key: for kernels of queries and keys.
      value: for kernels of values.
      embedding: for tables of tokens and positions; the last axis is the width.
      bias: for leaves that keep elementwise second moments.
      outputs_last: kernels are [inputs, outputs], as in Flax and Haiku; False for [outputs,
        inputs], as in Equinox and PyTorch, where queries, keys and values are [heads, head_dim,
        inputs].

    Raises:
      ValueError: an invalid regular expression; in `init`, use as `mu_dtype`: see `BlockMeans`.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.adamw(1e-3, b2=0.95, nu_dtype=adam_jax.AdamMini())
      >>> params = {"query": jnp.ones((256, 8, 32)), "mlp": jnp.ones((256, 1024))}
      >>> nu = tx.init(params)[0].nu
      >>> print(nu["query"].means.shape, nu["mlp"].means.shape)
      (1, 8, 1) (1, 1024)

    Differs from the authors' `Adam_mini` (version 1.1.1) in: heads are an axis of the kernel, not
    numbers to pass; the position table has one second moment for each position; a kernel that no
    expression matches has one for each output neuron, where theirs has one for the leaf.

    Reference: Zhang et al. 2024, Adam-mini, algorithms 1 and 3, https://arxiv.org/abs/2406.16793
    """

    query_key: str = r"(?i)(.*/)?((query|key)(_proj)?|[qk]_proj|w[qk])(/\w+)?"
    value: str = r"(?i)(.*/)?(value(_proj)?|v_proj|wv)(/\w+)?"
    embedding: str = r"(?i)(.*/)?[^/]*(embed|embd|wte|wpe)[^/]*(/w|/weight)?"
    bias: str = r"(?i)(.*/)?(\w*bias|b)"
    outputs_last: bool = True

    def __post_init__(self) -> None:
        for argument in ("query_key", "value", "embedding", "bias"):
            check_expression(argument, getattr(self, argument))

    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        return BlockMeans(self._axes(path, np.ndim(param))).resolve(param, slot, path)

    def _axes(self, path: str, rank: int) -> tuple[int, ...]:
        """The axes of a block, counted from the last."""

        def matches(expression: str) -> bool:
            return re.fullmatch(expression, path) is not None

        if matches(self.bias):
            return ()
        every = tuple(range(-rank, 0))
        if rank < 2:
            return every
        if matches(self.embedding):
            return (-1,)
        inputs, head_dim = (-rank, -1) if self.outputs_last else (-1, -2)
        if rank > 2 and matches(self.query_key):
            return inputs, head_dim
        if rank > 2 and matches(self.value):
            return (inputs,)
        outputs = -1 if self.outputs_last else -rank
        return tuple(axis for axis in every if axis != outputs)
