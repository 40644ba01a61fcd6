"""A member: its rules, where their slots are kept, and one pass over the leaves."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from adam_jax._types import Count, DType, Leaf, Number, Params, PyTree, State
from adam_jax.core.leaf import Arrays, Plan, step_leaves
from adam_jax.core.masks import Mask
from adam_jax.core.stacked import Layers, Stack, over_layers
from adam_jax.core.states import register
from adam_jax.core.step import PASS_ON, Body, Step, arguments, joined, of_leaf, wider
from adam_jax.core.trees import align_params, leaf_paths, unflatten_stored
from adam_jax.formats.base import READ_AS_SAVED, sharding_of
from adam_jax.formats.dense import format_of, is_inexact, leaf_dtype, wider_dtype
from adam_jax.formats.noise import Salt, salt_of_moments
from adam_jax.formats.policy import SlotDType, check_mapped, check_still_fits, resolve
from adam_jax.formats.rounding import Split
from adam_jax.numerics import exact
from adam_jax.pytrees import Label, frozen_pytree, static
from adam_jax.rates import Past, ScheduledRate, ScheduledRatesState, scheduled_rates, with_rates
from adam_jax.rules.base import MemberRule, Rule, at
from adam_jax.rules.hyperparameters import Hyperparameter
from adam_jax.validation import printed

MOVE = (
    "To move the state of another transformation, write"
    " adam_jax.convert.from_optax(state, params, tx)."
)

register(ScheduledRatesState, inner=["inner_state"], others_matter=False)


@frozen_pytree
class Stage:
    """One rule, and where Optax would keep its state.

    Attributes:
      rule: the operation on each leaf.
      state_type: the NamedTuple of the state: the rule's slots, plus step counts.
      dtypes: the user's settings, one per slot.
      mask: the leaves that the rule acts on; None for all.
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

    def start(self, param: Leaf, index: int, path: str, layer: Leaf) -> Leaf:
        """The initial stored form of one slot of one leaf; its format is chosen for one layer.

        Raises:
          ValueError: the parameter cannot have this slot, or not in this format; the caller adds
            the path.
        """
        slot = self.rule.slots[index]
        try:
            leaf_dtype(param)
        except TypeError as error:
            raise ValueError(
                f"the parameter has dtype {error}: Adam moves floating-point numbers only. Leave"
                f" such leaves out with optax.masked(..., mask) or keep them apart from the"
                f" parameters."
            ) from None
        fmt = resolve(self.dtypes[index], layer, slot, path)
        param = param if hasattr(param, "dtype") else jnp.asarray(param)
        start: Any = slot.start
        if callable(start):
            layers, of_layer = param.ndim - np.ndim(layer), start
            start = (
                over_layers(lambda _, x: of_layer(x), layers, 1, param) if layers else start(param)
            )
        return fmt.init(param, start)


class Choice(abc.ABC):
    """Which of a member's variants each leaf has, by its path: a frozen dataclass."""

    @abc.abstractmethod
    def variants(
        self, paths: Sequence[str], moving: Sequence[bool], check: bool
    ) -> list[int | None]:
        """The index of each leaf's variant; None freezes it: no state, an update of zero.

        Args:
          paths: of the leaves.
          moving: whether steps move each.
          check: also check that the choice fits these leaves, in `init`.

        Raises:
          ValueError: a leaf that moves has no variant, or the check fails.
        """


