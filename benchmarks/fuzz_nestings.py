"""Random nestings of transformations, and random pairs of a state and a transformation.

python -m benchmarks.fuzz_nestings [--examples N] [--seed N] [--only PART] [--fast] [--json FILE]

A nesting is a member with modifiers, groups, hyperparameters in the state and a format, or one of
Optax's, in up to three wrappers, ours or Optax's (`benchmarks.nestings`). It takes a few steps with
random gradients by `update` and by `step`, one in ten under jit as well. They agree with each
other, with the plain version in float64 (`benchmarks.nestings_plain`) where moments are float32,
and the state keeps its structure, shapes and dtypes.

A pair is the state of one nesting and another nesting, half of them alike but for one thing. A step
either leaves a state of the same structure and finite parameters, or it is a ValueError or a
TypeError that says what is wrong and where. hypothesis makes what fails as small as it can.
"""

import argparse
import collections
import dataclasses
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import adam_jax
from adam_jax.formats.policy import format_of
from benchmarks import nestings_plain as plain
from benchmarks.machine import describe
from benchmarks.nestings import FORMATS, Member, Node, Optaxs, Wrap
from examples import strict_json

TREES: list[dict[str, tuple[int, ...]]] = [
    {"b": (64,), "layer/s": (), "layer/w": (4, 8), "w": (8, 64)},
    {"layer/b": (3,), "layer/s": (8, 32)},
]
AROUND = (
    *("clip", "optax clip", "optax norm", "decay", "ema", "chain", "scale", "skip", "optax skip"),
    *("accumulate", "optax steps", "telemetry", "stochastic", "kahan", "residual"),
)
CHAINS = ("clip", "optax clip", "optax norm", "decay", "ema", "chain", "scale")


@st.composite
def members(draw: Any) -> Node:
    """A member, or one of Optax's."""
    if draw(st.integers(0, 5)) == 5:
        return Optaxs(draw(st.sampled_from(["sgd", "adam", "adamw", "lion"])))
    name = draw(st.sampled_from(sorted(plain.MEMBERS)))
    kind = plain.MEMBERS[name]
    flag = st.booleans()
    possible = kind.modifiers.split()
    modifiers = draw(st.lists(st.sampled_from(possible), max_size=2, unique=True))
    if {"atan2", "clip"} <= set(modifiers):
        modifiers = ["atan2"]  # Measured by a quotient that the plain version has not.
    b1 = st.sampled_from([0.5, 0.9])
    numbers = (("b1", draw(b1)), ("b2", draw(st.sampled_from([0.9, 0.99]))))
    form = draw(st.sampled_from(["float32"] * 5 + sorted(FORMATS)))
    whole = {"cautious", "clip"} & set(modifiers) or form not in ("float32", "bfloat16")
    grouped, hyperparams = draw(flag), draw(flag)
    return Member(
        name,
        draw(st.sampled_from([None, 0.1])),
        tuple(modifiers),
        numbers,
        scheduled=draw(flag),
        masked=kind.decays and draw(flag),
        groups=grouped,
        hyperparams=hyperparams,
        packed=not (whole or grouped or hyperparams) and draw(flag),
        format=form,
    )


@st.composite
def nestings(draw: Any) -> Node:
    """A member in up to three wrappers, on devices or the host."""
    node = draw(members())
    for kind in draw(st.lists(st.sampled_from(AROUND), max_size=3)):
        by = draw(st.sampled_from(["ours", "optax"])) if kind in CHAINS else "ours"
        node = Wrap(kind, node, by)
    place = draw(st.sampled_from([""] * 4 + ["shard", "offload", "both"]))
    node = Wrap("shard", node) if place in ("shard", "both") else node
    return Wrap("offload", node) if place in ("offload", "both") else node


def ours(node: Node) -> bool:
    """Whether Optax has no part in it."""
    return not any(
        isinstance(x, Optaxs)
        or getattr(x, "by", "") == "optax"
        or "optax" in getattr(x, "kind", "")
        or getattr(x, "kind", "") == "decay"
        for x in node.nodes()
    )


def has(node: Node, *kinds: str) -> bool:
    """Whether one of these wrappers is in it."""
    return any(getattr(x, "kind", "") in kinds for x in node.nodes())


