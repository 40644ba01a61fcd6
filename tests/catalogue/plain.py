"""Plain float64 versions of transformations and their wrappers, with Python loops.

They are objects that remember all gradients, and a skipped step does not change them.
The directions are the naive ones of `tests.catalogue.oracles`, run over all gradients so far.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tests.catalogue import oracles

Arrays = dict[str, Any]
"""By path: a float64 array, or None for an unchanged leaf."""
RATE = 0.1  # Except for groups that have another one.
PEAK = 0.2  # Of the corrected weight decay, so that a constant rate is corrected too.


def falling(count: Any) -> Any:
    return RATE / (1.0 + 0.5 * count)


class Kind(NamedTuple):
    """Properties of a member."""

    oracle: Callable[..., Iterator[Any]]
    decays: bool  # Decoupled; otherwise by `l2`.
    modifiers: str  # Those that the plain version implements.
    keywords: dict[str, Any] = {}  # Of alias and oracle.


MEMBERS = {
    "adam": Kind(oracles.adam, False, "cautious atan2 clip grams"),
    "adamw": Kind(oracles.adam, True, "cautious atan2 clip grams corrected"),
    "nadam": Kind(oracles.nadam, False, "cautious atan2 grams"),
    "amsgrad": Kind(oracles.amsgrad, False, "cautious atan2 clip grams"),
    "adamax": Kind(oracles.adamax, False, "cautious clip"),
    "adamaxw": Kind(oracles.adamax, True, "cautious clip grams corrected"),
    "radam": Kind(oracles.radam, False, "cautious"),
    "adabelief": Kind(oracles.belief, False, "cautious"),
    "yogi": Kind(oracles.yogi, False, "cautious"),
    "adan": Kind(oracles.adan, True, "cautious grams corrected", {"eps_root": 1e-8}),
    "lion": Kind(oracles.lion, True, "cautious corrected"),
    "adopt": Kind(oracles.adopt, False, "cautious grams"),
    "laprop": Kind(oracles.laprop, False, "cautious grams"),
    "ademamix": Kind(oracles.ademamix, True, "cautious grams corrected", {"alpha": 5.0}),
    "mars_adamw": Kind(oracles.mars, True, "cautious atan2 grams corrected"),
    "lamb": Kind(oracles.adam, True, "cautious grams corrected", {"eps": 1e-6}),
}


def each(f: Callable[..., Any], first: Arrays, *others: Arrays) -> Arrays:
    """f of each leaf that is not None."""
    return {k: None if x is None else f(x, *(y[k] for y in others)) for k, x in first.items()}


def mean(x: Any) -> Any:
    return np.sum(x) / max(np.size(x), 1)


class Plain:
    """A step in float64; this one only calls the inner version."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def step(self, g: Arrays, params: Arrays, weight: float) -> Arrays:
        return self.inner.step(self.before(g, params), params, weight)

    def before(self, g: Arrays, params: Arrays) -> Arrays:
        del params
        return g


class Member(Plain):
    """The whole alias."""

    def __init__(self, member: Any) -> None:
        super().__init__()
        self.member, self.count = member, 0
        self.seen: dict[str, list[Any]] = {}

    def step(self, g: Arrays, params: Arrays, weight: float) -> Arrays:
        del weight
        member = self.member
        rate = falling(self.count) if member.scheduled else RATE
        updates: Arrays = {}
        for path, x in g.items():
            its = 0.03 if member.groups and path.endswith("b") else rate
            frozen = member.groups and path == "layer/s"
            updates[path] = (
                x if x is None else 0 * x if frozen else -its * self.leaf(path, x, params, its)
            )
        self.count += 1
        return updates

    def leaf(self, path: str, g: Any, params: Arrays, rate: float) -> Any:
        """The factor of the learning rate."""
        member, kind, p = self.member, MEMBERS[self.member.name], params[path]
        decay = 0.0 if member.decay is None or (member.masked and p.ndim < 2) else member.decay
        decay *= rate / PEAK if "corrected" in member.modifiers else 1.0
        if not kind.decays:
            g = g + decay * p
        self.seen.setdefault(path, []).append(g)
        u = self.direction(path)
        if "clip" in member.modifiers:
            rms = np.sqrt(mean(self.direction(path, b1=0.0) ** 2))
            u = u / max(1.0, rms / 0.5)
        for modifier in member.modifiers:  # The first one is the innermost.
            if modifier == "cautious":
                along = u * g > 0
                u = np.where(along, u / max(mean(along), 1e-3), 0.0)
            elif modifier == "grams":
                u = np.abs(u) * np.sign(g)
        if kind.decays:
            u = u + decay * p
        if member.name == "lamb":
            size_p, size_u = (np.sqrt(np.sum(x**2)) for x in (p, u))
            u = u * (size_p / size_u if size_p > 0 and size_u > 0 else 1.0)
        return u

    def direction(self, path: str, **numbers: float) -> Any:
        """The naive direction, over all gradients."""
        member, kind = self.member, MEMBERS[self.member.name]
        numbers = kind.keywords | dict(member.numbers) | numbers
        if "atan2" in member.modifiers:  # Of the same quotient without ε.
            numbers["eps"] = 0.0
        *_, u = kind.oracle(np.stack(self.seen[path]), **numbers)
        return np.arctan(u) if "atan2" in member.modifiers else u


