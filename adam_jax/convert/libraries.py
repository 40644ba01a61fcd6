"""States of the optimizers of PyTorch, bitsandbytes and Keras, which have twins in this package.

A twin keeps the same slots, which the rules tell and the state does not: AdaMax and Adam have the
same fields. Rules are not visible through the closures of Optax (`optax.chain`, `optax.masked`).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from adam_jax._types import AnyTransformation, Leaf, Named, Params, PyTree, State
from adam_jax.convert.moments import Moments, dense, moments_of, read
from adam_jax.convert.names import (
    Layout,
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
from adam_jax.rules.base import Rule, rules_in

IN_PYTORCH = ("ScaleByAdamState", "ScaleByAmsgradState")
IN_KERAS = (*IN_PYTORCH, "ScaleByLionState")
IN_BITSANDBYTES = ("ScaleByAdamState", "ScaleByLionState", "ScaleByAdemamixState")

BLOCKS = (256, 2048)
"""Elements of the flattened array that share a scale in bitsandbytes: now, and before 0.44."""


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
    target = moments_of(tx, params)
    rules = _twin_rules("PyTorch", tx, target, IN_PYTORCH)
    theirs = _entries_of(state_dict, order)
    maximum = _is_maximum(rules, any("exp_inf" in entry for entry in theirs.values()))
    return _continued(target, rules, theirs, names, _in_pytorch(maximum))


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
    rules = _twin_rules("PyTorch", tx, given, IN_PYTORCH)
    order = _order_of(state_dict, order)
    layout = layouts(leaf_paths(params), names)
    mine = {layout[path].name for path in given.counts}
    complain("params", set(order) - {x.name for x in layout.values()}, mine - set(order))
    name_of, new = _in_pytorch(_is_maximum(rules, False)), {}
    for path, steps in given.counts.items():
        entry = {"step": np.array(steps, np.float32)}
        if (product := _momentum_product(rules, steps)) is not None:
            entry["mu_product"] = np.array(product, np.float32)
        for slot, theirs in name_of.items():
            if (path, slot) in given.slots:
                entry[theirs] = as_theirs(layout[path], path, dense(given.slots[path, slot]))
        new[order.index(layout[path].name)] = entry
    return {**state_dict, "state": dict(sorted(new.items()))}


def from_bitsandbytes(
    state_dict: Mapping[str, Any],
    params: Params,
    tx: AnyTransformation,
    *,
    names: Names | None = None,
    order: Sequence[str] | None = None,
) -> State:
    """A state of `tx` that continues the run of a bitsandbytes optimizer.

    Args:
      state_dict: `optimizer.state_dict()` of Adam, AdamW, Lamb, Lion or AdEMAMix, of 8 or 32 bits.
      params: the parameters in JAX.
      tx: the transformation that continues. 8-bit moments are decoded to float32 and stored as `tx`
        stores them: lossless in float32, rounded again in `jnp.int8`. Weight decay is decoupled in
        bitsandbytes, in Adam too: write `adamw`.
      names: as in `from_torch`.
      order: as in `from_torch`.

    Returns:
      The state, as in `from_torch`.

    Raises:
      ValueError: as in `from_torch`; also for codes without a map, or with scales that fit neither
        blocks of 256 nor of 2048.
    """
    target = moments_of(tx, params)
    rules = _twin_rules("bitsandbytes", tx, target, IN_BITSANDBYTES)
    places: dict[str, Any] = {"mu": (1, ...), "nu": (2, ...)}
    if "ScaleByAdemamixState" in target.kinds:  # Both averages are stacked in one array.
        places = {"m1": (1, 0), "m2": (1, 1), "nu": (2, ...)}
    entries = {}
    for name, entry in _entries_of(state_dict, order).items():
        # Older versions lack this key, under which `state_dict()` has everything but the step.
        parts = {**entry, **entry.get("__bnb_optimizer_quant_state__", {})}
        entries[name] = {"step": entry.get("step", 0)}
        for slot, (number, part) in places.items():
            if f"state{number}" in parts:
                entries[name][slot] = _decoded(f"{name}/{slot}", parts, number, part)
    return _continued(target, rules, entries, names, {slot: slot for slot in places})


def _decoded(key: str, entry: Named, number: int, part: Any) -> np.ndarray:
    """The decoded array. A code indexes the map, whose numbers are in units of the scale."""
    state = as_numpy(entry[f"state{number}"])[part]
    if state.dtype != np.uint8:
        return state
    absent = [name for name in ("absmax", "qmap") if f"{name}{number}" not in entry]
    if absent:
        raise ValueError(f"{key!r} must have scales and a map for its codes, got no {absent[0]}.")
    scale = as_numpy(entry[f"absmax{number}"])[part].astype(np.float32)
    values = as_numpy(entry[f"qmap{number}"]).astype(np.float32)
    block = next((b for b in BLOCKS if scale.shape == (math.ceil(state.size / b),)), None)
    if block is None or values.shape != (256,):
        raise ValueError(
            f"{key!r} must have a scale for each block of 256 elements (2048 before bitsandbytes"
            f" 0.44) and a map of 256 numbers, got {scale.shape} and {values.shape} for"
            f" {state.size} elements: {listed(map(str, BLOCKS))}."
        )
    return values[state] * np.repeat(scale, block)[: state.size].reshape(state.shape)


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
    target = moments_of(tx, params)
    rules = _twin_rules("Keras", tx, target, IN_KERAS)
    found = _by_name(variables)
    steps = _whole_steps("the 'iteration' in variables", found.pop("iteration", 0))
    if (product := found.pop("u_product", None)) is not None:
        _check_momentum_product("variables", product, rules, steps)
    maximum = _is_maximum(rules, any(name.endswith("_norm") for name in found))
    nu = "norm" if maximum else "velocity"
    name_of = {"mu": "momentum", "nu": nu, "nu_max": "velocity_hat"}
    layout = layouts(leaf_paths(params), names, separator="/")

    def their_name(name: str, slot: str) -> str:
        return f"{name.replace('/', '_')}_{name_of[slot]}"

    slots = _matched("variables", found, target, layout, their_name)
    return target.filled(slots, dict.fromkeys(layout, steps))


def _by_name(variables: PyTree) -> Named:
    """The variables by their path without the optimizer's name, except the learning rate."""
    if not isinstance(variables, Mapping):
        given = list(variables) if isinstance(variables, Iterable) else [variables]
        nameless = [type(v).__name__ for v in given if not hasattr(v, "path")]
        if nameless:
            raise ValueError(
                f"variables must be those of an optimizer, or {{v.path: v for v in"
                f" optimizer.variables}}, got {nameless[0]}: write optimizer.variables."
            )
        variables = {v.path: v for v in given}
    found = {path.rpartition("/")[2]: v for path, v in variables.items()}
    found.pop("learning_rate", None)
    # Nadam's product of momenta has neither a name nor the optimizer's prefix: Keras calls unnamed
    # variables `variable`, `variable_1`, ...
    nameless = [path for path in variables if re.fullmatch(r"variable(_\d+)?", path)]
    if len(nameless) == 1 and not np.ndim(as_numpy(variables[nameless[0]])):
        found["u_product"] = found.pop(nameless[0])
    return found