def skips(node: Node) -> bool:
    """Whether what is not finite reaches nothing that remembers, or only what forgets it."""
    kinds = [getattr(x, "kind", "") for x in node.nodes()]
    first = next((i for i, k in enumerate(kinds) if k in ("skip", "optax skip")), None)
    return first is not None and "optax steps" not in kinds[:first]


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
        """The nested tree, with an integer in it where there is one."""
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

        step = by_update if way == "update" else by_step
        step = jax.jit(step) if jit else step
        params = self.as_tree(self.params, jnp.arange(3))
        before = state = tx.init(params)
        for i, g in enumerate(self.grads):
            weight = {"weight": self.weights[i]} if has(self.node, "accumulate") else {}
            zeros = jnp.zeros(3, jnp.int32) if i % 2 else None
            params, state = step(self.as_tree(g, zeros), state, params, **weight)
        return params, before, state

    def expected(self) -> tuple[dict[str, Any], Any]:
        """By the plain version: parameters, and the version itself."""
        version = self.node.plain()
        params = {k: np.asarray(p, np.float64) for k, p in self.params.items()}
        with np.errstate(all="ignore"):
            for g, weight in zip(self.grads, self.weights, strict=True):
                g = {k: x if x is None else np.asarray(x, np.float64) for k, x in g.items()}
                updates = version.step(g, params, weight)
                params = {k: p if (u := updates[k]) is None else p + u for k, p in params.items()}
        return params, version


def applied(params: Any, updates: Any) -> Any:
    """optax.apply_updates, which does not take None for a leaf that is there."""
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
    """By path, the integer left out."""
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
    """All that is said of a nesting above."""
    node = case.node
    coded = any(getattr(x, "format", "float32") != "float32" for x in node.nodes())
    updated, before, after = case.run("update")
    assert form(before) == form(after), f"the state changes: {form(before)} {form(after)}"
    stepped, before, after = case.run("step")
    assert form(before) == form(after), f"the state changes: {form(before)} {form(after)}"
    assert all(np.isfinite(x).all() for x in flat(stepped).values()), "not finite"
    close(stepped, flat(updated), 0.05 if coded else 1e-4, "step and update")
    if jit:
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


@st.composite
def pairs(draw: Any) -> tuple[Node, Node]:
    """A nesting whose state it is, and another that is to go on with it."""
    first = draw(nestings())
    how = draw(st.sampled_from(["any", "around", "inside", "swapped", "format", "member"]))
    inner = first.inner
    if how == "around":
        return first, Wrap(draw(st.sampled_from(AROUND)), first)
    if how == "inside" and inner is not None:
        return first, inner
    if how == "swapped" and isinstance(first, Wrap) and isinstance(inner, Wrap):
        return first, Wrap(inner.kind, Wrap(first.kind, inner.inner, first.by), inner.by)
    if how in ("format", "member"):
        other = draw(members())
        bare = first.nodes()[-1]
        if how == "format" and isinstance(bare, Member) and not bare.packed:
            other = dataclasses.replace(bare, format=draw(st.sampled_from(sorted(FORMATS))))
        for node in reversed(first.nodes()[:-1]):
            assert isinstance(node, Wrap)
            other = dataclasses.replace(node, inner=other)
        return first, other
    return first, draw(nestings())


