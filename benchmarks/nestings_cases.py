"""Properties of a nesting, and of a pair of a state and a nesting, and their checks."""

import os
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from adam_jax.formats.policy import format_of
from benchmarks import nestings_plain as plain
from benchmarks.nestings import Node, Optaxs


def ours(node: Node) -> bool:
    """Whether it contains nothing from Optax."""
    *around, last = node.nodes()
    kinds = " ".join(getattr(x, "kind", "") + getattr(x, "by", "") for x in around)
    return not (isinstance(last, Optaxs) or "optax" in kinds or "decay" in kinds)


def has(node: Node, *kinds: str) -> bool:
    """Whether it contains one of these wrappers."""
    return any(getattr(x, "kind", "") in kinds for x in node.nodes())


def compiled_if(jit: bool, step: Any) -> Any:
    """A step as one program, as several devices require.

    With one program per operation, XLA:CPU runs several at a time on threads that wait for each
    other; with few cores they may deadlock.
    """
    return jax.jit(step) if jit else step


class Case:
    """A nesting, parameters and gradients."""

    def __init__(self, node: Node, tree: dict[str, Any], seed: int, odd: str, steps: int = 4):
        rng = np.random.default_rng(seed)
        self.node, self.tree = node, tree
        self.params = {k: rng.standard_normal(s).astype(np.float32) for k, s in tree.items()}
        self.left_alone = min(tree) if odd == "none" else None
        self.integer = odd == "integer"
        self.weights = [1.0] * steps
        if has(node, "accumulate"):
            self.weights = [float(x) for x in rng.choice([0.0, 1.0, 3.0], steps)]
        self.grads = []
        for _ in range(steps):
            size = rng.choice([0.0, 1e-3, 1.0, 1.0, 30.0])
            g: Any = {k: size * rng.standard_normal(s) for k, s in tree.items()}
            g = {k: np.asarray(x, np.float32) for k, x in g.items()}
            if odd == "bad" and rng.random() < 0.5:
                path = rng.choice(sorted(g))
                g[path] = np.where(rng.random(g[path].shape) < 0.5, np.float32(np.inf), g[path])
                if rng.random() < 0.5:
                    g[path] = np.full_like(g[path], np.nan)
            self.grads.append(g | ({self.left_alone: None} if self.left_alone else {}))

    def as_tree(self, flat: dict[str, Any], integer: Any) -> Any:
        """The nested tree, including an integer leaf if it has one."""
        tree: Any = {"n": integer} if self.integer else {}
        for path, x in flat.items():
            *above, last = path.split("/")
            inside = tree.setdefault(above[0], {}) if above else tree
            inside[last] = None if x is None else jnp.asarray(x)
        return tree

    def run(self, way: str, jit: bool = False) -> tuple[Any, Any, Any]:
        """Parameters, and the states before the first and after the last step."""
        tx = self.node.build()

        def by_update(grads: Any, state: Any, params: Any, **extra: Any) -> Any:
            full = optax.with_extra_args_support(tx)
            updates, state = full.update(grads, state, params, **extra)
            return applied(params, updates), state

        def by_step(grads: Any, state: Any, params: Any, **extra: Any) -> Any:
            return adam_jax.step(tx, grads, state, params, **extra)

        step = compiled_if(
            jit or has(self.node, "shard"), by_update if way == "update" else by_step
        )
        params = self.as_tree(self.params, jnp.arange(3))
        before = state = tx.init(params)
        for i, g in enumerate(self.grads):
            weight = {"weight": self.weights[i]} if has(self.node, "accumulate") else {}
            zeros = jnp.zeros(3, jnp.int32) if i % 2 else None
            params, state = step(self.as_tree(g, zeros), state, params, **weight)
            jax.block_until_ready((params, state))
        return params, before, state

    def expected(self) -> tuple[dict[str, Any], Any]:
        """The result of the plain version: parameters, and the version itself."""
        version = self.node.plain()
        params = {k: np.asarray(p, np.float64) for k, p in self.params.items()}
        with np.errstate(all="ignore"):
            for g, weight in zip(self.grads, self.weights, strict=True):
                g = {k: x if x is None else np.asarray(x, np.float64) for k, x in g.items()}
                updates = version.step(g, params, weight)
                params = {k: p if (u := updates[k]) is None else p + u for k, p in params.items()}
        return params, version


def applied(params: Any, updates: Any) -> Any:
    """optax.apply_updates, which does not accept None for an existing leaf."""
    leaves, treedef = jax.tree.flatten(params)
    updates = treedef.flatten_up_to(updates)
    moved = [
        p if u is None else optax.apply_updates(p, u) for p, u in zip(leaves, updates, strict=True)
    ]
    return treedef.unflatten(moved)


def form(tree: Any) -> Any:
    """The structure of a state, with shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(np.shape(x), jnp.result_type(x)) for x in leaves]


def flat(tree: Any) -> dict[str, np.ndarray]:
    """By path, without the integer."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    paths = ("/".join(key.key for key in path) for path, _ in pairs)
    return {path: np.asarray(x) for path, (_, x) in zip(paths, pairs, strict=True) if path != "n"}


