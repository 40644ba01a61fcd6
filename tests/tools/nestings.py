"""Random nestings of transformations, and random pairs of a state and a transformation.

python -m tests.tools.nestings [--examples N] [--seed N]

A nesting, of a member of ours or Optax's, takes a few steps with random gradients by `update` and
by `step`, one in ten also under jit. They must agree with each other and, where moments are
float32, with the plain version in float64 (`tests.catalogue.plain`). The state must keep its form.

A pair is the state of one nesting and another nesting, most of them equal except for one property.
A step must either leave a state of the same structure and finite parameters, or raise a ValueError
or TypeError that names the problem and the place. Hypothesis shrinks failures.
"""

import argparse
import collections
import dataclasses
import functools
import os
import traceback
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import adam_jax
from adam_jax.formats.policy import format_of
from tests.catalogue import plain
from tests.catalogue.recipes import stepper

FORMATS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"mu_dtype": jnp.bfloat16},
    "stochastic": {"mu_dtype": adam_jax.stochastic(jnp.bfloat16)},
    "int8": dict.fromkeys(("mu_dtype", "nu_dtype"), adam_jax.Quantized(min_size=1)),
    "int4": dict.fromkeys(("mu_dtype", "nu_dtype"), adam_jax.Quantized("int4", min_size=1)),
    "factored": {"nu_dtype": adam_jax.Factored(min_dim_size=2, min_size=1)},
}


MODIFIERS = {
    "cautious": adam_jax.cautious,
    "atan2": adam_jax.atan2,
    "clip": functools.partial(adam_jax.clip_update_rms, threshold=0.5),
    "grams": adam_jax.grams,
    "corrected": functools.partial(adam_jax.corrected_weight_decay, peak_learning_rate=plain.PEAK),
}
# The second group is frozen; these are the hyperparameters of the others.
GROUPS: dict[str, Any] = {"layer/s|.*float8": None, ".*b": {"learning_rate": 0.03}}


@dataclasses.dataclass(frozen=True)
class Member:
    """One of our members: modified, in groups, with hyperparameters in the state."""

    name: str
    decay: float | None = None
    modifiers: tuple[str, ...] = ()
    numbers: tuple[tuple[str, float], ...] = ()
    scheduled: bool = False
    masked: bool = False
    groups: bool = False
    apart: bool = False  # A separate optimizer per group.
    hyperparams: bool = False
    format: str = "float32"

    def build(self) -> Any:
        kind = plain.MEMBERS[self.name]
        keywords = dict(self.numbers) | kind.keywords
        stored = FORMATS[self.format]
        keywords |= {k: x for k, x in stored.items() if self.name != "lion" or k == "mu_dtype"}
        if kind.decays:
            keywords["weight_decay"] = self.decay or 0.0
            keywords |= {"mask": adam_jax.decay_mask} if self.masked else {}
        elif self.decay:
            keywords["l2"] = self.decay
        factory: Any = getattr(adam_jax, self.name)
        for modifier in self.modifiers:
            factory = MODIFIERS[modifier](factory)
        if self.groups and self.apart:
            others = {e: k and functools.partial(factory, **k) for e, k in GROUPS.items()}
            factory = functools.partial(adam_jax.groups, others | {".*": factory})
        elif self.groups:
            factory = functools.partial(adam_jax.groups, factory, GROUPS)
        if self.hyperparams:
            factory = adam_jax.with_hyperparams(factory)
        return factory(learning_rate=plain.falling if self.scheduled else plain.RATE, **keywords)

    def plain(self) -> plain.Plain:
        return plain.Member(self)


@dataclasses.dataclass(frozen=True)
class Optaxs:
    name: str

    def build(self) -> Any:
        keywords: Any = {"sgd": {"momentum": 0.9}, "adam": {}}
        make = getattr(optax, self.name)
        return make(plain.RATE, **keywords.get(self.name, {"weight_decay": 0.1}))

    def plain(self) -> plain.Plain:
        # Momentum is an average without its factor 1 - b.
        if self.name == "sgd":
            return plain.Momentum()
        decay = 0.1 if plain.MEMBERS[self.name].decays else None
        return plain.Member(Member(self.name, decay))


