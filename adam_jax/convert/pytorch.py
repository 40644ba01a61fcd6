"""States of PyTorch's optimizers, which have twins in this package.

A twin keeps the same slots, which the rules tell and the state does not: AdaMax and Adam have the
same fields. Rules are not visible through the closures of Optax (`optax.chain`, `optax.masked`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adam_jax._types import AnyTransformation, Leaf, Named, Params, State
from adam_jax.convert.moments import Moments, dense, moments_of, read
from adam_jax.convert.names import (
    Names,
    as_numpy,
    as_theirs,
    by_path,
    complain,
    layouts,
    listed,
    matched,
)
from adam_jax.core.trees import leaf_paths
from adam_jax.family.adamax import DecayingMax
from adam_jax.family.amsgrad import RunningMax
from adam_jax.formats.policy import stored_format
from adam_jax.hyperparams import expanded
from adam_jax.rules.adam import Ema
from adam_jax.rules.base import rules_in


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
        its array has another layout: see `layer`. A leaf that is not in `names` has its
        path with dots, `layers.0.kernel`.
      order: the names in the order in which the optimizer got the parameters, group after group:
        `[name for name, _ in model.named_parameters()]` for `model.parameters()`. Not needed if it
        got `model.named_parameters()`, whose names are in `state_dict`.

    Returns:
      The state, with the moments as `tx` stores them. Every count of optimizer steps, including
      those of schedules, is PyTorch's step. Anything else in it (such as an average of the
      parameters) restarts. A parameter without an entry, since it never had a gradient, has the
      moments of `init`, and the count of those beside it.

    Raises:
      ValueError: missing, extra or misshapen entries, listed; counts that differ within one member
        (PyTorch has one per parameter); complex parameters, for which PyTorch squares real and
        imaginary parts separately; a `tx` with other slots.
    """
    target = moments_of(tx, params)
    rules = _twin_rules(tx, target)
    entries, known = _entries_of(state_dict, order), set(_order_of(state_dict, order))
    name_of = _slot_names(rules, any("exp_inf" in entry for entry in entries.values()))
    layout = layouts(leaf_paths(params), names)
    pairs = ((name, key, x) for name, entry in entries.items() for key, x in entry.items())
    found = {f"{name}/{key}": x for name, key, x in pairs if key not in ("step", "mu_product")}
    wanted = {}
    for (path, slot), x in target.slots.items():
        if (name := layout[path].name) in entries or name not in known:
            wanted[path, slot] = f"{name}/{name_of[slot]}", layout[path], stored_format(x).shape(x)
    slots = matched("state_dict", found, wanted)
    steps = {}
    for path, _ in wanted:
        entry = entries[layout[path].name]
        steps[path] = _whole_steps(path, entry.get("step", 0))
        if "mu_product" in entry and rules:
            _check_momentum_product(entry["mu_product"], rules, steps[path])
    return target.filled(slots, steps)


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
    given = read("state", state, params)
    rules = _twin_rules(tx, given)
    order = _order_of(state_dict, order)
    layout = layouts(leaf_paths(params), names)
    mine = {layout[path].name for path in given.counts}
    complain("params", set(order) - {x.name for x in layout.values()}, mine - set(order))
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    name_of, new = _slot_names(rules), {}
    for path, steps in given.counts.items():
        entry = {"step": np.array(steps, np.float32)}
        if (product := _momentum_product(rules, steps)) is not None:
            entry["mu_product"] = np.array(product, np.float32)
        for slot, theirs in name_of.items():
            if (path, slot) in given.slots:
                entry[theirs] = as_theirs(layout[path], path, dense(given.slots[path, slot]))
        new[keys[order.index(layout[path].name)]] = entry
    return {**state_dict, "state": dict(sorted(new.items()))}


def _twin_rules(tx: AnyTransformation, moments: Moments) -> list[Any]:
    """The rules with slots in a transformation, without modifiers; empty if they are not visible.

    Raises:
      ValueError: not all states have an equivalent in PyTorch; a second moment means something else
        there; a parameter is complex.
    """
    if wrong := sorted(moments.kinds - {"ScaleByAdamState", "ScaleByAmsgradState"}):
        raise ValueError(
            f"tx must have a twin in PyTorch, whose states are like ScaleByAdamState and"
            f" ScaleByAmsgradState, got {', '.join(wrong)}."
        )
    rules = [_inside(rule) for rule in rules_in(expanded(tx)) if rule.slots]
    for rule in rules:
        second = getattr(rule, "second", None)  # An irregular rule has none.
        if isinstance(second, RunningMax) and second.ema.bias_correction:
            raise ValueError(
                "tx must be amsgrad(..., max_before_correction=True), got one whose maximum is"
                " that of the corrected nu, as in Optax: PyTorch keeps the uncorrected one."
            )
        if not isinstance(second, Ema | RunningMax | DecayingMax):
            name = type(rule if second is None else second).__name__
            raise ValueError(
                f"tx must be adam, amsgrad, nadam, radam, adamax, lamb or similar, got the rule"
                f" {name}, which PyTorch does not have."
            )
    if complex_ones := [path for path, p in by_path(moments.params).items() if np.iscomplexobj(p)]:
        raise ValueError(
            f"params must be real to be converted, got complex {listed(complex_ones)}: PyTorch"
            f" keeps separate squares of real and imaginary parts, this package their sum."
        )
    return rules


