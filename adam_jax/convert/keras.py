"""States of Keras 3's optimizers, from their variables."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import optax

from adam_jax._types import AnyTransformation, Named, Params, PyTree, State
from adam_jax.convert.entries import as_numpy, check_real, matched_slots, whole_steps
from adam_jax.convert.moments import Moments, Target
from adam_jax.convert.names import Names, layouts
from adam_jax.convert.twins import (
    check_kinds,
    check_momentum_product,
    check_twin,
    is_maximum,
    member_rules,
)

KINDS = (optax.ScaleByAdamState, optax.ScaleByAmsgradState, optax.ScaleByLionState)
U_PRODUCT = "u_product"


def from_keras(
    variables: Mapping[str, Any] | Iterable[Any],
    params: Params,
    tx: AnyTransformation,
    *,
    names: Names | None = None,
) -> State:
    """A state of `tx` that goes on where an optimizer of Keras 3 stopped.

    Args:
      variables: `optimizer.variables` of Adam, AdamW, Nadam, Adamax, Lion or Lamb, with or without
        amsgrad; or `{v.path: v for v in optimizer.variables}`, as an .npz file of them has it. They
        are found by their paths, `adam/sequential_dense_kernel_momentum`; the learning rate among
        them is not read.
      params: our parameters, such as `params_from_named` makes of those of the model.
      tx: what goes on. docs/migrating/keras.md says which arguments make the two equal; `amsgrad`
        needs `max_before_correction=True`, `nadam` `momentum_decay=1.0`.
      names: by the path of a leaf, `dense/kernel`, the path of its variable in Keras, as in
        `model.trainable_variables`: `sequential/dense/kernel`. A leaf that is not named has the
        same path. Kernels lie as in Flax.

    Returns:
      The state, as `from_torch` makes it; its counts are the optimizer's `iterations`.

    Raises:
      ValueError: variables that are missing, too many or misshapen, listed (an average of the
        weights and a gradient accumulator are too many: convert without them, where none is in the
        making); a `tx` that keeps something else.
    """
    target, rules = Target(params, tx), member_rules(tx)
    check_kinds("Keras", target.kinds.values(), KINDS)
    if optax.ScaleByLionState not in target.kinds.values():
        check_twin("Keras", rules)
    check_real(params)
    found = _by_name(variables)
    steps = _iterations(found)
    layout = layouts(target.shapes, names, separator="/")
    maximum = is_maximum(rules) or (not rules and any(key.endswith("_norm") for key in found))
    keys = {
        (path, slot): f"{layout[path].name.replace('/', '_')}_{_slot(slot, maximum)}"
        for path, slot in target.kinds
    }
    if (product := found.pop(U_PRODUCT, None)) is not None:
        check_momentum_product("variables", float(as_numpy(product)), rules, steps)
    slots = matched_slots("variables", found, keys, layout, target.shapes)
    return target.filled(Moments(slots, dict.fromkeys((path for path, _ in keys), steps)))


def _slot(slot: str, maximum: bool) -> str:
    """Keras's name of a slot."""
    nu = "norm" if maximum else "velocity"
    return {"mu": "momentum", "nu": nu, "nu_max": "velocity_hat"}[slot]


def _by_name(variables: PyTree) -> Named:
    """The variables by their path without the optimizer's name in front; no learning rate."""
    if not isinstance(variables, Mapping):
        if not isinstance(variables, Iterable):
            raise ValueError(
                f"variables must be those of an optimizer, got {type(variables).__name__}: write"
                f" optimizer.variables."
            )
        variables = list(variables)
        nameless = [type(v).__name__ for v in variables if not hasattr(v, "path")]
        if nameless:
            raise ValueError(
                f"variables must have paths, got {nameless[0]}: write optimizer.variables, or"
                f" {{v.path: v for v in optimizer.variables}}."
            )
        variables = {v.path: v for v in variables}
    found = {path.rpartition("/")[2]: v for path, v in variables.items()}
    found.pop("learning_rate", None)
    # Nadam's product of momenta has no name of its own, and no optimizer's in front.
    nameless = [path for path in variables if _is_numbered(path)]
    if len(nameless) == 1 and not np.ndim(as_numpy(variables[nameless[0]])):
        found[U_PRODUCT] = found.pop(nameless[0])
    return found


def _is_numbered(path: str) -> bool:
    """`variable`, `variable_1`, ...: what Keras calls what nobody has named."""
    name, _, number = path.partition("_")
    return name == "variable" and (not number or number.isdigit())


def _iterations(found: Named) -> int:
    return whole_steps("the 'iteration' in variables", as_numpy(found.pop("iteration", 0)))
