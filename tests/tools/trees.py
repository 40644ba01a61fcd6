"""Random trees of unusual leaves in random nestings, against the plain version in float64.

python -m tests.tools.trees [--examples N] [--seed N]

Beside the leaves of `tests.tools.nestings` there are leaves of 16 bits, complex ones, scalars,
axes of length 0, boxes and paths with slashes, which move, and integers, keys, frozen float8
leaves and None, which keep their bits. Gradients are None also where a leaf could move.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from hypothesis import strategies as st

from tests.catalogue import plain
from tests.tools.nestings import (
    SEEDS,
    Case,
    Found,
    Member,
    campaign,
    close,
    draw_and_check,
    form,
    has,
    is_coded,
    nestings,
    nodes,
    ours,
)

EPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "complex64": 2.0**-24}
SHAPES = [(), (3,), (0,), (2, 0, 3), (4, 5), (1, 1), (128,), (2, 3, 4)]
COMPLEX = ("adam", "adamw", "nadam", "amsgrad", "adamax", "adamaxw", "radam")
REAL = {"optax clip", "stochastic", "residual"}
FIXED = {
    "int32": lambda shape: jnp.arange(np.prod(shape, dtype=int)).reshape(shape),
    "key": lambda shape: jax.random.split(jax.random.key(3), shape or 1)[() if shape else 0],
    "float8": lambda shape: jnp.full(shape, 1.5, jnp.float8_e4m3fn),
    "None": lambda shape: None,
}


@dataclasses.dataclass
class Leaf:
    """A leaf beside the usual ones, of a dtype that moves or of a kind that does not."""

    above: list[str]
    kind: str
    shape: tuple[int, ...]
    box: bool
    float0: bool  # Its gradient is float0 for an integer, and None without a box.


@st.composite
def leaves(draw: Any, kinds: list[str]) -> list[Leaf]:
    above = st.lists(st.sampled_from(["a", "a/x", ""]), max_size=2)
    one = st.builds(
        Leaf, above, st.sampled_from(kinds), st.sampled_from(SHAPES), st.booleans(), st.booleans()
    )
    return draw(st.lists(one, min_size=1, max_size=6))


class TreeCase(Case):
    def __init__(self, node: Any, seed: int, steps: int, unusual: list[Leaf]) -> None:
        super().__init__(node, {"b": (6,), "layer/s": (), "layer/w": (4, 8)}, seed, False, steps)
        rng = np.random.default_rng(seed)
        self.unusual = {f"{i}:{leaf.kind}": leaf for i, leaf in enumerate(unusual)}
        self.fixed = {
            name: FIXED[leaf.kind](leaf.shape)
            for name, leaf in self.unusual.items()
            if leaf.kind in FIXED
        }
        for name in self.unusual.keys() - self.fixed.keys():
            leaf = self.unusual[name]
            for flat in (self.params, *self.grads):
                x = rng.standard_normal(leaf.shape) + 1j * rng.standard_normal(leaf.shape)
                x = np.asarray(x if leaf.kind == "complex64" else x.real)
                still = leaf.float0 and not leaf.box and flat is not self.params
                flat[name] = None if still else x.astype(jnp.dtype(leaf.kind))

    def as_tree(self, flat: dict[str, Any]) -> Any:
        tree = super().as_tree({k: x for k, x in flat.items() if k not in self.unusual})
        for name, leaf in self.unusual.items():
            inside = tree.setdefault("unusual", {})
            for key in leaf.above:
                inside = inside.setdefault(key, {})
            if name not in self.fixed and flat[name] is None:
                inside[name] = None
            elif name not in self.fixed:
                x: Any = jnp.asarray(flat[name])
                inside[name] = meta.Partitioned(x, (None,) * x.ndim) if leaf.box else x
            elif flat is self.params:
                inside[name] = self.fixed[name]
            else:
                zeros = leaf.float0 and leaf.kind in ("int32", "key")
                inside[name] = np.zeros(leaf.shape, jax.dtypes.float0) if zeros else None
        return tree

    def leaf(self, tree: Any, name: str) -> Any:
        """One of the unusual leaves, out of its box."""
        inside = tree["unusual"]
        for key in (*self.unusual[name].above, name):
            inside = inside[key]
        return meta.unbox(inside)


def check(case: TreeCase, jit: bool) -> None:
    """The usual leaves and those that move are right, and the others keep their bits."""
    coded = is_coded(case.node)
    expected, _ = case.expected()
    for way in ("update", "step"):
        moved, before, after = case.run(way, jit)
        assert form(before) == form(after), f"{way}: the state changes"
        for name, leaf in case.unusual.items():
            x, what = case.leaf(moved, name), f"{way}: {leaf}"
            if name in case.fixed:
                same = jax.tree.map(jnp.array_equal, x, case.fixed[name])
                assert jax.tree.all(same), what
                continue
            assert x.dtype == leaf.kind and x.shape == leaf.shape, what
            x = np.asarray(x).astype(expected[name].dtype)
            assert np.isfinite(x).all(), what
            if not coded:
                eps = 8 * EPS[leaf.kind]
                atol = 2e-4 * plain.RATE + eps
                np.testing.assert_allclose(x, expected[name], 1e-5 + eps, atol, err_msg=what)
        if not coded:
            del moved["unusual"]
            close(moved, expected, 2e-4, f"{way} and the plain version")


def fuzz(examples: int, seed: int, found: Found, derandomize: bool = False) -> None:
    def one(data: Any) -> None:
        node = data.draw(nestings().filter(ours), "nesting")
        last = nodes(node)[-1]
        assert isinstance(last, Member)
        kinds = ["float32", "bfloat16", "float16", "int32", "key", "None"]
        kinds += ["float8"] * last.groups  # Others refuse to train it.
        if last.name in COMPLEX and not last.modifiers and not is_coded(node):
            kinds += ["complex64"] * (not has(node, *REAL))
        unusual = data.draw(leaves(kinds), "unusual leaves")
        steps = data.draw(st.sampled_from([2, 4]), "steps")
        case = TreeCase(node, data.draw(SEEDS, "seed"), steps, unusual)
        check(case, data.draw(st.sampled_from([False, False, False, True]), "jit"))
        found.update(leaf.kind for leaf in unusual)
        found["trees"] += 1

    draw_and_check(one, examples, seed, derandomize)


if __name__ == "__main__":
    campaign(__doc__, trees=fuzz)
