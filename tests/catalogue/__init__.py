"""The members under test, as data: each property test is parametrized over this table."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import optax
import pytest
from optax import contrib

import adam_jax
from tests.catalogue import oracles


@dataclasses.dataclass(frozen=True)
class Member:
    """An alias, its scale_by_*, their counterparts in Optax and the naive version of the paper."""

    name: str  # Of the test; the part before a hyphen is the alias.
    scale_by: str
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)  # Of all four.
    ours: dict[str, Any] = dataclasses.field(default_factory=dict)  # That Optax does not have.
    in_optax: bool = True
    slots: tuple[str, ...] = ("mu", "nu")  # Fields of the state other than counts.
    needs_params: bool = False  # For weight decay or norms.
    first_update_is_zero: bool = False  # The first gradient only initializes the state.
    scale_invariant: bool = True  # With every ε = 0, a factor of all gradients changes no update.
    elementwise: bool = True  # Each element's update depends on that element alone.
    bounded: bool = False  # |u| ≤ max(1, (1-b1)/√(1-b2)) after zero gradients, paper section 2.1.
    starts_at_zero: bool = True  # So a zero gradient gives a zero update.
    hides_infinity: bool = False  # An infinite gradient gives a finite update, by definition.
    reads_the_old: bool = False  # The update also reads accumulators from before this step.
    divides: bool = True  # By a root or a magnitude, which `atan2` can replace.
    may_be_one: tuple[str, ...] = ()  # Decay rates b for which nothing is divided by 1 - b.

    @property
    def oracle(self) -> Callable[..., Any]:
        """The naive version of the direction."""
        return getattr(oracles, self.scale_by.removeprefix("scale_by_"))

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(adam_jax, self.name.split("-")[0])

    @property
    def alias(self) -> Callable[..., Any]:
        """Our alias with the keywords bound."""
        return functools.partial(self.function, **self.keywords, **self.ours)

    @property
    def direction(self) -> Callable[..., Any]:
        """Our scale_by_* with the keywords bound."""
        scale_by = getattr(adam_jax, self.scale_by)
        return functools.partial(scale_by, **self.keywords, **self.ours)

    def naive(self, gradients: Any, **kwargs: Any) -> Any:
        """The direction in NumPy, in float64."""
        return self.oracle(gradients, **(self.keywords | self.ours | kwargs))

    def has(self, argument: str) -> bool:
        return argument in inspect.signature(self.function).parameters

    @property
    def decays(self) -> bool:
        """Whether the alias has decoupled weight decay, even if its default λ is 0."""
        parameter = inspect.signature(self.function).parameters.get("weight_decay")
        return parameter is not None and parameter.default is not None

    def stored(self, mu: Any, nu: Any) -> dict[str, Any]:
        """The arguments that store the moments in these forms."""
        return {k: x for k, x in (("mu_dtype", mu), ("nu_dtype", nu)) if self.has(k)}

    @property
    def without_eps(self) -> dict[str, float]:
        """The arguments that set every ε to zero."""
        return {name: 0.0 for name in ("eps", "eps_root", "eps_hat") if self.has(name)}

    @property
    def has_twin(self) -> bool:
        """Whether Optax has the member and all keywords of the row."""
        return self.in_optax and not self.ours

    @property
    def twin(self) -> "Twin":
        """Optax's member, with the keywords bound."""
        assert self.has_twin
        scale_by = "scale_by_adam" if self.scale_by == "scale_by_nadam" else self.scale_by
        direction = getattr(optax, scale_by, None) or getattr(contrib, scale_by)
        name = self.name.split("-")[0]
        alias = getattr(optax, name, None) or getattr(contrib, name)
        nesterov = {"nesterov": True} if self.scale_by == "scale_by_nadam" else {}
        return Twin(
            functools.partial(alias, **self.keywords),
            functools.partial(direction, **nesterov, **self.keywords),
            (alias, direction),
        )

    def moments(self, state: Any) -> dict[str, Any]:
        """The slots in the state of the alias or of the direction, by name."""
        state = state if hasattr(state, self.slots[0]) else state[0]
        return {name: getattr(state, name) for name in self.slots}

    def counts(self, state: Any) -> list[Any]:
        """The step counts in that state, in order."""
        state = state if hasattr(state, self.slots[0]) else state[0]
        return [x for name, x in state._asdict().items() if name not in self.slots]


class Twin(NamedTuple):
    """A member of Optax: its alias, and the direction in it."""

    alias: functools.partial[Any]
    direction: functools.partial[Any]
    without_keywords: tuple[Callable[..., Any], Callable[..., Any]]


