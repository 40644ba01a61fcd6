"""States of `torch.optim.Adam`, `AdamW`, `NAdam`, `RAdam` and `Adamax`, from and to PyTorch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optax

from adam_jax._types import AnyTransformation, Named, Params, State
from adam_jax.convert.entries import as_theirs, complain, matched, whole_steps
from adam_jax.convert.moments import Target, dense, members, read
from adam_jax.convert.names import Names, layouts, listed
from adam_jax.convert.twins import (
    check_momentum_product,
    is_maximum,
    momentum_product,
    twin_rules,
)
from adam_jax.engine.trees import leaf_paths
from adam_jax.rules.base import Rule

KINDS = (optax.ScaleByAdamState, optax.ScaleByAmsgradState)
SCALARS = ("step", "mu_product")


def from_torch(
    state_dict: Mapping[str, Any],
    params: Params,
    tx: AnyTransformation,
    *,
    names: Names | None = None,
    order: Sequence[str] | None = None,
) -> State:
    """A state of `tx` that continues the run of a PyTorch optimizer.

    Args:
      state_dict: `optimizer.state_dict()` of Adam, AdamW, NAdam, RAdam or Adamax, with or without
        amsgrad, or one loaded by `torch.load(file, weights_only=True)`. It holds tensors of any
        device and dtype, or NumPy arrays. Steps are capped at 2³¹-1, where counts here stop.
      params: the parameters in JAX, such as `params_from_named` makes of the model's.
      tx: the transformation that continues: a member, or transformations around it.
        docs/migrating/pytorch.md lists the arguments that make the two equal; `amsgrad` needs
        `max_before_correction=True`, `nadam` `momentum_decay=`.
      names: maps the path of a leaf, `layers/0/kernel`, to its name in PyTorch, or to a `Layout` if
        its array has another layout: see `linear` and `conv`. A leaf that is not in `names` has its
        path with dots, `layers.0.kernel`.
      order: the names in the order in which the optimizer got the parameters, group after group:
        `[name for name, _ in model.named_parameters()]` for `model.parameters()`. Not needed if it
        got `model.named_parameters()`, whose names are in `state_dict`.

    Returns:
      The state, with the moments as `tx` stores them. Every count of optimizer steps, including
      those of schedules, is PyTorch's step. Anything else in it (such as an average of the
      parameters) restarts.

    Raises:
      ValueError: missing, extra or misshapen entries, listed; counts that differ within one member
        (PyTorch has one per parameter); complex parameters, for which PyTorch squares real and
        imaginary parts separately; a `tx` with other slots.
    """
    target = Target(params, tx)
    rules = twin_rules("PyTorch", params, tx, target.kinds.values(), KINDS)
    theirs = entries_of(state_dict, order)
    maximum = is_maximum(rules, any("exp_inf" in entry for entry in theirs.values()))
    return resumed(target, rules, theirs, names, _slots(maximum))


def to_torch(
    state: State,
    params: Params,
    tx: AnyTransformation,
    state_dict: Mapping[str, Any],
    *,
    names: Names | None = None,
    order: Sequence[str] | None = None,
) -> Named:
    """A `state_dict` with which a PyTorch optimizer continues the run of `state`.

    Args:
      state: of `tx`, of transformations around it, or of its twin in Optax.
      params: the parameters.
      tx: the transformation, or the member in it; it determines what nu is.
      state_dict: `optimizer.state_dict()` of the optimizer that continues, new or not. Its
        `param_groups`, and thus the hyperparameters, stay unchanged.
      names: as in `from_torch`.
      order: as in `from_torch`.

    Returns:
      `state_dict` with NumPy arrays in `state`, float32 or wider. PyTorch needs tensors:
      `new["state"] = jax.tree.map(torch.as_tensor, new["state"])`, then
      `optimizer.load_state_dict(new)`.

    Raises:
      ValueError: parameters that the other side lacks, listed; anything that `from_torch` rejects.
    """
    slots, counts = read(state, params)
    rules = twin_rules("PyTorch", params, tx, map(type, members(state)), KINDS)
    order = order_of(state_dict, order)
    layout = layouts(leaf_paths(params), names)
    paths = {layout[path].name: path for path, _ in slots}
    complain("params", set(order) - {x.name for x in layout.values()}, paths.keys() - set(order))
    name_of, new = _slots(is_maximum(rules, False)), {}
    for index, name in enumerate(order):
        if name not in paths:
            continue
        path = paths[name]
        steps = counts[path]
        new[index] = {"step": np.array(steps, np.float32)}
        if (product := momentum_product(rules, steps)) is not None:
            new[index]["mu_product"] = np.array(product, np.float32)
        for slot, theirs in name_of.items():
            if (path, slot) in slots:
                x = dense(slots[path, slot])
                new[index][theirs] = as_theirs(layout[path], path, x)
    return {**state_dict, "state": new}


def _slots(maximum: bool) -> dict[str, str]:
    """PyTorch's name of each slot."""
    nu = "exp_inf" if maximum else "exp_avg_sq"
    return {"mu": "exp_avg", "nu": nu, "nu_max": "max_exp_avg_sq"}


