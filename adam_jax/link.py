"""A rule and where its memory lies: the state that Optax would keep for it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax

from adam_jax.formats.policy import SlotDType, resolve
from adam_jax.leaves import Mask
from adam_jax.rules.base import Rule
from adam_jax.rules.pytrees import frozen_pytree, static


@frozen_pytree
class Link:
    """One rule and where its memory lies.

    Attributes:
      rule: what happens to each leaf.
      state_type: the NamedTuple of the state: the rule's slots, and besides them step counts.
      dtypes: what the user asked for, one entry per slot.
      mask: the leaves that the rule acts on; None for all. Only for rules without slots.
    """

    rule: Rule
    state_type: Any = static()
    dtypes: tuple[SlotDType, ...] = static(default=())
    mask: Mask | None = static(default=None)

    @property
    def counts(self) -> tuple[str, ...]:
        """The fields of the state that count optimizer steps; Optax's AdEMAMix has two."""
        slots = {slot.name for slot in self.rule.slots}
        return tuple(name for name in self.state_type._fields if name not in slots)

    def start(self, param: Any, index: int, path: str) -> Any:
        """What one slot of one leaf stores before the first step.

        Raises:
          ValueError: no slot can belong to this parameter; the caller knows its path.
        """
        slot = self.rule.slots[index]
        try:
            fmt = resolve(self.dtypes[index], param, slot.magnitude, path)
        except TypeError as error:
            raise ValueError(
                f"the parameter has dtype {error}: Adam moves floating-point numbers only. Leave"
                f" such leaves out with optax.masked(..., mask) or keep them apart from the"
                f" parameters."
            ) from None
        return fmt.init(param if hasattr(param, "dtype") else jnp.asarray(param), slot.start)

    def wrap(self, state: Any) -> Any:
        """The state as `optax.masked` would keep it, where there is a mask."""
        return state if self.mask is None else optax.MaskedState(inner_state=state)

    def unwrap(self, state: Any) -> Any:
        """The state inside; says what is wrong with one that `init` did not make."""
        state = state if self.mask is None else getattr(state, "inner_state", state)
        # By its fields: every tuple has a method `count`.
        fields = getattr(state, "_fields", ())
        absent = [name for name in self.state_type._fields if name not in fields]
        if absent:
            raise ValueError(
                f"the state must be a {self.state_type.__name__}, got {type(state).__name__}"
                f" without {absent}: call init of this transformation and pass its result on; a"
                f" state of another one goes on by adam_jax.convert.from_optax(state, params, tx)."
            )
        return state

    def with_rule(self, rule: Rule) -> "Link":
        """The same memory under another rule, which keeps the same slots."""
        return dataclasses.replace(self, rule=rule)