@dataclasses.dataclass(frozen=True)
class Wrap:
    """A wrapper around another transformation, or a stage in a chain with it."""

    kind: str
    inner: "Node"
    by: str = "ours"  # Whose chain.

    def build(self) -> Any:
        inner, whose = self.inner.build(), optax.chain if self.by == "optax" else adam_jax.chain
        return {
            "clip": lambda: whose(adam_jax.clip_by_global_norm(1.0), inner),
            "optax clip": lambda: whose(optax.clip(0.5), inner),
            "optax norm": lambda: whose(optax.clip_by_global_norm(1.0), inner),
            "decay": lambda: whose(optax.add_decayed_weights(0.1), inner),
            "ema": lambda: whose(inner, adam_jax.ema_params(0.9)),
            "chain": lambda: whose(inner),
            "scale": lambda: whose(inner, adam_jax.scale_by_learning_rate(0.5, flip_sign=False)),
            "skip": lambda: adam_jax.skip_nonfinite(inner, warn=False),
            "optax skip": lambda: optax.apply_if_finite(inner, 100),
            "accumulate": lambda: adam_jax.accumulate(inner, 2),
            "optax steps": lambda: optax.MultiSteps(inner, 2).gradient_transformation(),
            "telemetry": lambda: adam_jax.telemetry(inner, every=2),
            "stochastic": lambda: adam_jax.stochastic_rounding(inner),
            "residual": lambda: adam_jax.master_residual(inner),
            "shard": lambda: adam_jax.sharding.shard_state(inner, mesh(), min_size=8),
            "offload": lambda: adam_jax.sharding.offload(inner),
        }[self.kind]()

    def plain(self) -> plain.Plain:
        return plain.KINDS.get(self.kind, plain.Plain)(self.inner.plain())


Node = Member | Optaxs | Wrap
"""A description, which builds its transformation and its float64 version."""


def nodes(node: Node) -> list[Node]:
    """This one and all inner ones."""
    return [node, *nodes(node.inner)] if isinstance(node, Wrap) else [node]


@functools.cache
def mesh() -> Any:
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def ours(node: Node) -> bool:
    """Whether it contains nothing from Optax."""
    *around, last = nodes(node)
    kinds = " ".join(getattr(x, "kind", "") + getattr(x, "by", "") for x in around)
    return not (isinstance(last, Optaxs) or "optax" in kinds or "decay" in kinds)


def has(node: Node, *kinds: str) -> bool:
    return any(getattr(x, "kind", "") in kinds for x in nodes(node))


def is_coded(node: Node) -> bool:
    """Whether its moments are not float32, which the plain version does not follow."""
    return any(getattr(x, "format", "float32") != "float32" for x in nodes(node))


