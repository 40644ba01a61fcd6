"""What each leaf of a model is, by its name: embedding, head, matrix, vector; and its axes."""

import dataclasses
import functools
import re

import jax
import numpy as np

from adam_jax._types import Params, PyTree
from adam_jax.core.stacked import Layers, LayersLike, looks_stacked
from adam_jax.core.trees import leaf_paths


@dataclasses.dataclass(frozen=True)
class Role:
    """What a leaf is in its model; as a string "matrix", or "stacked matrix" if it has layers.

    Attributes:
      kind: "embedding", a table with a row for each token, position or class; "head", the weights
        of the output layer; "matrix"; "convolution"; "fused", several matrices side by side;
        "vector", one number per feature; "unknown".
      inputs: the axes of the inputs, the window of a convolution included; the rows of a table.
        Empty if the name does not tell.
      outputs: the axes of the outputs, or of the features, likewise.
      layers: the axes that count stacked layers, or experts.
    """

    kind: str
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"stacked {self.kind}" if self.layers else self.kind


# Each matches a whole word of a path, in lower case and without a number at its end.
_AROUND = r"|params|raw_value|array|~"
_ARRAY = r"kernel|w|weight|w[io]"
_VECTOR = r"\w*bias|b|scale|offset|gamma|beta|cls|\w*token"
_NORM = r"\w*norm(_\w+)?|ln(_\w+)?|\w+_ln|bn(_\w+)?"
_TABLE = r"\w*embed(der|ding|dings|s|_tokens)?|wte|wpe|\w*bias_table"
_HEAD = r"(\w+_)?head|classifier|(lm_)?logits(_dense)?|unembed(ding)?"
_CONVOLUTION = r"\w*conv\w*"
_FUSED = r"c_attn|\w*qkv(_\w+)?|in_proj(_weight)?|query_key_value|gate_up_proj|(kv|gating)_einsum"
_QUERY = r"(query|key|value|[qkv])(_proj)?|w[qkv]"
_OUT = r"out|o|(o|out|output|c)_proj|attn_vec_einsum"
BLOCK = r"\w*(block|layer)s?|h|stacked|\w*att(entio)?n"
_EXPERTS = r"(?!shared)\w*experts?|moe\w*"
# What differs between models: kinds, the order of a matrix's axes, and that of a table's.
_ANY_KIND = r"\w*lora\w*|router|gate|(final|last|output)_\w*conv\w*"
_ANY_ORDER = r"c_(attn|proj|fc)|\w*transpose\w*|rel\w*"


@functools.lru_cache(4096)  # Masks ask for it in every step outside of programs.
def role_of(path: str, rank: int, stacked: bool = False) -> Role:
    """The role of a leaf, or of one layer of it, by its path and its number of axes.

    `stacked` is for one of several layers whose path has no word for that.
    """
    words = _words(path)
    name, named = words[-1], re.fullmatch(_ARRAY, words[-1]) is not None
    *around, module = words[:-1] if named and len(words) > 1 else words

    def among(kind: str, *words: str) -> bool:
        return any(re.fullmatch(kind, word) for word in words)

    if among(_ANY_KIND, module, *around[-1:]):
        return Role("unknown")
    if among(_VECTOR, name) or among(_NORM, module) or (rank < 2 and not among(_HEAD, module)):
        return Role("vector", (), tuple(range(rank)))
    first = int(rank > 2 and (among("w[io]", name) or among(_EXPERTS, module, *around[-1:])))
    layers, axes = tuple(range(first)), tuple(range(first, rank))
    ordered = not among(_ANY_ORDER, module, *around[-1:])
    if among(_TABLE, module) and name not in ("kernel", "w"):
        rows = axes[: ordered and len(axes) == 2]
        return Role("embedding", rows, axes[-1:] if ordered else (), layers)
    convolution = among(_CONVOLUTION, module) or (len(axes) > 2 and among(_TABLE, module))
    if convolution or among(_OUT, module):
        inputs, outputs = axes[:-1], axes[-1:]
    elif module == "q_einsum":
        inputs, outputs = axes[-2:-1], axes[:-2] + axes[-1:]
    elif len(axes) < 3 or among(_QUERY, module):
        inputs, outputs = axes[:1], axes[1:]
    else:
        inputs = outputs = ()
    inside = among(_QUERY, module) or (named and (stacked or among(BLOCK, *around)))
    if among(_HEAD, module):
        kind = "head"
    elif among(_FUSED, module):
        kind = "fused"
    else:
        kind = "convolution" if convolution else "matrix" if inside and inputs else "unknown"
    if name == "weight":  # [outputs, inputs], as in PyTorch.
        inputs, outputs = (tuple(sorted(axes[first - 1 - i] for i in x)) for x in (inputs, outputs))
    # A leaf of Levanter's NamedArray has a number, and either order.
    if not named or not ordered or re.search(r"/\d+$", path):
        inputs = outputs = ()
    return Role(kind, inputs, outputs, layers)