def _inside(rule: Any) -> Any:
    """The rule inside modifiers."""
    while hasattr(rule, "inner"):
        rule = rule.inner
    return rule


def _slot_names(rules: list[Any], has_maximum: bool = False) -> dict[str, str]:
    """PyTorch's name of each slot.

    In AdaMax nu is the largest gradient, which has another name: the rules say so, or, where none
    are visible, `has_maximum`.
    """
    if rules:
        has_maximum = any(isinstance(rule.second, DecayingMax) for rule in rules)
    nu = "exp_inf" if has_maximum else "exp_avg_sq"
    return {"mu": "exp_avg", "nu": nu, "nu_max": "max_exp_avg_sq"}


def _momentum_product(rules: list[Any], steps: int) -> float | None:
    """The product of NAdam's momenta after `steps`, which PyTorch keeps; None for other members.

    Dozat 2016, section 3.1: the momentum of step t is b·(1 - 0.96^(tψ) / 2).
    """
    first = next((rule.first for rule in rules if hasattr(rule.first, "momentum_decay")), None)
    if first is None:
        return None
    if first.ema.rate.complement is None:
        raise ValueError("tx must be nadam with a number for b1: PyTorch has no schedules of it.")
    # After a million steps it is 0 or constant.
    powers = np.arange(1, min(steps, 10**6) + 1, dtype=np.float64) * float(first.momentum_decay)
    b = 1.0 - float(first.ema.rate.complement)
    return float(np.prod(b * (1 - 0.5 * 0.96**powers)))


def _check_momentum_product(found: Leaf, rules: list[Any], steps: int) -> None:
    """Checks that a run of NAdam had the same momenta as here."""
    found, expected = float(as_numpy(found)), _momentum_product(rules, steps)
    # A float32 product, rounded at each step and 0 after a thousand.
    if expected is None or not np.isclose(found, expected, rtol=1e-3, atol=1e-30):
        raise ValueError(
            f"tx must be nadam with b1 and momentum_decay of the run in state_dict, 0.004 by"
            f" default: after {steps} steps the product of its momenta is {found:.6g}, here it is"
            f" {expected}."
        )


def _order_of(state_dict: Mapping[str, Any], order: Sequence[str] | None) -> list[str]:
    """The name of each parameter, in PyTorch's order."""
    is_mapping = isinstance(state_dict, Mapping)
    if not is_mapping or not {"state", "param_groups"} <= state_dict.keys():
        got = listed(map(str, state_dict)) or "nothing" if is_mapping else type(state_dict).__name__
        raise ValueError(
            f"state_dict must be that of an optimizer, with 'state' and 'param_groups', got"
            f" {got}: write optimizer.state_dict()."
        )
    groups = state_dict["param_groups"]
    numbers = [index for group in groups for index in group["params"]]
    named = all(isinstance(name, str) for name in numbers)  # By torch.distributed, Accelerate.
    if order is None:
        names = (group["params"] if named else group.get("param_names", ()) for group in groups)
        order = [name for its in names for name in its]
    if len(order) != len(numbers) or len(set(order)) != len(numbers):
        raise ValueError(
            f"order must be given, with a name for each of the {len(numbers)} parameters of"
            f" state_dict, got {len(order)}: write"
            f" [name for name, _ in model.named_parameters()]."
        )
    if not named and numbers != list(range(len(numbers))):
        raise ValueError("state_dict must number its parameters from 0, as state_dict() does.")
    return list(order)


def _entries_of(
    state_dict: Mapping[str, Any], order: Sequence[str] | None
) -> dict[str, Mapping[str, Any]]:
    """The entries of a state_dict, by the names of their parameters."""
    order = _order_of(state_dict, order)
    entries = state_dict["state"]
    if not entries:
        raise ValueError(
            "state_dict must be that of an optimizer that has taken a step, got one whose 'state'"
            " is empty: there is nothing to convert, write state = tx.init(params)."
        )
    names = dict(enumerate(order)) | dict(zip(order, order, strict=True))
    complain("state_dict", (), [str(key) for key in entries if key not in names])
    return {names[key]: entry for key, entry in entries.items()}


def _whole_steps(path: str, steps: Leaf) -> int:
    """Steps taken, at most the largest int32, where the counts of this package stop."""
    steps = as_numpy(steps)
    valid = steps.ndim == 0 and steps.dtype.kind in "iuf" and np.isfinite(steps)
    if not valid or steps < 1 or steps != np.floor(steps):
        raise ValueError(
            f"the step of {path!r} must be a whole number of steps taken, 1 or more, got {steps}:"
            f" pass the state of an optimizer that has taken a step."
        )
    return min(int(steps), np.iinfo(np.int32).max)
