"""Random nestings of transformations, and random pairs of a state and a transformation.

python -m benchmarks.fuzz_nestings [--examples N] [--seed N] [--only PART] [--fast] [--json FILE]

A nesting is a member with modifiers, groups, hyperparameters in the state and a format, or one of
Optax's, in up to three wrappers, ours or Optax's (`benchmarks.nestings`). It takes a few steps with
random gradients by `update` and by `step`, one in ten also under jit; nestings on several devices
run only under jit. Both must agree with each other and, where moments are float32, with the plain
version in float64 (`benchmarks.nestings_plain`). The state must keep its structure, shapes and
dtypes.

A pair is the state of one nesting and another nesting, most of them equal except for one property.
A step must either leave a state of the same structure and finite parameters, or raise a ValueError
or TypeError that names the problem and the place. Pairs that Optax accepts, or rejects itself, are
counted. hypothesis shrinks failures.
"""

import argparse
import collections
import dataclasses
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import hypothesis
import jax
from hypothesis import strategies as st

from benchmarks import nestings_plain as plain
from benchmarks.machine import describe
from benchmarks.nestings import FORMATS, Member, Node, Optaxs, Wrap
from benchmarks.nestings_cases import Case, check_nesting, check_pair, ours
from examples.shared import strict_json
from examples.shared.command_line import positive, seed

TREES: list[dict[str, tuple[int, ...]]] = [
    {"b": (64,), "layer/s": (), "layer/w": (4, 8), "w": (8, 64)},
    {"layer/b": (3,), "layer/s": (8, 32), "layer/w": (5,)},
]
AROUND = (
    *("clip", "optax clip", "optax norm", "decay", "ema", "chain", "scale", "skip", "optax skip"),
    *("accumulate", "optax steps", "telemetry", "stochastic", "kahan", "residual"),
)
CHAINS = ("clip", "optax clip", "optax norm", "decay", "ema", "chain", "scale")


def formats(name: str) -> list[str]:
    """Those that a member accepts: a maximum over the steps refuses 4 bits."""
    return sorted(set(FORMATS) - ({"int4"} if name.startswith(("amsgrad", "adamax")) else set()))


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
    kinds = [getattr(x, "kind", "") for x in node.nodes()]
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
        bare = first.nodes()[-1]
        if how == "format" and isinstance(bare, Member):
            other = dataclasses.replace(bare, format=draw(st.sampled_from(formats(bare.name))))
        for node in reversed(first.nodes()[:-1]):
            assert isinstance(node, Wrap)
            other = dataclasses.replace(node, inner=other)
        return first, other
    return first, draw(nestings())


UNHEALTHY = ("too_slow", "data_too_large", "filter_too_much")
SEEDS = st.integers(0, 2**16)
Found = collections.Counter


def fuzz(examples: int, seed: int, pairwise: bool, found: Found, derandomize: bool = False) -> None:
    """Draws and checks that many; raises the smallest failure."""

    def nesting(data: Any) -> None:
        node = data.draw(nestings(), "nesting")
        odd = ["", ""]
        if skips(node):
            odd.append("bad")
        if ours(node):
            odd += ["integer", "none"]
        tree = data.draw(st.sampled_from(TREES), "shapes")
        case = Case(node, tree, data.draw(SEEDS, "seed"), data.draw(st.sampled_from(odd), "odd"))
        jit = data.draw(st.sampled_from([False] * 9 + [True]), "jit")
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
        suppress_health_check=[getattr(hypothesis.HealthCheck, name) for name in UNHEALTHY],
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        print_blob=False,
    )
    test = settings(hypothesis.given(st.data())(pair if pairwise else nesting))
    (test if derandomize else hypothesis.seed(seed)(test))()


def told(error: BaseException) -> str:
    """The smallest failure, and its place."""
    notes = [note for note in getattr(error, "__notes__", []) if not note.startswith("You can")]
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(where.filename).name}:{where.lineno}"
    return "\n".join([f"{type(error).__name__} at {place}", str(error)[:1200], *notes])


def campaign(name: str, examples: int, seed: int, findings: list[str]) -> dict[str, int]:
    """Draws that many in hundreds, as a failure ends its hundred; returns the outcomes."""
    found, start = Found(), time.perf_counter()
    for chunk in range(0, examples, 100):
        try:
            fuzz(min(100, examples - chunk), seed + chunk, name == "pairs", found)
        except Exception as error:
            for one in getattr(error, "exceptions", [error]):
                findings.append(f"{name}, seed {seed + chunk}: {told(one)}")
                print(findings[-1], flush=True)
        print(f"{name}: {chunk + 100} at {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if chunk % 300 == 200:
            jax.clear_caches()  # Compiled programs are 10 MB a nesting.
    return dict(found) | {"seconds": round(time.perf_counter() - start)}


def main() -> None:
    """Prints the findings; the exit status is 1 if there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--examples", type=positive, default=2000, help="nestings, and pairs")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--only", choices=["nestings", "pairs"], help="one of the two")
    parser.add_argument("--fast", action="store_true", help="25 and 40")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    print(describe("jax", "optax", "hypothesis"))
    counts, findings = {}, []
    for name, fast in (("nestings", 25), ("pairs", 40)):
        if args.only in (None, name):
            examples = fast if args.fast else args.examples
            counts[name] = campaign(name, examples, args.seed, findings)
            print(f"{name}: {counts[name]}", flush=True)
    if args.json:
        args.json.write_text(strict_json.dumps({"counts": counts, "findings": findings}))
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