def whose(error: BaseException) -> tuple[str, str]:
    """The package of the last frame in ours or Optax's code, and of the last frame of all."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]

    def package(file: str) -> str:
        return next((p for p in ("adam_jax", "optax", "jax") if f"{os.sep}{p}{os.sep}" in file), "")

    both = [package(file) for file in files]
    return next((p for p in reversed(both) if p in ("adam_jax", "optax")), ""), both[-1]


def check_pair(case: Case, second: Node, tree: dict[str, Any]) -> str:
    """Steps the state of a nesting by another; returns what became of it."""
    tx = second.build()
    params, _, state = case.run("step")
    other = Case(second, tree, 1, "")
    params = params if tree == case.tree else other.as_tree(other.params, None)
    grads = other.as_tree(other.grads[0], None)
    try:
        moved, new = adam_jax.step(tx, grads, state, params)
    except Exception as error:
        by, last = whose(error)
        if by == "optax" or not isinstance(tx, adam_jax.Transformation):
            return "an error of Optax"
        assert isinstance(error, ValueError | TypeError), f"not a ValueError: {error!r}"
        assert last == "adam_jax", f"an error of {last}: {error!r}"
        told = ("at '", "at state[", "the state must", "the structure of the state")
        assert any(x in str(error) for x in told), f"it does not say where: {error}"
        return "a ValueError"
    assert tree == case.tree, "a state of other parameters was taken"
    assert form(state) == form(new), f"the state changes: {form(state)} {form(new)}"
    assert form(moved) == form(params), "the parameters change"
    assert all(np.isfinite(x).all() for x in flat(moved).values()), "not finite"
    same = form(state) == form(tx.init(params))
    assert same or skeleton(state) == skeleton(tx.init(params)), "another state was taken"
    return "the same state" if same else "a state in another form"


def skeleton(state: Any) -> Any:
    """The structure of a state, whatever its moments are stored as."""
    leaves = jax.tree.map(lambda x: 0, state, is_leaf=lambda x: format_of(x) is not None)
    return jax.tree.structure(leaves)


SEEDS = st.integers(0, 2**16)
Found = collections.Counter


def fuzz(examples: int, seed: int, pairwise: bool, found: Found, derandomize: bool = False) -> None:
    """Draws and checks that many; raises at the smallest that fails."""

    def nesting(data: Any) -> None:
        node = data.draw(nestings(), "nesting")
        odd = ["", ""]
        if skips(node):
            odd.append("bad")
        if ours(node):
            packed = any(getattr(x, "packed", False) for x in node.nodes())
            odd += ["integer"] if packed else ["integer", "none"]
        tree = data.draw(st.sampled_from(TREES), "shapes")
        case = Case(node, tree, data.draw(SEEDS, "seed"), data.draw(st.sampled_from(odd), "odd"))
        jit = data.draw(st.integers(0, 9), "jit") == 9
        hypothesis.assume(any(not getattr(x, "groups", 0) or set(tree) for x in node.nodes()))
        found["nestings"] += 1
        check_nesting(case, jit)
        found["under jit" if jit else "eager"] += 1

    def pair(data: Any) -> None:
        first, second = data.draw(pairs(), "pair")
        tree = data.draw(st.sampled_from(TREES), "shapes")
        other = data.draw(st.sampled_from([tree] * 3 + TREES), "shapes of the second")
        steps = data.draw(st.integers(0, 2), "steps")
        case = Case(first, tree, data.draw(SEEDS, "seed"), "", steps)
        found["pairs"] += 1
        found[check_pair(case, second, other)] += 1

    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=derandomize,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        print_blob=False,
    )
    test = settings(hypothesis.given(st.data())(pair if pairwise else nesting))
    (test if derandomize else hypothesis.seed(seed)(test))()


def told(error: BaseException) -> str:
    """What failed, as small as it can be, and where."""
    notes = [note for note in getattr(error, "__notes__", []) if not note.startswith("You can")]
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(where.filename).name}:{where.lineno}"
    return "\n".join([f"{type(error).__name__} at {place}", str(error)[:1200], *notes])


def main() -> None:
    """Prints what was found; the exit status is 1 if anything was."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=2000, help="nestings, and pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["nestings", "pairs"], help="one of the two")
    parser.add_argument("--fast", action="store_true", help="25 and 40")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    print(describe("jax", "optax", "hypothesis"))
    counts, findings = {}, []
    for name, fast in (("nestings", 25), ("pairs", 40)):
        if args.only not in (None, name):
            continue
        found, start = Found(), time.perf_counter()
        left = fast if args.fast else args.examples
        for chunk in range(0, left, 100):  # What fails ends a chunk.
            try:
                fuzz(min(100, left - chunk), args.seed + chunk, name == "pairs", found)
            except Exception as error:
                for one in getattr(error, "exceptions", [error]):
                    findings.append(f"{name}, seed {args.seed + chunk}: {told(one)}")
                    print(findings[-1], flush=True)
        seconds = time.perf_counter() - start
        counts[name] = dict(found) | {"seconds": round(seconds)}
        print(f"{name}: {counts[name]}", flush=True)
    if args.json:
        args.json.write_text(strict_json.dumps({"counts": counts, "findings": findings}))
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