@frozen_pytree
class Member(Body):
    """Rules that run in sequence on each leaf, in one pass.

    Attributes:
      variants: the stages of each leaf. If leaves differ in their numbers, several such tuples that
        keep the same states.
      chained: the state is a tuple with one entry per stage, as `optax.chain` keeps it; False, for
        a single stage, is that stage's state itself.
      choice: which variant a leaf has; None if there is only one.
      layers: which leaves stack several layers.
      kernel: see `with_kernel`.
      name: of the function that made it, for `repr`.
    """

    variants: tuple[tuple[Stage, ...], ...]
    chained: bool = static(default=True)
    choice: Choice | None = static(default=None)
    layers: Layers = static(default=Layers())
    kernel: str = static(default="auto")
    name: Label = static(default=Label())

    @classmethod
    def of(cls, *stages: Stage, chained: bool = True, name: str) -> "Member":
        """A member with the same stages for all leaves; registers the types of their states."""
        for stage in stages:
            slots = {slot.name: slot.magnitude for slot in stage.rule.slots}
            register(stage.state_type, slots=slots, counts=stage.counts)
        return cls((stages,), chained, name=Label(name))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the first variant: all keep the same states."""
        return self.variants[0]

    @property
    def main(self) -> int | None:
        """The index of the last stage with a member's rule; None if there is none."""
        own = (k for k, stage in enumerate(self.stages) if isinstance(stage.rule, MemberRule))
        return max(own, default=None)

    def call(self) -> str:
        """`adamw(learning_rate=0.001, b1=0.9)`; in groups, one such call for each variant."""
        calls = [f"{self.name}({', '.join(arguments(stages))})" for stages in self.variants]
        return calls[0] if self.choice is None else f"groups({', '.join(calls)})"

    def edited(self, edit: "Callable[[Member], Member]") -> "Member":
        """The member, edited."""
        return edit(self)

    def changed(self, index: int, change: Callable[[Any], Rule]) -> "Member":
        """The member with the rule of one stage replaced; its slots stay the same."""

        def with_change(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
            stage = dataclasses.replace(stages[index], rule=change(stages[index].rule))
            return (*stages[:index], stage, *stages[index + 1 :])

        return dataclasses.replace(self, variants=tuple(map(with_change, self.variants)))

    def init(self, params: Params) -> State:
        """The state before the first step; its formats are chosen leaf by leaf."""
        leaves, paths = jax.tree.leaves(params), leaf_paths(params, none_is_leaf=False)
        self.layers.check(params)
        # optax.tree.map_params calls init with a tree without leaves.
        chosen = self._chosen(paths, list(map(is_inexact, leaves)), bool(paths))
        single, states = self.layers.single(params), []
        for k, stage in enumerate(self.stages):
            acts = [True] * len(leaves)
            if stage.mask and stage.rule.slots:
                of_each, treedef = self.layers.one_of_each(params), jax.tree.structure(params)
                acts = stage.mask.flatten(of_each, treedef, leaves)
            fields: dict[str, Any] = {name: jnp.zeros([], jnp.int32) for name in stage.counts}
            for j, slot in enumerate(stage.rule.slots):
                check_mapped(params, stage.dtypes[j], slot)
                stored: list[Any] = []
                columns = zip(leaves, paths, single, chosen, acts, strict=True)
                for p, path, layer, which, acted in columns:
                    if which is None or not acted or not is_inexact(p):
                        stored.append(optax.MaskedNode())
                        continue
                    try:
                        stored.append(self.variants[which][k].start(p, j, path, layer))
                    except ValueError as error:
                        raise ValueError(f"at {path!r}, {error}") from None
                fields[slot.name] = unflatten_stored(params, stored)
            states.append(stage.state_type(**fields))
        past = [{key: Past.none() for key in its.values() if key} for its in self._schedules]
        return self._joined(states, past)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        """One step of every leaf."""
        states, past = self._split(state)
        counts = [
            getattr(s, stage.counts[0]) if stage.counts else None
            for stage, s in zip(self.stages, states, strict=True)
        ]
        # In `groups`, a schedule of a stage without its own count reads the member's count.
        first = next((count for count in counts if count is not None), None)
        counts = [first if count is None else count for count in counts]
        of_stages = zip(zip(*self._rules, strict=True), self._schedules, past, counts, strict=True)
        of_stages = [with_rates(*its) for its in of_stages]
        variants = [[its[v] for its, _ in of_stages] for v in range(len(self.variants))]
        traced = any(isinstance(g, jax.core.Tracer) for g in step.g)
        rules = _rules_of_step(variants, counts, traced)
        # Per stage and slot: the stored forms of all leaves, updated in place.
        slots = [
            [step.align(getattr(s, slot.name)) for slot in stage.rule.slots]
            for stage, s in zip(self.stages, states, strict=True)
        ]
        needs_params = any(s.rule.needs_params for stages in self.variants for s in stages)
        if needs_params or (step.last and step.apply):
            step.needed_params()
        if len(step.here) < len(step.own):
            self._check_integers(step, slots)

        # What each feature says of a leaf; then its plan.
        chosen = self._chosen(step.paths if self.choice else step.here, [True] * len(step.here))
        masks = [
            [stage.mask and _flags(stage.mask, step, self.layers) for stage in stages]
            for stages in self.variants
        ]
        stacks = step.stacks(self.layers)
        of_rules: dict[Any, tuple[list[Number], PyTree]] = {}
        stepped, plans, arrays, results = [], [], [], list(step.g)
        columns = zip(step.here, step.g, step.p, chosen, strict=True)
        for n, (i, g, p, which) in enumerate(columns):
            if which is None:
                results[n] = step.unmoved(n)
                continue
            its_masks = enumerate(masks[which])
            used = tuple(k for k, flags in its_masks if flags is None or flags[i])
            key = which, used, step.counts and i
            if step.counts is not None:
                its = [step.counts[i] if k == self.main else x for k, x in enumerate(counts)]
                rules = _rules_of_step(variants, its, traced)
            if key not in of_rules:
                of_rules[key] = jax.tree.flatten([rules[which][k] for k in used])
            numbers, structure = of_rules[key]
            stages = [self.variants[which][k] for k in used]
            p = joined(p) if not step.last else p
            read = needs_params or (step.last and (step.apply or isinstance(p, Split)))
            stored = tuple(tuple(slot[i] for slot in slots[k]) for k in used)
            after = of_leaf(step.update_factors, i) if step.last else ()
            leaf = Arrays(g, of_leaf(step.factors, i), stored, p if read else None, None, after)
            try:
                plan = self.plan(step, n, stages, structure, leaf, stacks[n])
                leaf = leaf._replace(salt=_salt(plan, first, stacks[n].first))
            except (TypeError, ValueError) as error:
                raise ValueError(f"at {step.paths[n]!r}, {error}") from None
            if step.plans is not None:
                step.plans[step.paths[n]] = plan._replace(rules=[stage.rule for stage in stages])
            stepped.append((n, i, used))
            plans.append((plan, numbers))
            arrays.append(leaf)
        for k, (result, new) in step_leaves(plans, arrays, step.ok):
            n, i, used = stepped[k]
            results[n] = result
            for k, renewed in zip(used, new, strict=True):
                for slot, x in zip(slots[k], renewed, strict=True):
                    slot[i] = x
        new_states = []
        for stage, s, its in zip(self.stages, states, slots, strict=True):
            fields = {name: step.counted(getattr(s, name)) for name in stage.counts}
            for slot, xs in zip(stage.rule.slots, its, strict=True):
                fields[slot.name] = step.back(getattr(s, slot.name), xs)
            new_states.append(stage.state_type(**fields))
        if not step.last:  # What follows would contract a last product in some loops.
            results = [exact(x) for x in results]
        step = step.widened()
        new = self._joined(new_states, [past for _, past in of_stages])
        return step.with_results(results, step.dtypes, done=step.last), new

    def plan(
        self,
        step: Step,
        n: int,
        stages: Sequence[Stage],
        structure: PyTree,
        leaf: Arrays,
        stack: Stack,
    ) -> Plan:
        """The static part of the program of the n-th leaf of a step: of dtypes and shapes alone.

        `stages` act on it, `structure` is that of their rules.

        Raises:
          ValueError: its gradient, state and parameter do not match; the caller adds the path.
        """
        shape, p = np.shape(leaf.g), step.p[n]
        formats = []
        for stage, stored in zip(stages, leaf.stored, strict=True):
            formats.append(tuple(map(format_of, stored)))
            for slot, fmt, x in zip(stage.rule.slots, formats[-1], stored, strict=True):
                _check_stored(slot, fmt, x, leaf.g)
        if p is not None and np.shape(p) != shape:
            raise ValueError(
                f"the gradient has shape {shape} and the parameter {np.shape(p)}: they must be"
                f" equal."
            )
        arithmetic = _arithmetic(leaf)
        dtype = arithmetic
        if step.last:
            dtype = leaf_dtype(p) if step.apply else wider(step.dtypes[n], p)
        every = [fmt for fmts in formats for fmt in fmts]
        rests = isinstance(leaf.param, Split) and leaf.param.rest is not None
        fused = not (rests or any(fmt.measures or fmt.stochastic for fmt in every))
        kernel, parts = "in one pass" if fused else "the transformation asks for XLA", None
        if any(factor.ndim for factor in (*leaf.factors, *leaf.update_factors)):
            kernel = "a factor for each layer"
        elif self.kernel == "pallas" or (self.kernel == "auto" and not fused):
            from adam_jax.kernels.tiles import tiles_of

            sharding = _explicit_sharding(leaf.g) or step.shardings.get(step.paths[n])
            rules = [stage.rule for stage in stages]
            everywhere = self.kernel == "pallas"
            kernel, parts = tiles_of(rules, every, leaf, everywhere, sharding, stack.axes)
        applies, layers = step.last and step.apply, (stack.axes, stack.stride)
        return Plan(structure, tuple(formats), arithmetic, dtype, applies, kernel, parts, *layers)

    def _chosen(
        self, paths: Sequence[Any], moving: Sequence[bool], check: bool = False
    ) -> list[int | None]:
        """The variant of each leaf."""
        choice = self.choice
        return [0] * len(paths) if choice is None else choice.variants(paths, moving, check)

    def _check_integers(self, step: Step, slots: Sequence[Sequence[Sequence[Any]]]) -> None:
        """Checks that a leaf with an integer gradient has no state.

        Raises:
          ValueError: it has one.
        """
        given = jax.tree.leaves(step.tree, is_leaf=lambda x: x is None)
        for i in sorted(set(step.own) - set(step.here)):
            if given[i] is not None and any(jax.tree.leaves(s[i]) for its in slots for s in its):
                raise ValueError(
                    f"at {step.every_path[i]!r}, the gradient has dtype {given[i].dtype}, which has"
                    f" no average: leave the leaf out with optax.masked(..., mask), or pass None as"
                    f" its gradient."
                )

    @functools.cached_property
    def _rules(self) -> list[list[Rule]]:
        """The rules, by variant and stage."""
        return [[stage.rule for stage in stages] for stages in self.variants]

    @functools.cached_property
    def _schedules(self) -> list[dict[ScheduledRate, str]]:
        """Of each stage, its scheduled decay rates, and the keys of their past in the state."""
        return [scheduled_rates(rules) for rules in zip(*self._rules, strict=True)]

    def _split(self, state: State) -> tuple[list[Any], list[dict[str, Past]]]:
        """The states of the stages, and the past of their scheduled decay rates."""
        if self.chained and not (isinstance(state, tuple) and len(state) == len(self.stages)):
            got = f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
            raise ValueError(
                f"the state must be the tuple of {len(self.stages)} that init returned, got {got}:"
                f" {PASS_ON}"
            )
        states, past = list(state) if self.chained else [state], []
        columns = zip(self.stages, states, self._schedules, strict=True)
        for k, (stage, s, schedules) in enumerate(columns):
            where, keys = f"at state[{k}], " if self.chained else "", {*schedules.values()} - {""}
            past.append(getattr(s, "past", {}) if keys else {})
            if past[k].keys() != keys:
                raise ValueError(
                    f"{where}the state must have {sorted(keys)}, since decay rates are scheduled,"
                    f" got {_in_words(type(s))}: {PASS_ON} {MOVE}"
                )
            its_own = stage.mask is None and not keys
            states[k] = s = s if its_own else getattr(s, "inner_state", s)
            # Checked by type: a type with more slots would lose them, and AdaBelief's slots have
            # the same names as Adam's. A stage without state accepts anything empty, because Optax
            # does not look at it.
            empty = not stage.state_type._fields and not jax.tree.leaves(s)
            if not empty and not isinstance(s, stage.state_type):
                raise ValueError(
                    f"{where}the state must be {_in_words(stage.state_type)}, got"
                    f" {_in_words(type(s))}: {PASS_ON} {MOVE}"
                )
        return states, past

    def _joined(self, states: Sequence[Any], past: Sequence[dict[str, Past]]) -> Any:
        """The inverse of `_split`."""
        wrapped = tuple(
            ScheduledRatesState(its, s) if its else optax.MaskedState(s) if stage.mask else s
            for stage, s, its in zip(self.stages, states, past, strict=True)
        )
        return wrapped if self.chained else wrapped[0]


def _check_stored(slot: Any, fmt: Any, x: Leaf, g: Any) -> None:
    """Checks that a stored slot fits a leaf, and may be continued from."""
    if fmt is None and jax.tree.leaves(x):
        raise ValueError(
            f"the state must have an array, got a {type(x).__name__} with {leaf_paths(x)}."
            f" If it is from a checkpoint, {READ_AS_SAVED}"
        )
    if fmt is None:
        raise ValueError("the state is empty and the gradient is not: pass None instead.")
    if fmt.shape(x) != np.shape(g):
        raise ValueError(
            f"the gradient has shape {np.shape(g)} and the state {fmt.shape(x)}: was init called"
            f" with these parameters?"
        )
    # Optax keeps nu of a float16 parameter in float16. A state may also be from an older release.
    check_still_fits(slot, fmt)
    if not slot.magnitude and jnp.iscomplexobj(g):
        jax.eval_shape(fmt.encode, g)  # Optax's init accepts a mu without an imaginary part.


def _flags(mask: Mask, step: Step, layers: Layers) -> dict[int, bool]:
    """Whether a rule with a mask acts on each leaf, by its index."""
    params, tree = layers.one_of_each(step.joined_params()), step.own_treedef()
    leaves = align_params(step.treedef, step.params, False, step.apply)
    flags = mask.flatten(params, tree, [leaves[i] for i in step.own])
    return dict(zip(step.own, flags, strict=True))


def _rules_of_step(
    variants: Sequence[Sequence[Rule]], counts: Sequence[Count], traced: bool
) -> list[list[Rule]]:
    """The rules with their numbers of this step, as arrays in the precision of arithmetic.

    They have the same bits whether the numbers are traced or not. Outside a program, all are
    computed by one compiled program. Schedules are called before: JAX caches the structures of
    compiled functions, and a schedule in one would never be freed.

    Args:
      variants: by variant and stage.
      counts: of each stage, the completed optimizer steps; None if there is no count.
      traced: a gradient is traced: this is part of a larger program.
    """

    def is_hyperparameter(x: Leaf) -> bool:
        return isinstance(x, Hyperparameter)

    def scheduled(rule: Rule, count: Count) -> Rule:
        return jax.tree.map(
            lambda x: at(x, count) if is_hyperparameter(x) else x, rule, is_leaf=is_hyperparameter
        )

    if traced or any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((variants, counts))):
        return _rules_at(variants, counts)
    pairs = [list(zip(rules, counts, strict=True)) for rules in variants]
    return _rules_at_once([[scheduled(*pair) for pair in its] for its in pairs], list(counts))