def order_of(state_dict: Mapping[str, Any], order: Sequence[str] | None) -> list[str]:
    """The name of each of PyTorch's indices."""
    is_mapping = isinstance(state_dict, Mapping)
    if not is_mapping or not {"state", "param_groups"} <= state_dict.keys():
        got = listed(map(str, state_dict)) or "nothing" if is_mapping else type(state_dict).__name__
        raise ValueError(
            f"state_dict must be that of an optimizer, with 'state' and 'param_groups', got"
            f" {got}: write optimizer.state_dict()."
        )
    groups = state_dict["param_groups"]
    count = sum(len(group["params"]) for group in groups)
    if order is None:
        order = [name for group in groups for name in group.get("param_names", ())]
        if len(order) != count:
            raise ValueError(
                "order must be given, since state_dict has numbers and no names: write"
                " [name for name, _ in model.named_parameters()]."
            )
    if len(order) != count or len(set(order)) != count:
        raise ValueError(
            f"order must have a name for each of the {count} parameters of state_dict, got"
            f" {len(order)}: write [name for name, _ in model.named_parameters()]."
        )
    if [index for group in groups for index in group["params"]] != list(range(count)):
        raise ValueError("state_dict must number its parameters from 0, as state_dict() does.")
    return list(order)


def resumed(
    target: Target,
    rules: list[Rule],
    entries: Mapping[str, Mapping[str, Any]],
    names: Names | None,
    name_of: Mapping[str, str],
) -> State:
    """The state that continues from entries of a state_dict; `name_of` has their names of slots."""
    found = {
        f"{name}/{slot}": x
        for name, entry in entries.items()
        for slot, x in entry.items()
        if slot not in SCALARS
    }
    layout = layouts(target.shapes, names)
    wanted = {
        (path, slot): (f"{layout[path].name}/{name_of[slot]}", layout[path], target.shapes[path])
        for path, slot in target.kinds
    }
    slots = matched("state_dict", found, wanted)
    steps = {}
    for path in dict.fromkeys(path for path, _ in slots):
        entry = entries[layout[path].name]
        steps[path] = whole_steps(f"the step of {path!r}", entry.get("step", 0))
        if "mu_product" in entry:
            check_momentum_product("state_dict", entry["mu_product"], rules, steps[path])
    return target.filled(slots, steps)


def entries_of(
    state_dict: Mapping[str, Any], order: Sequence[str] | None
) -> dict[str, Mapping[str, Any]]:
    """The entries of a state_dict, by the names of their parameters.

    Raises:
      ValueError: there are no entries, or some without a parameter.
    """
    order = order_of(state_dict, order)
    entries = state_dict["state"]
    if not entries:
        raise ValueError(
            "state_dict must be that of an optimizer that has taken a step, got one whose 'state'"
            " is empty: there is nothing to convert, write state = tx.init(params)."
        )
    unknown = [str(key) for key in entries if key not in range(len(order))]
    complain("state_dict", (), unknown)
    return {order[index]: entry for index, entry in entries.items()}
