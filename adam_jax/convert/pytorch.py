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
    """A state of `tx` that goes on where an optimizer of PyTorch stopped.

    Args:
      state_dict: `optimizer.state_dict()` of Adam, AdamW, NAdam, RAdam or Adamax, with or without
        amsgrad, or what `torch.load(file, weights_only=True)` made of one. Tensors of any device
        and dtype, or NumPy arrays. Steps past 2³¹-1 count as so many, where counts here stop.
      params: our parameters, such as `params_from_named` makes of those of the model.
      tx: what goes on: a member, or transformations around it. docs/migrating/pytorch.md says
        which arguments make the two equal; `amsgrad` needs `max_before_correction=True`, `nadam`
        `momentum_decay=`.
      names: by the path of a leaf, `layers/0/kernel`, its name in PyTorch, or a `Layout` where its
        array lies otherwise: see `linear` and `conv`. A leaf that is not named has its path with
        dots, `layers.0.kernel`.
      order: the names in the order in which the optimizer was given the parameters, group after
        group: `[name for name, _ in model.named_parameters()]` for `model.parameters()`. Not needed
        where it was given `model.named_parameters()`, whose names are in `state_dict`.

    Returns:
      The state, with the moments as `tx` stores them, and every count of optimizer steps, those of
      schedules too, at PyTorch's step. What is in it besides (an average of the parameters, say)
      begins anew.

    Raises:
      ValueError: entries that are missing, too many or misshapen, listed; counts that differ
        within one member (PyTorch has one per parameter); complex parameters, whose squares
        PyTorch keeps apart; a `tx` that keeps something else.
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
    """A `state_dict` with which an optimizer of PyTorch goes on where `state` stopped.

    Args:
      state: of `tx`, or of transformations around it; or Optax's twin of it.
      params: the parameters.
      tx: the transformation, or the member in it: it says what nu is.
      state_dict: `optimizer.state_dict()` of the optimizer that is to go on, new or not, whose
        `param_groups` are kept as they are: hyperparameters are PyTorch's own affair.
      names: as in `from_torch`.
      order: as in `from_torch`.

    Returns:
      `state_dict` with `state` of NumPy arrays, float32 or wider. PyTorch wants tensors:
      `new["state"] = jax.tree.map(torch.as_tensor, new["state"])`, then
      `optimizer.load_state_dict(new)`.

    Raises:
      ValueError: a parameter that the other side does not have, listed; what `from_torch` refuses.
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
    """The state that goes on with entries of a state_dict; `name_of` has their word for a slot."""
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
      ValueError: there are none, or some without a parameter.
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
