"""States of Keras 3's optimizers, from their variables."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import optax

from adam_jax._types import AnyTransformation, Named, Params, PyTree, State
from adam_jax.convert.entries import as_numpy, matched, whole_steps
from adam_jax.convert.moments import Target
from adam_jax.convert.names import Names, layouts
from adam_jax.convert.twins import check_momentum_product, is_maximum, twin_rules

KINDS = (optax.ScaleByAdamState, optax.ScaleByAmsgradState, optax.ScaleByLionState)
U_PRODUCT = "u_product"


def from_keras(
    variables: Mapping[str, Any] | Iterable[Any],
    params: Params,
    tx: AnyTransformation,
    *,
    names: Names | None = None,
) -> State:
    """A state of `tx` that continues the run of a Keras 3 optimizer.

    Args:
      variables: `optimizer.variables` of Adam, AdamW, Nadam, Adamax, Lion or Lamb, with or without
        amsgrad; or `{v.path: v for v in optimizer.variables}`, as stored in an .npz file. They are
        found by path, `adam/sequential_dense_kernel_momentum`; the learning rate among them is not
        read.
      params: the parameters in JAX, such as `params_from_named` makes of the model's.
      tx: the transformation that continues. docs/migrating/keras.md lists the arguments that make
        the two equal; `amsgrad` needs `max_before_correction=True`, `nadam` `momentum_decay=1.0`.
      names: maps the path of a leaf, `dense/kernel`, to the path of its variable in Keras, as in
        `model.trainable_variables`: `sequential/dense/kernel`. A leaf that is not in `names` has
        the same path there. Kernels have the layout of Flax.

    Returns:
      The state, as in `from_torch`; its counts are the optimizer's `iterations`.

    Raises:
      ValueError: missing, extra or misshapen variables, listed (an average of the weights and a
        gradient accumulator are extra: convert without them, and not in the middle of an
        accumulation); a `tx` with other slots.
    """
    target = Target(params, tx)
    rules = twin_rules("Keras", params, tx, target.kinds.values(), KINDS)
    found = _by_name(variables)
    steps = whole_steps("the 'iteration' in variables", found.pop("iteration", 0))
    if (product := found.pop(U_PRODUCT, None)) is not None:
        check_momentum_product("variables", product, rules, steps)
    maximum = is_maximum(rules, any(name.endswith("_norm") for name in found))
    nu = "norm" if maximum else "velocity"
    name_of = {"mu": "momentum", "nu": nu, "nu_max": "velocity_hat"}
    layout = layouts(target.shapes, names, separator="/")
    wanted = {
        (path, slot): (
            f"{layout[path].name.replace('/', '_')}_{name_of[slot]}",
            layout[path],
            target.shapes[path],
        )
        for path, slot in target.kinds
    }
    slots = matched("variables", found, wanted)
    return target.filled(slots, dict.fromkeys(target.shapes, steps))


def _by_name(variables: PyTree) -> Named:
    """The variables by their path without the optimizer's name, except the learning rate."""
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
    # Nadam's product of momenta has neither a name nor the optimizer's prefix: Keras calls unnamed
    # variables `variable`, `variable_1`, ...
    nameless = [path for path in variables if re.fullmatch(r"variable(_\d+)?", path)]
    if len(nameless) == 1 and not np.ndim(as_numpy(variables[nameless[0]])):
        found[U_PRODUCT] = found.pop(nameless[0])
    return found