def _twin_rules(
    library: str, tx: AnyTransformation, moments: Moments, allowed: tuple[str, ...]
) -> list[Rule]:
    """The rules with slots in a transformation; empty if they are not visible.

    Raises:
      ValueError: not all states are `allowed`, those with an equivalent in the library; a second
        moment means something else there; a parameter is complex.
    """
    if wrong := sorted(moments.kinds - {*allowed}):
        raise ValueError(
            f"tx must have a twin in {library}, whose states are like {', '.join(allowed)}, got"
            f" {', '.join(wrong)}."
        )
    rules = [rule for rule in rules_in(expanded(tx)) if rule.slots]
    for rule in rules:
        second = _moment(rule, "second")
        if isinstance(second, RunningMax) and second.ema.bias_correction:
            raise ValueError(
                f"tx must be amsgrad(..., max_before_correction=True), got one whose maximum is"
                f" that of the corrected nu, as in Optax: {library} keeps the uncorrected one."
            )
        like_adam = {"mu", "nu"} <= {slot.name for slot in rule.slots}
        if like_adam and not isinstance(second, Ema | RunningMax | DecayingMax):
            name = type(rule if second is None else second).__name__
            raise ValueError(
                f"tx must be adam, amsgrad, nadam, radam, adamax, lamb or similar, got the rule"
                f" {name}, which {library} does not have."
            )
    if complex_ones := [path for path, p in by_path(moments.params).items() if np.iscomplexobj(p)]:
        raise ValueError(
            f"params must be real to be converted, got complex {listed(complex_ones)}: other"
            f" libraries keep separate squares of real and imaginary parts, this one their sum."
        )
    return rules


def _is_maximum(rules: list[Rule], unseen: bool) -> bool:
    """Whether nu is the largest gradient, as in AdaMax; `unseen` if there are no rules."""
    if not rules:
        return unseen
    return any(isinstance(_moment(rule, "second"), DecayingMax) for rule in rules)


def _moment(rule: Any, name: str) -> Any:
    """The first or second moment of a rule, inside its modifiers; None for an irregular rule."""
    while hasattr(rule, "inner"):
        rule = rule.inner
    return getattr(rule, name, None)


def _momentum_product(rules: list[Rule], steps: int) -> float | None:
    """The product of NAdam's momenta after `steps`, which other libraries keep; None for others.

    Dozat 2016, section 3.1: the momentum of step t is b·(1 - 0.96^(tψ) / 2).
    """
    firsts = [_moment(rule, "first") for rule in rules]
    scheduled = [x for x in firsts if hasattr(x, "momentum_decay")]
    if not scheduled:
        return None
    # After a million steps it is 0 or constant.
    powers = np.arange(1, min(steps, 10**6) + 1, dtype=np.float64)
    powers *= float(scheduled[0].momentum_decay)
    b = 1.0 - float(scheduled[0].ema.rate.complement)
    return float(np.prod(b * (1 - 0.5 * 0.96**powers)))