class Case:
    def __init__(self, node: Node, tree: dict[str, Any], seed: int, bad: bool, steps: int = 4):
        rng = np.random.default_rng(seed)
        self.node, self.tree = node, tree
        self.params = {k: rng.standard_normal(s).astype(np.float32) for k, s in tree.items()}
        self.weights = [1.0] * steps
        if has(node, "accumulate"):
            self.weights = [float(x) for x in rng.choice([0.0, 1.0, 3.0], steps)]
        self.grads = []
        for _ in range(steps):
            size = rng.choice([0.0, 1e-3, 1.0, 1.0, 30.0])
            g: Any = {k: size * rng.standard_normal(s) for k, s in tree.items()}
            g = {k: np.asarray(x, np.float32) for k, x in g.items()}
            if bad and rng.random() < 0.5:
                path = rng.choice(sorted(g))
                g[path] = np.where(rng.random(g[path].shape) < 0.5, np.float32(np.inf), g[path])
                if rng.random() < 0.5:
                    g[path] = np.full_like(g[path], np.nan)
            self.grads.append(g)

    def as_tree(self, flat: dict[str, Any]) -> Any:
        tree: Any = {}
        for path, x in flat.items():
            *above, last = path.split("/")
            inside = tree.setdefault(above[0], {}) if above else tree
            inside[last] = jnp.asarray(x)
        return tree

    def run(self, way: str, jit: bool = False) -> tuple[Any, Any, Any]:
        """Parameters, and the states before the first and after the last step."""
        tx = self.node.build()
        step = stepper(optax.with_extra_args_support(tx) if way == "update" else tx, way)
        # One program per operation may deadlock on several devices: XLA:CPU runs several at a time.
        step = jax.jit(step) if jit or has(self.node, "shard") else step
        params = self.as_tree(self.params)
        before = state = tx.init(params)
        for i, g in enumerate(self.grads):
            weight = {"weight": self.weights[i]} if has(self.node, "accumulate") else {}
            params, state = step(params, state, self.as_tree(g), **weight)
            jax.block_until_ready((params, state))
        return params, before, state

    def expected(self) -> tuple[dict[str, Any], Any]:
        """The parameters of the plain version, and the version itself."""
        version = self.node.plain()
        params = {k: wide(p) for k, p in self.params.items()}
        with np.errstate(all="ignore"):
            for g, weight in zip(self.grads, self.weights, strict=True):
                g = {k: x if x is None else wide(x) for k, x in g.items()}
                updates = version.step(g, params, weight)
                params = {k: p if (u := updates[k]) is None else p + u for k, p in params.items()}
        return params, version


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def form(tree: Any) -> Any:
    """The structure of a state, with shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(np.shape(x), jnp.result_type(x)) for x in leaves]


def flat(tree: Any) -> dict[str, np.ndarray]:
    pairs = jax.tree.leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(x) for path, x in pairs}


def close(found: Any, expected: Any, tolerance: float, what: str) -> None:
    """Whether parameters are equal; the tolerance is relative to a step of the learning rate."""
    for path, x in flat(found).items():
        np.testing.assert_allclose(
            x, expected[path], rtol=1e-5, atol=tolerance * plain.RATE, err_msg=f"{what}: {path}"
        )


def check_nesting(case: Case, jit: bool) -> None:
    coded = is_coded(case.node)
    updated, before, after = case.run("update")
    assert form(before) == form(after), f"the state changes: {form(before)} {form(after)}"
    stepped, before, after = case.run("step")
    assert form(before) == form(after), f"the state changes: {form(before)} {form(after)}"
    assert all(np.isfinite(x).all() for x in flat(stepped).values()), "not finite"
    close(stepped, flat(updated), 0.05 if coded else 1e-4, "step and update")
    if jit and not has(case.node, "shard"):
        for way in ("update", "step"):
            compiled, _, state = case.run(way, jit=True)
            assert form(before) == form(state), "the state under jit"
            close(compiled, flat(stepped), 0.05 if coded else 1e-4, f"compiled {way} and step")
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
    other = Case(second, tree, 1, bad=False)
    params = params if tree == case.tree else other.as_tree(other.params)
    grads = other.as_tree(other.grads[0])
    try:
        if has(second, "accumulate"):  # Fully traced, because a micro-step checks no further.
            jax.eval_shape(lambda *args: adam_jax.step(tx, *args), grads, state, params)
        split = has(second, "shard") or has(case.node, "shard")
        step = jax.jit(stepper(tx, "step")) if split else stepper(tx, "step")
        moved, new = jax.block_until_ready(step(params, state, grads))
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


TREES: list[dict[str, tuple[int, ...]]] = [
    {"b": (64,), "layer/s": (), "layer/w": (4, 8), "w": (8, 64)},
    {"layer/b": (3,), "layer/s": (8, 32), "layer/w": (5,)},
]
AROUND = (
    *("clip", "optax clip", "optax norm", "decay", "ema", "chain", "scale", "skip", "optax skip"),
    *("accumulate", "optax steps", "telemetry", "stochastic", "residual"),
)
CHAINS = ("clip", "optax clip", "optax norm", "decay", "ema", "chain", "scale")


def formats(name: str) -> list[str]:
    """Those that a member accepts: a maximum over the steps refuses 4 bits."""
    return sorted(set(FORMATS) - ({"int4"} if name.startswith(("amsgrad", "adamax")) else set()))


@st.composite
def members(draw: Any) -> Node:
    if draw(st.integers(0, 5)) == 5:
        return Optaxs(draw(st.sampled_from(["sgd", "adam", "adamw", "lion"])))
    name = draw(st.sampled_from(sorted(plain.MEMBERS)))
    kind = plain.MEMBERS[name]
    flag = st.booleans()
    possible = kind.modifiers.split()
    modifiers = draw(st.lists(st.sampled_from(possible), max_size=2, unique=True))
    if {"atan2", "clip"} <= set(modifiers):
        modifiers = ["atan2"]  # Measured by a quotient that the plain version lacks.
    b1 = st.sampled_from([0.5, 0.9])
    numbers = (("b1", draw(b1)), ("b2", draw(st.sampled_from([0.9, 0.99]))))
    form = draw(st.sampled_from(["float32"] * 5 + formats(name)))
    grouped = draw(flag)
    return Member(
        name,
        draw(st.sampled_from([None, 0.1])),
        tuple(modifiers),
        numbers,
        scheduled=draw(flag),
        masked=kind.decays and draw(flag),
        groups=grouped,
        apart=grouped and draw(flag),
        hyperparams=draw(flag),
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


def skips(node: Node) -> bool:
    """Whether non-finite values reach no memory, or only one that forgets them."""
    kinds = [getattr(x, "kind", "") for x in nodes(node)]
    first = next((i for i, k in enumerate(kinds) if k in ("skip", "optax skip")), None)
    return first is not None and "optax steps" not in kinds[:first]


@st.composite
def pairs(draw: Any) -> tuple[Node, Node]:
    """A nesting that makes the state, and another that continues with it."""
    first = draw(nestings())
    how = draw(st.sampled_from(["any", "around", "inside", "swapped", "format", "member"]))
    if how == "around":
        return first, Wrap(draw(st.sampled_from(AROUND)), first)
    if how == "inside" and isinstance(first, Wrap):
        return first, first.inner
    if how == "swapped" and isinstance(first, Wrap) and isinstance(inner := first.inner, Wrap):
        if first.kind != "offload":  # `offload` is always outermost.
            return first, Wrap(inner.kind, Wrap(first.kind, inner.inner, first.by), inner.by)
    if how in ("format", "member"):
        other = draw(members())
        bare = nodes(first)[-1]
        if how == "format" and isinstance(bare, Member):
            other = dataclasses.replace(bare, format=draw(st.sampled_from(formats(bare.name))))
        for node in reversed(nodes(first)[:-1]):
            assert isinstance(node, Wrap)
            other = dataclasses.replace(node, inner=other)
        return first, other
    return first, draw(nestings())


UNHEALTHY = ("too_slow", "data_too_large", "filter_too_much")
SEEDS = st.integers(0, 2**16)
Found = collections.Counter


def draw_and_check(
    check: Callable[[Any], None], examples: int, seed: int, derandomize: bool
) -> None:
    """Calls `check` with that many random sources; raises the smallest failure."""
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=derandomize,
        suppress_health_check=[getattr(hypothesis.HealthCheck, name) for name in UNHEALTHY],
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        print_blob=False,
    )
    test = settings(hypothesis.given(st.data())(check))
    (test if derandomize else hypothesis.seed(seed)(test))()


def fuzz(examples: int, seed: int, found: Found, pairwise: bool, derandomize: bool = False) -> None:
    def nesting(data: Any) -> None:
        node = data.draw(nestings(), "nesting")
        tree = data.draw(st.sampled_from(TREES), "shapes")
        bad = skips(node) and data.draw(st.booleans(), "bad")
        case = Case(node, tree, data.draw(SEEDS, "seed"), bad)
        jit = data.draw(st.sampled_from([False] * 9 + [True]), "jit")
        found["nestings"] += 1
        check_nesting(case, jit)
        found["under jit" if jit else "eager"] += 1

    def pair(data: Any) -> None:
        first, second = data.draw(pairs(), "pair")
        tree = data.draw(st.sampled_from(TREES), "shapes")
        other = data.draw(st.sampled_from([tree] * 3 + TREES), "shapes of the second")
        steps = data.draw(st.integers(0, 2), "steps")
        case = Case(first, tree, data.draw(SEEDS, "seed"), False, steps)
        found["pairs"] += 1
        found[check_pair(case, second, other)] += 1

    draw_and_check(pair if pairwise else nesting, examples, seed, derandomize)


def campaign(description: str | None, **fuzzes: Callable[..., None]) -> None:
    """Draws in hundreds, as a failure ends its hundred; prints the smallest failures."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--examples", type=int, default=2000, help="of each kind")
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    for name, draw in fuzzes.items():
        found = Found()
        for chunk in range(0, args.examples, 100):
            try:
                draw(min(100, args.examples - chunk), args.seed + chunk, found)
            except Exception:
                traceback.print_exc()
            jax.clear_caches()  # Compiled programs are 10 MB a nesting.
        print(name, dict(found), flush=True)


if __name__ == "__main__":
    campaign(
        __doc__,
        nestings=functools.partial(fuzz, pairwise=False),
        pairs=functools.partial(fuzz, pairwise=True),
    )
