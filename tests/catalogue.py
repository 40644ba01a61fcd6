"""The members under test, as data: each property test is parametrised over this table."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax
import pytest

import adam_jax
from tests import oracles


@dataclasses.dataclass(frozen=True)
class Member:
    """One alias, its scale_by_*, its twin in Optax, and the naive version from its paper."""

    name: str
    alias: Callable[..., Any]
    scale_by: Callable[..., Any]
    optax_alias: Callable[..., Any]
    optax_scale_by: Callable[..., Any]
    oracle: Callable[..., Any]
    slots: tuple[str, ...]
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    needs_params: bool = False


MEMBERS = (
    Member(
        "adam",
        adam_jax.adam,
        adam_jax.scale_by_adam,
        optax.adam,
        optax.scale_by_adam,
        oracles.adam,
        ("mu", "nu"),
    ),
    Member(
        "adam-nesterov",
        adam_jax.adam,
        adam_jax.scale_by_adam,
        optax.adam,
        optax.scale_by_adam,
        oracles.adam,
        ("mu", "nu"),
        {"nesterov": True},
    ),
    Member(
        "adamw",
        adam_jax.adamw,
        adam_jax.scale_by_adam,
        optax.adamw,
        optax.scale_by_adam,
        oracles.adam,
        ("mu", "nu"),
        needs_params=True,
    ),
    Member(
        "amsgrad",
        adam_jax.amsgrad,
        adam_jax.scale_by_amsgrad,
        optax.amsgrad,
        optax.scale_by_amsgrad,
        oracles.amsgrad,
        ("mu", "nu", "nu_max"),
    ),
)

every_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