def _words(path: str) -> list[str]:
    words = (re.sub(r"[_.]?\d+$", "", word) for word in path.lower().split("/"))
    return [word for word in words if not re.fullmatch(_AROUND, word)] or [""]


def _is_below(path: str, prefix: str) -> bool:
    return not prefix or path.startswith(f"{prefix}/")


def roles(params: Params, layers: LayersLike | None = None) -> PyTree:
    """The role of each leaf of a model, by its path and its number of axes.

    It knows the names of Flax (Linen and NNX), Equinox, Haiku, MaxText and Levanter. What a name
    does not tell is "unknown": the last of several `Dense` may be the output layer.

    Args:
      params: the parameters, or their shapes.
      layers: the leaves that stack layers along their first axes, as in `with_layers`. None for
        subtrees whose leaves all look so, and for those with the layers on the second axis, as in
        MaxText.

    Returns:
      A tree like `params` of `Role`s. Change those of which you know better.

    Raises:
      ValueError: an invalid expression in `layers`, or one that matches nothing.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> block = {"attn": {"query": {"kernel": jnp.ones((8, 2, 4))}}, "ln": {"scale": jnp.ones(8)}}
      >>> params = {"wte": jnp.ones((50, 8)), "blocks": [block], "head": jnp.ones((8, 50))}
      >>> print(*map(str, jax.tree.leaves(adam_jax.roles(params))))
      matrix vector head embedding
    """
    leaves, treedef = jax.tree.flatten(params)
    told, looks = Layers.of(layers or {}), []
    told.check(params)
    paths = leaf_paths(params, none_is_leaf=False)
    if layers is None:
        looks = [(prefix, (0,)) for prefix in looks_stacked(params)]
        # Scales of norms have one axis, and so tell a second one; a bias may have several.
        vectors = [x for x, p in zip(paths, leaves, strict=True) if np.ndim(p) == 2]
        norms = [x for x in vectors if x[-4:] != "bias" and role_of(x, 2).kind == "vector"]
        along = looks_stacked(params, 1) if norms else ()
        looks += [(x, (1,)) for x in along if any(_is_below(path, x) for path in norms)]
    found = []
    for path, p in zip(paths, leaves, strict=True):
        axes = tuple(range(told.axes(path)))
        axes = next((axis for x, axis in looks if _is_below(path, x)), axes)
        rest = [i for i in range(np.ndim(p)) if i not in axes]
        role = role_of(path, len(rest), bool(axes))
        inputs, outputs, experts = (
            tuple(rest[i] for i in x) for x in (role.inputs, role.outputs, role.layers)
        )
        found.append(Role(role.kind, inputs, outputs, tuple(sorted((*axes, *experts)))))
    return treedef.unflatten(found)


def decay_mask(params: Params) -> PyTree:
    """The usual weight decay mask, `adamw(1e-3, mask=decay_mask)`: all decay but vectors, by role.

    Args:
      params: the parameters.

    Returns:
      A tree of booleans with the structure of `params`.
    """
    return jax.tree.map(lambda role: role.kind != "vector", roles(params))
