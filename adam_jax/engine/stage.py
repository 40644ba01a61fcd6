"""A rule and the state that Optax would keep for it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax._types import Leaf, State
from adam_jax.engine.call import PASS_ON, in_words
from adam_jax.engine.masks import Mask
from adam_jax.engine.states import register
from adam_jax.formats.base import Format
from adam_jax.formats.policy import SlotDType, check_still_fits, resolve
from adam_jax.rules.base import Rule
from adam_jax.rules.pytrees import frozen_pytree, static


@frozen_pytree
class Stage:
    """One rule and the layout of its state.

    Attributes:
      rule: the operation on each leaf.
      state_type: the NamedTuple of the state: the rule's slots, plus step counts.
      dtypes: the user's settings, one per slot.
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

    def describe(self) -> None:
        """Registers the type of the state; see `StateFields`.

        Raises:
          ValueError: a stage of another kind already uses this type.
        """
        slots = {slot.name: slot.magnitude for slot in self.rule.slots}
        register(self.state_type, slots=slots, counts=self.counts)

    def start(self, param: Leaf, index: int, path: str, layer: Leaf) -> Leaf:
        """The initial stored form of one slot of one leaf; its format is chosen for one layer.

        Raises:
          ValueError: the parameter cannot have this slot, or not in this format; the caller adds
            the path.
        """
        slot = self.rule.slots[index]
        try:
            fmt = resolve(self.dtypes[index], layer, slot, path)
        except TypeError as error:
            raise ValueError(
                f"the parameter has dtype {error}: Adam moves floating-point numbers only. Leave"
                f" such leaves out with optax.masked(..., mask) or keep them apart from the"
                f" parameters."
            ) from None
        return fmt.init(param if hasattr(param, "dtype") else jnp.asarray(param), slot.start)

    def check_formats(self, formats: Sequence[Format | None]) -> None:
        """Checks how a state stores one leaf: Optax keeps nu of a float16 parameter in float16.

        A state may also come from `convert_state`, or from an older release.

        Raises:
          ValueError: a run cannot continue from it; the caller adds the path.
        """
        for slot, fmt in zip(self.rule.slots, formats, strict=True):
            if fmt is not None:
                check_still_fits(slot, fmt)

    def wrap(self, state: State) -> State:
        """The state as `optax.masked` would keep it, if there is a mask."""
        return state if self.mask is None else optax.MaskedState(inner_state=state)

    def unwrap(self, state: State, where: str) -> State:
        """The inner state; raises an error for a state that `init` did not make.

        Args:
          state: of this stage.
          where: its place in the whole state, with which error messages begin.
        """
        state = state if self.mask is None else getattr(state, "inner_state", state)
        # Checked by type: a type with more slots would lose them, and AdaBelief's slots have the
        # same names as Adam's. A stage without state accepts anything empty, because Optax does not
        # look at it.
        empty = not self.state_type._fields and not jax.tree.leaves(state)
        if not empty and not isinstance(state, self.state_type):
            raise ValueError(
                f"{where}the state must be {in_words(self.state_type)}, got"
                f" {in_words(type(state))}: {PASS_ON} To move the state of another transformation,"
                f" write adam_jax.convert.from_optax(state, params, tx)."
            )
        return state

    def with_rule(self, rule: Rule) -> "Stage":
        """The same state under another rule with the same slots."""
        return dataclasses.replace(self, rule=rule)