def _rules_at(variants: Any, counts: Any) -> list[list[Rule]]:
    its = [
        [at(rule, count) for rule, count in zip(rules, counts, strict=True)]
        for rules in _as_arrays(variants)
    ]
    return _as_arrays(its)


_rules_at_once = jax.jit(_rules_at)


def _as_arrays(numbers: PyTree) -> PyTree:
    """The same pytree with numbers as arrays: constants would be lowered again for every call."""
    dtype = jnp.result_type(float)
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, dtype), numbers)


def _arithmetic(leaf: Arrays) -> DType:
    """float32, or the widest dtype of this leaf's arrays; complex if the gradient is."""
    arrays = jax.tree.leaves((leaf.g, leaf.stored, leaf.param))
    return _widest(frozenset(jnp.result_type(x) for x in arrays), jnp.iscomplexobj(leaf.g))


@functools.cache
def _widest(dtypes: frozenset[Any], is_complex: bool) -> DType:
    dtype = jnp.dtype(jnp.float32)
    for own in dtypes:  # 8-bit codes are narrower, and do not promote.
        if jnp.issubdtype(own, jnp.inexact) and own.itemsize > 1:
            dtype = wider_dtype(dtype, jnp.finfo(own).dtype)
    return wider_dtype(dtype, jnp.dtype(jnp.complex64)) if is_complex else dtype


def _explicit_sharding(g: Leaf) -> NamedSharding | None:
    """The sharding of a gradient, if the axes of its mesh are explicit."""
    sharding = sharding_of(g) if isinstance(g, jax.core.Tracer) else None
    if sharding is None or sharding.mesh.empty:
        return None
    return NamedSharding(sharding.mesh, sharding.spec)


def _salt(plan: Plan, count: Count, index: int) -> Salt | None:
    """The salt of a leaf's random bits in a step; None if no format needs one."""
    if not any(fmt.stochastic for fmts in plan.formats for fmt in fmts):
        return None
    if count is None:
        raise ValueError(
            "its state has no step count, which stochastic rounding needs: use another format."
        )
    return salt_of_moments(count, index)


def _in_words(kind: type) -> str:
    """A state type for error messages, with its article and fields."""
    fields = getattr(kind, "_fields", ())
    return printed(kind) + (f"({', '.join(fields)})" if fields else "")