def _check_momentum_product(argument: str, found: Leaf, rules: list[Rule], steps: int) -> None:
    """Checks that a run of NAdam had the same momenta as here."""
    if not rules:
        return
    expected = _momentum_product(rules, steps)
    if expected is None:
        raise ValueError(
            f"tx must be nadam(..., momentum_decay=...) to continue {argument}, which has the"
            f" product of NAdam's momenta: PyTorch's momentum_decay is 0.004, Keras's 1.0."
        )
    found = float(as_numpy(found))
    # A float32 product, rounded at each step and 0 after a thousand.
    if not np.isclose(found, expected, rtol=1e-3, atol=1e-30):
        raise ValueError(
            f"tx must have b1 and momentum_decay of the run in {argument}: after {steps} steps the"
            f" product of its momenta is {found:.6g}, and would be {expected:.6g} here."
        )


def _in_pytorch(maximum: bool) -> dict[str, str]:
    """PyTorch's name of each slot."""
    nu = "exp_inf" if maximum else "exp_avg_sq"
    return {"mu": "exp_avg", "nu": nu, "nu_max": "max_exp_avg_sq"}


def _order_of(state_dict: Mapping[str, Any], order: Sequence[str] | None) -> list[str]:
    """The name of each of PyTorch's indices."""
    is_mapping = isinstance(state_dict, Mapping)
    if not is_mapping or not {"state", "param_groups"} <= state_dict.keys():
        got = listed(map(str, state_dict)) or "nothing" if is_mapping else type(state_dict).__name__
        raise ValueError(
            f"state_dict must be that of an optimizer, with 'state' and 'param_groups', got"
            f" {got}: write optimizer.state_dict()."
        )
    groups = state_dict["param_groups"]
    numbers = [index for group in groups for index in group["params"]]
    if order is None:
        order = [name for group in groups for name in group.get("param_names", ())]
    if len(order) != len(numbers) or len(set(order)) != len(numbers):
        raise ValueError(
            f"order must be given, with a name for each of the {len(numbers)} parameters of"
            f" state_dict, got {len(order)}: write"
            f" [name for name, _ in model.named_parameters()]."
        )
    if numbers != list(range(len(numbers))):
        raise ValueError("state_dict must number its parameters from 0, as state_dict() does.")
    return list(order)


def _continued(
    target: Moments,
    rules: list[Rule],
    entries: Mapping[str, Mapping[str, Any]],
    names: Names | None,
    name_of: Mapping[str, str],
) -> State:
    """The state that continues from entries of a state_dict; `name_of` has their names of slots."""
    pairs = ((name, slot, x) for name, entry in entries.items() for slot, x in entry.items())
    found = {f"{n}/{slot}": x for n, slot, x in pairs if slot not in ("step", "mu_product")}
    layout = layouts(leaf_paths(target.params), names)
    slots = _matched("state_dict", found, target, layout, lambda n, s: f"{n}/{name_of[s]}")
    steps = {}
    for path in dict.fromkeys(path for path, _ in slots):
        entry = entries[layout[path].name]
        steps[path] = _whole_steps(f"the step of {path!r}", entry.get("step", 0))
        if "mu_product" in entry:
            _check_momentum_product("state_dict", entry["mu_product"], rules, steps[path])
    return target.filled(slots, steps)


def _matched(
    argument: str,
    found: Mapping[str, Any],
    target: Moments,
    layout: Mapping[str, Layout],
    name_of: Callable[[str, str], str],
) -> dict[Any, np.ndarray]:
    """The arrays for the moments of the target; `name_of` a parameter and our slot is theirs."""
    wanted = {}
    for (path, slot), x in target.slots.items():
        shape = stored_format(x).shape(x)
        wanted[path, slot] = name_of(layout[path].name, slot), layout[path], shape
    return matched(argument, found, wanted)


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
    unknown = [str(key) for key in entries if key not in range(len(order))]
    complain("state_dict", (), unknown)
    return {order[index]: entry for index, entry in entries.items()}


def _whole_steps(argument: str, steps: Leaf) -> int:
    """Steps taken, at most the largest int32, where the counts of this package stop."""
    steps = as_numpy(steps)
    valid = steps.ndim == 0 and steps.dtype.kind in "iuf" and np.isfinite(steps)
    if not valid or steps < 1 or steps != np.floor(steps):
        raise ValueError(
            f"{argument} must be a whole number of steps taken, 1 or more, got {steps}: pass the"
            f" state of an optimizer that has taken a step."
        )
    return min(int(steps), np.iinfo(np.int32).max)
