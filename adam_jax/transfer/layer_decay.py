"""Smaller learning rates for earlier layers, to fine-tune a model."""

import re

import jax

from adam_jax._types import Params
from adam_jax.core.trees import leaf_paths
from adam_jax.modifiers import Modifiable
from adam_jax.roles import BLOCK, roles
from adam_jax.transfer.growth import numbered
from adam_jax.transfer.mup import Factors, check_learning_rate, with_leaf_factors
from adam_jax.validation import check_number

FIRST = r"(?i).*(embed|token|cls|stem|wte|wpe|pos_|conv_init|bn_init).*"


def layer_decay(tx: Modifiable, params: Params, decay: float) -> Modifiable:
    """Multiplies the learning rate of each leaf by decayᵏ, with k layers between it and the output.

    Layers are blocks with a number in their path, `blocks/3/...`, `Block_3/...`. Before them come
    embeddings, tokens and the stem, by their names, and after them all others, with the factor 1.

    Args:
      tx: a transformation of this package with a learning rate, or a function that makes one.
      params: the parameters, or their shapes.
      decay: 0 to 1; 0.65 to 0.8 are usual for vision transformers.

    Returns:
      The transformation, or a function with the arguments of `tx`. The state is the member's own.

    Raises:
      ValueError: a decay out of range; no numbered blocks; stacked layers; `tx` has factors.

    Differs from timm in: of several stages (`layer1/0`), each counts as one layer.

    Reference: Clark et al. 2020, ELECTRA, section 3.2; Bao et al. 2022, BEiT, appendix H.
    """
    decay = check_number("decay", decay, 0, 1, closed=True, instead="0.75 is usual")
    paths = leaf_paths(params, none_is_leaf=False)
    for path, role in zip(paths, jax.tree.leaves(roles(params)), strict=True):
        if role.layers and role.kind != "unknown":
            raise ValueError(
                f"params must have layers as separate leaves, got the {role} {path!r}: a factor is"
                f" of a whole leaf."
            )
    with_numbers = numbered(paths)
    block = re.compile(rf"(.*?/)?({BLOCK})[/_.]?(?P<number>\d+)(?=/)", re.IGNORECASE)
    blocks = {path: int(m["number"]) for path in paths if (m := block.match(with_numbers[path]))}
    if not blocks:
        raise ValueError(
            f"params must have layers with numbers in their paths, blocks/0/kernel, got {paths}."
        )
    last = max(blocks.values()) + 2
    layer = {path: 0 if re.fullmatch(FIRST, path) else last for path in paths}
    layer |= {path: number + 1 for path, number in blocks.items()}
    factors = ((path, Factors(float(decay ** (last - layer[path])))) for path in paths)
    return with_leaf_factors(tx, tuple(factors), "layer_decay", check_learning_rate)
