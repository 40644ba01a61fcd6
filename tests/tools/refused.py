"""Rejected steps of members x storage x wrappers change only the counters of rejections.

python -m tests.tools.refused    runs all combinations; 20 minutes on a core
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from tests.catalogue import KINDS_OF_STATE, MEMBERS, Member
from tests.tools.layer_cases import REFUSES_4_BITS, STORED
from tests.tools.record import WRAPPERS

AROUND: dict[str, Callable[[Any], Any]] = {
    "alone": lambda tx: tx,
    **{name: wrap for name, wrap in WRAPPERS.items() if name != "frozen"},
    "with_layers": lambda tx: adam_jax.with_layers(tx, "kernel"),
    "offload": adam_jax.sharding.offload,
}
USUAL = ("float32", "bfloat16", "int8")
Parts = frozenset[str]
OF_16_BITS = ("stochastic_rounding", "kahan_summation", "master_residual", "recipe")


class Case(NamedTuple):
    """The names of a member, of the storage of its moments and of the wrapper around it."""

    member: Member
    stored: str
    wrapper: str

    @property
    def name(self) -> str:
        """The name of the case."""
        return f"{self.member.name}, {self.stored}, {self.wrapper}"

    def combined(self) -> set[Parts]:
        """Its parts and their pairs."""
        names = (self.member.name, self.stored, self.wrapper)
        return {frozenset(x) for n in (1, 2) for x in itertools.combinations(names, n)}


def allowed(case: Case) -> bool:
    """Whether the parts of a case can be combined."""
    return case.stored != "int4 nu" or case.member.name not in REFUSES_4_BITS


def cases() -> Iterator[Case]:
    """All allowed combinations."""
    return filter(allowed, itertools.starmap(Case, itertools.product(MEMBERS, STORED, AROUND)))


def wanted() -> Iterator[Parts]:
    """The combinations that `few` covers."""
    yield from (frozenset({member.name}) for member in MEMBERS)
    yield from map(frozenset, itertools.product(KINDS_OF_STATE, STORED))
    yield from map(frozenset, itertools.product((*USUAL, "adamw"), AROUND))


def few() -> list[Case]:
    """Few cases: all members; each kind of state and storage; all wrappers with `USUAL` storage."""
    every = [(case, case.combined()) for case in cases()]
    used: Counter[Parts] = Counter()
    found = []
    for parts in wanted():
        possible = [(case, its) for case, its in every if parts in its]
        if possible and not used[parts]:
            case, its = min(possible, key=lambda pair: sum(used[p] for p in pair[1]))
            found.append(case)
            used.update(its)
    return found


def changed(case: Case) -> list[str]:
    """The paths in parameters and state that a rejected step changes; should be empty."""
    dtypes = STORED[case.stored]
    stored = case.member.stored(dtypes.get("mu"), dtypes.get("nu"))
    tx = adam_jax.skip_nonfinite(AROUND[case.wrapper](case.member.alias(1e-2, **stored)))
    dtype = jnp.bfloat16 if case.wrapper.startswith(OF_16_BITS) else jnp.float32
    random = np.random.default_rng(0)
    shapes = {"kernel": (8, 32), "bias": (3,)}
    params = {k: jnp.asarray(random.normal(size=s), dtype) for k, s in shapes.items()}
    state = tx.init(params)
    step = jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))
    with jax.numpy_dtype_promotion("standard"):  # For Optax's own code.
        params, state = step(jax.tree.map(jnp.cos, params), state, params)
        bad = params | {"kernel": params["kernel"].at[0, 5].set(jnp.nan)}
        new_params, new_state = step(bad, state, params)
    assert int(new_state.total_notfinite) == int(state.total_notfinite) + 1
    before, after = (params, state.inner_state), (new_params, new_state.inner_state)
    flat, treedef = jax.tree.flatten_with_path(before)
    assert treedef == jax.tree.structure(after)
    return [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(flat, jax.tree.leaves(after), strict=True)
        if np.asarray(x).tobytes() != np.asarray(y).tobytes()
    ]


def moved(case: Case) -> bool:
    """Whether an accepted step changes the parameters, to show that the check above can fail."""
    tx = adam_jax.skip_nonfinite(AROUND[case.wrapper](case.member.alias(1e-2)))
    params = {"kernel": jnp.ones((8, 32)), "bias": jnp.ones(3)}
    state = tx.init(params)
    after = params
    for _ in range(4):
        updates, state = tx.update(params, state, after)
        after = optax.apply_updates(after, updates)
    return bool(jnp.any(after["kernel"] != params["kernel"]))


if __name__ == "__main__":
    for case in cases():
        print(f"{case.name}: {changed(case) or 'nothing'}", flush=True)
