"""Descriptions of nested transformations: each builds itself and its plain float64 version."""

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adam_jax
from benchmarks import nestings_plain as plain

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
    "nesterov": adam_jax.nesterov,
    "atan2": adam_jax.atan2,
    "clip": functools.partial(adam_jax.clip_update_rms, threshold=0.5),
    "grokfast": functools.partial(adam_jax.grokfast, decay=0.9),
    "grams": adam_jax.grams,
    "corrected": functools.partial(adam_jax.corrected_weight_decay, peak_learning_rate=plain.PEAK),
}
# The second group is frozen; these are the hyperparameters of the others.
GROUPS: dict[str, Any] = {"layer/s": None, ".*b": {"learning_rate": 0.03}}


class Node(abc.ABC):
    """A description."""

    @abc.abstractmethod
    def build(self) -> Any:
        """The transformation."""

    @abc.abstractmethod
    def plain(self) -> plain.Plain:
        """Its float64 version."""

    def nodes(self) -> list["Node"]:
        """This one and all inner ones."""
        return [self]


@dataclasses.dataclass(frozen=True)
class Member(Node):
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
        """The transformation."""
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
        """Its float64 version."""
        return plain.Member(self)


@dataclasses.dataclass(frozen=True)
class Optaxs(Node):
    """One of Optax's."""

    name: str

    def build(self) -> Any:
        """The transformation."""
        return {
            "sgd": lambda: optax.sgd(plain.RATE, momentum=0.9),
            "adam": lambda: optax.adam(plain.RATE),
            "adamw": lambda: optax.adamw(plain.RATE, weight_decay=0.1),
            "lion": lambda: optax.lion(plain.RATE, weight_decay=0.1),
        }[self.name]()

    def plain(self) -> plain.Plain:
        """The version of our member; momentum is an average without its factor 1 - b."""
        if self.name == "sgd":
            return plain.Momentum()
        decay = 0.1 if plain.MEMBERS[self.name].decays else None
        return plain.Member(Member(self.name, decay))


@dataclasses.dataclass(frozen=True)
class Wrap(Node):
    """A wrapper around another transformation, or a stage in a chain with it."""

    kind: str
    inner: Node
    by: str = "ours"  # Whose chain.

    def nodes(self) -> list[Node]:
        """This one and all inner ones."""
        return [self, *self.inner.nodes()]

    def build(self) -> Any:
        """The transformation."""
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
            "kahan": lambda: adam_jax.kahan_summation(inner),
            "residual": lambda: adam_jax.master_residual(inner),
            "shard": lambda: adam_jax.sharding.shard_state(inner, mesh(), min_size=8),
            "offload": lambda: adam_jax.sharding.offload(inner),
        }[self.kind]()

    def plain(self) -> plain.Plain:
        """Its float64 version."""
        return plain.KINDS.get(self.kind, plain.Plain)(self.inner.plain())


@functools.cache
def mesh() -> Any:
    """A mesh of eight devices."""
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