MAGNITUDES = ("nu", "nu_max", "n")

MEMBERS = (
    Member("adam", "scale_by_adam", bounded=True),
    Member("adam-nesterov", "scale_by_adam", {"nesterov": True}),
    Member("adam-eps_hat", "scale_by_adam", ours={"eps_hat": 1e-7}, bounded=True),
    Member("adamw", "scale_by_adam", needs_params=True, bounded=True),
    Member("nadam", "scale_by_nadam"),
    Member("nadam-decay", "scale_by_nadam", ours={"momentum_decay": 0.004}),
    Member("amsgrad", "scale_by_amsgrad", slots=("mu", "nu", "nu_max"), bounded=True),
    Member(
        "amsgrad-max_first",
        "scale_by_amsgrad",
        ours={"max_before_correction": True},
        slots=("mu", "nu", "nu_max"),
        bounded=True,
    ),
    Member("adamax", "scale_by_adamax", bounded=True),
    Member("radam", "scale_by_radam", scale_invariant=False),
    Member("adabelief", "scale_by_belief"),
    Member("yogi", "scale_by_yogi", scale_invariant=False, starts_at_zero=False),
    Member(
        "adan",
        "scale_by_adan",
        slots=("m", "v", "n", "g"),
        needs_params=True,
        reads_the_old=True,
    ),
    Member(
        "adan-paper",
        "scale_by_adan",
        ours={"change_weight": 0.92},
        slots=("m", "v", "n", "g"),
        needs_params=True,
        reads_the_old=True,
    ),
    Member(
        "lion",
        "scale_by_lion",
        slots=("mu",),
        needs_params=True,
        bounded=True,
        hides_infinity=True,
        divides=False,
        reads_the_old=True,
        may_be_one=("b1", "b2"),
    ),
    Member(
        "adopt",
        "scale_by_adopt",
        first_update_is_zero=True,
        reads_the_old=True,
        may_be_one=("b1", "b2"),
    ),
    Member("laprop", "scale_by_laprop", in_optax=False),
    Member(
        "mars_adamw",
        "scale_by_mars",
        in_optax=False,
        slots=("mu", "nu", "g"),
        needs_params=True,
        scale_invariant=False,
        elementwise=False,
        bounded=True,
        reads_the_old=True,
    ),
    Member(
        "ademamix",
        "scale_by_ademamix",
        {"alpha": 5.0},
        slots=("m1", "m2", "nu"),
        needs_params=True,
        may_be_one=("b3",),
    ),
    Member("lamb", "scale_by_adam", {"eps": 1e-6}, needs_params=True, elementwise=False),
)

# One member for each form of state, all of them also in Optax. Tests of wrappers depend on the
# form of the state alone.
KINDS_OF_STATE = ("adamw", "amsgrad", "adan", "lion", "ademamix")


def of_each_kind(members: Sequence[Member]) -> list[Member]:
    """The members among them that stand for a form of state."""
    return [m for m in members if m.name in KINDS_OF_STATE]


def every(members: Sequence[Member]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("member", members, ids=lambda member: member.name)


def _param(id: str, quick: bool, *values: Any) -> Any:
    return pytest.param(*values, id=id, marks=[] if quick else [pytest.mark.slow])


def slowly(
    members: Sequence[Member], quick: Sequence[str] = KINDS_OF_STATE
) -> pytest.MarkDecorator:
    """Members as parameters, of which `make test` runs a few: by default, one of each state."""
    return pytest.mark.parametrize("member", [_param(m.name, m.name in quick, m) for m in members])


def few(argument: str, cases: Iterable[str], quick: Sequence[str]) -> pytest.MarkDecorator:
    """Names as parameters, of which `make test` runs a few."""
    return pytest.mark.parametrize(argument, [_param(x, x in quick, x) for x in cases])


def slowly_with(
    other: str, pairs: Iterable[tuple[Member, Any]], quick: Sequence[str] = KINDS_OF_STATE
) -> pytest.MarkDecorator:
    """As `slowly`, for pairs of a member and something else."""
    wanted = [_param(f"{m.name}-{x}", m.name in quick, m, x) for m, x in pairs]
    return pytest.mark.parametrize(("member", other), wanted)


every_member = every(MEMBERS)
every_kind_of_state = every(of_each_kind(MEMBERS))
every_member_slowly = slowly(MEMBERS)
one_kind_of_state = slowly(of_each_kind(MEMBERS), quick=["adamw"])
every_elementwise = slowly([m for m in MEMBERS if m.elementwise])
every_twin = every([m for m in MEMBERS if m.has_twin])