class Momentum(Plain):
    """optax.sgd."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: Arrays = {}

    def step(self, g: Arrays, params: Arrays, weight: float) -> Arrays:
        del params, weight
        self.trace = each(lambda x, m: x + 0.9 * m, g, self.trace or each(np.zeros_like, g))
        return each(lambda m: -RATE * m, self.trace)


class Clip(Plain):
    """Clips by the norm over all leaves."""

    def before(self, g: Arrays, params: Arrays) -> Arrays:
        norm = np.sqrt(sum(np.sum(np.abs(x) ** 2) for x in g.values() if x is not None))
        return each(lambda x: x if norm <= 1 else x * (1 / norm), g)


class ClipEach(Plain):
    """Each element."""

    def before(self, g: Arrays, params: Arrays) -> Arrays:
        return each(lambda x: np.clip(x, -0.5, 0.5), g)


class Decay(Plain):
    """optax.add_decayed_weights."""

    def before(self, g: Arrays, params: Arrays) -> Arrays:
        return each(lambda x, p: x + 0.1 * p, g, params)


class Halved(Plain):
    """A later stage of a chain."""

    def step(self, g: Arrays, params: Arrays, weight: float) -> Arrays:
        return each(lambda u: 0.5 * u, self.inner.step(g, params, weight))


class Average(Plain):
    """An average of the parameters."""

    steps, ema = 0, None

    def step(self, g: Arrays, params: Arrays, weight: float) -> Arrays:
        updates = self.inner.step(g, params, weight)
        self.steps += 1
        share = 0.1 / (1 - 0.9**self.steps)
        moved = {k: params[k] if u is None else params[k] + u for k, u in updates.items()}
        self.ema = each(lambda p, e: e + share * (p - e), moved, self.ema or params)
        return updates


class Skip(Plain):
    """Skips steps with non-finite values."""

    def step(self, g: Arrays, params: Arrays, weight: float) -> Arrays:
        if all(x is None or np.isfinite(x).all() for x in g.values()):
            return self.inner.step(g, params, weight)
        return each(np.zeros_like, g)


class Every(Plain):
    """Two gradients per step, each with its weight."""

    weighted = True

    def __init__(self, inner: Plain) -> None:
        super().__init__(inner)
        self.kept: list[tuple[float, Arrays]] = []

    def step(self, g: Arrays, params: Arrays, weight: float) -> Arrays:
        self.kept.append((weight if self.weighted else 1.0, g))
        if len(self.kept) < 2:
            return each(np.zeros_like, g)
        (v, x), (w, y) = self.kept
        self.kept = []
        if v + w == 0:
            return each(np.zeros_like, g)
        taken = [(a, b) for a, b in ((v, x), (w, y)) if a]  # Avoids 0 times NaN.
        mean = each(
            lambda *z: sum(a * b for (a, _), b in zip(taken, z, strict=True)) / (v + w),
            *(b for _, b in taken),
        )
        return self.inner.step(mean, params, 1.0 if self.weighted else weight)


class EveryOfOptax(Every):
    """optax.MultiSteps has no weights."""

    weighted = False


KINDS: dict[str, Any] = {
    "clip": Clip,
    "optax norm": Clip,
    "optax clip": ClipEach,
    "decay": Decay,
    "scale": Halved,
    "ema": Average,
    "skip": Skip,
    "optax skip": Skip,
    "accumulate": Every,
    "optax steps": EveryOfOptax,
}