def close(found: Any, expected: Any, tolerance: float, what: str) -> None:
    """Whether parameters are equal; the tolerance is relative to a step of the learning rate."""
    for path, x in flat(found).items():
        np.testing.assert_allclose(
            x, expected[path], rtol=1e-5, atol=tolerance * plain.RATE, err_msg=f"{what}: {path}"
        )


def check_nesting(case: Case, jit: bool) -> None:
    """All properties of a nesting."""
    node = case.node
    coded = any(getattr(x, "format", "float32") != "float32" for x in node.nodes())
    updated, before, after = case.run("update")
    assert form(before) == form(after), f"the state changes: {form(before)} {form(after)}"
    stepped, before, after = case.run("step")
    assert form(before) == form(after), f"the state changes: {form(before)} {form(after)}"
    assert all(np.isfinite(x).all() for x in flat(stepped).values()), "not finite"
    close(stepped, flat(updated), 0.05 if coded else 1e-4, "step and update")
    if jit and not has(node, "shard"):
        for way in ("update", "step"):
            compiled, _, state = case.run(way, jit=True)
            assert form(before) == form(state), "the state under jit"
            close(compiled, flat(stepped), 0.05 if coded else 1e-4, f"compiled {way} and step")
    if case.integer:
        np.testing.assert_array_equal(stepped["n"], np.arange(3))
    if coded:
        return
    expected, version = case.expected()
    close(stepped, expected, 2e-4, "step and the plain version")
    averages = [x for x in jax.tree.leaves(after, is_leaf=is_average) if is_average(x)]
    plains = [version]
    while plains[-1].inner is not None:
        plains.append(plains[-1].inner)
    plains = [x for x in plains if isinstance(x, plain.Average) and x.ema]
    for average, its in zip(averages, plains, strict=len(averages) == len(plains)):
        if int(average.count):
            close(average.ema, its.ema, 2e-4, "the average and the plain version's")


def is_average(x: Any) -> bool:
    """The state of `ema_params`."""
    return isinstance(x, adam_jax.EmaParamsState)


def whose(error: BaseException) -> tuple[str, str]:
    """The package of the last frame in ours or Optax's code, and of the last frame of all."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]

    def package(file: str) -> str:
        return next((p for p in ("adam_jax", "optax", "jax") if f"{os.sep}{p}{os.sep}" in file), "")

    both = [package(file) for file in files]
    return next((p for p in reversed(both) if p in ("adam_jax", "optax")), ""), both[-1]


def check_pair(case: Case, second: Node, tree: dict[str, Any]) -> str:
    """Steps with another nesting's state; returns the outcome."""
    tx = second.build()
    params, _, state = case.run("step")
    other = Case(second, tree, 1, "")
    params = params if tree == case.tree else other.as_tree(other.params, None)
    grads = other.as_tree(other.grads[0], None)
    try:
        if has(second, "accumulate"):  # Fully traced, because a micro-step checks no further.
            jax.eval_shape(lambda *args: adam_jax.step(tx, *args), grads, state, params)
        split = has(second, "shard") or has(case.node, "shard")
        step = compiled_if(split, lambda *args: adam_jax.step(tx, *args))
        moved, new = jax.block_until_ready(step(grads, state, params))
    except Exception as error:
        by, last = whose(error)
        if by == "optax" or not isinstance(tx, adam_jax.Transformation):
            return "an error of Optax"
        assert isinstance(error, ValueError | TypeError), f"not a ValueError: {error!r}"
        assert last == "adam_jax", f"an error of {last}: {error!r}"
        told = ("at '", "at state[", "the state must", "the structure of the state")
        assert any(x in str(error) for x in told), f"the error names no place: {error}"
        return "a ValueError"
    if not ours(second) and form(state) != form(tx.init(params)):
        return "taken by Optax, which does not look"
    assert tree == case.tree, "a state of other parameters was taken"
    kept = skeleton(state) == skeleton(new) and form(state)[1] == form(new)[1]
    assert kept, f"the state changes: {form(state)} {form(new)}"
    assert form(moved) == form(params), "the parameters change"
    assert all(np.isfinite(x).all() for x in flat(moved).values()), "not finite"
    same = form(state) == form(tx.init(params))
    assert same or skeleton(state) == skeleton(tx.init(params)), "another state was taken"
    return "the same state" if same else "a state in another form"


def skeleton(state: Any) -> Any:
    """The structure of a state, whatever the formats of its moments and the types of empties."""

    def whole(x: Any) -> bool:
        empty = isinstance(x, optax.MaskedState | optax.EmptyState) and not jax.tree.leaves(x)
        return empty or format_of(x) is not None

    return jax.tree.structure(jax.tree.map(lambda x: 0, state, is_leaf=whole))
