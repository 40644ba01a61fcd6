"""One pass over the leaves of a tree, in which each leaf runs through a pipeline of stages.

Step counts, trees, None leaves, masks and groups are handled here (and in trees.py, which aligns
trees), not in lower layers. `adamw` is one pipeline of three stages for all leaves. `groups` is
several pipelines of equal structure, each with its own numbers; a leaf is in one of them or none.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Count, Leaf, Named, Params, PyTree, Result, State, Updates
from adam_jax.engine.call import PASS_ON, Body, Call
from adam_jax.engine.layers import Layers
from adam_jax.engine.leaf import LeafArrays, LeafGroup, Program
from adam_jax.engine.leaf_factors import LeafFactors, by_factors
from adam_jax.engine.leaf_program import run
from adam_jax.engine.plan import Noted, explicit_sharding, note, plans_of
from adam_jax.engine.scalars import shared
from adam_jax.engine.split import SplitParams, SplitResult, joined, stored_params
from adam_jax.engine.stage import Stage
from adam_jax.engine.trees import (
    align_params,
    align_slot,
    check_leaf,
    leaf_paths,
    unflatten_slot,
    unflatten_stored,
)
from adam_jax.engine.unrounded import (
    Unrounded,
    arithmetic_dtype,
    as_wide_as,
    update_dtype,
)
from adam_jax.formats.dense import is_floating, leaf_dtype
from adam_jax.formats.noise import Salt, salt_of_moments
from adam_jax.formats.policy import format_of
from adam_jax.formats.rounding import Split
from adam_jax.rules.pytrees import frozen_pytree, static

Labels = Sequence[int | None] | None
"""The index of each leaf's pipeline; None if every leaf runs the first.

A frozen leaf has the index None, no state and a zero update. A leaf that is not floating-point also
has no state; its gradient is None.
"""


@frozen_pytree
class Pipeline(Body):
    """Stages that run in sequence on each leaf.

    Attributes:
      stages: in the order in which they run.
      chained: the state is a tuple with one entry per stage, as `optax.chain` keeps it; False, for
        a single stage, is that stage's state itself.
      kernel: see `with_kernel`.
      factors: of each leaf, by path; None if all leaves have the same numbers.
      layers: which leaves stack several layers.
    """

    joins = True

    stages: tuple[Stage, ...]
    chained: bool = static()
    kernel: str = static(default="auto")
    factors: LeafFactors | None = static(default=None)
    layers: Layers = static(default=Layers())

    @property
    def member(self) -> int | None:
        """The index of the last stage with slots; None if none has any."""
        return max((i for i, stage in enumerate(self.stages) if stage.rule.slots), default=None)

    def init(self, params: Params) -> State:
        """The state before the first step."""
        return init_pipelines((self,), None, params)

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """One optimizer step on every leaf; see `Body`."""
        return run_pipelines((self,), None, updates, state, params, call)

    def pipeline(self) -> "Pipeline":
        """Itself."""
        return self

    def edited(self, edit: Callable[["Pipeline"], "Pipeline"]) -> "Pipeline":
        """The same body, edited."""
        return edit(self)

    def split(self, state: State) -> tuple[Leaf, ...]:
        """The stages' own states."""
        if not self.chained:
            states: PyTree = (state,)
        elif isinstance(state, tuple) and len(state) == len(self.stages):
            states = state
        else:
            raise ValueError(
                f"the state must be the tuple of {len(self.stages)} that init returned, got"
                f" {_described(state)}: {PASS_ON}"
            )
        return tuple(
            stage.unwrap(s, f"at state[{k}], " if self.chained else "")
            for k, (stage, s) in enumerate(zip(self.stages, states, strict=True))
        )

    def join(self, states: list[Leaf]) -> PyTree:
        """The inverse of `split`."""
        wrapped = tuple(stage.wrap(s) for stage, s in zip(self.stages, states, strict=True))
        return wrapped if self.chained else wrapped[0]


def init_pipelines(pipelines: tuple[Pipeline, ...], labels: Labels, params: Params) -> PyTree:
    """The shared state; `labels` are those of the parameters, without None leaves."""
    leaves = jax.tree.leaves(params)
    labels = [0] * len(leaves) if labels is None else labels
    paths = leaf_paths(params, none_is_leaf=False)
    layers = pipelines[0].layers
    layers.check(params)
    if any(pipeline.factors for pipeline in pipelines):
        pipelines, labels = by_factors(pipelines, labels, paths)
    single = layers.single(params)
    states = []
    for k, stage in enumerate(pipelines[0].stages):
        fields: Named = {name: jnp.zeros([], jnp.int32) for name in stage.counts}
        for j, slot in enumerate(stage.rule.slots):
            stored = []
            for i, (p, label) in enumerate(zip(leaves, labels, strict=True)):
                if label is None or not is_floating(p):
                    stored.append(optax.MaskedNode())
                    continue
                try:
                    stored.append(pipelines[label].stages[k].start(p, j, paths[i], single[i]))
                except ValueError as error:
                    raise ValueError(f"at {paths[i]!r}, {error}") from None
            fields[slot.name] = unflatten_stored(params, stored)
        states.append(stage.state_type(**fields))
    return pipelines[0].join(states)


def run_pipelines(
    pipelines: tuple[Pipeline, ...],
    labels: Labels,
    updates: Updates,
    state: State,
    params: Params,
    call: Call,
) -> Result:
    """One optimizer step on every leaf; returns the updates, or the new parameters.

    Args:
      pipelines: with the same stages, except for numbers.
      labels: those of the updates, with an entry for each None leaf.
      updates: the gradients.
      state: the result of `init_pipelines` or of the last step.
      params: the parameters; None if no rule reads them.
      call: the options of the step. Extra arguments are for others in a chain, as in Optax.
    """
    apply = call.apply
    stages, states, layers = pipelines[0].stages, pipelines[0].split(state), pipelines[0].layers
    later = isinstance(updates, Unrounded)
    dtypes, pending = (), ()
    if isinstance(updates, Unrounded):
        updates, dtypes, pending = updates.raw, updates.dtypes, updates.pending
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    labels = [0] * len(leaves) if labels is None else labels
    if any(pipeline.factors for pipeline in pipelines):
        moving = [None if g is None else k for g, k in zip(leaves, labels, strict=True)]
        pipelines, labels = by_factors(pipelines, moving, leaf_paths(updates))
    counts = [
        getattr(s, stage.counts[0]) if stage.counts else None
        for stage, s in zip(stages, states, strict=True)
    ]
    # In a group, a schedule of a stage without its own count reads the member's count.
    first = next((count for count in counts if count is not None), None)
    counts = [first if count is None else count for count in counts]
    rules = [[stage.rule for stage in pipeline.stages] for pipeline in pipelines]
    structures, numbers = shared(rules, counts, leaves)
    # Per stage, slot and leaf: the stored form; updated in place.
    stored = [
        [align_slot(treedef, updates, getattr(s, slot.name)) for slot in stage.rule.slots]
        for stage, s in zip(stages, states, strict=True)
    ]
    needed = apply or any(
        stage.rule.needs_params for pipeline in pipelines for stage in pipeline.stages
    )
    param_leaves = align_params(treedef, stored_params(params), needed, apply)
    weights = params.weights if isinstance(params, SplitParams) else {}
    param_leaves = [weights.get(i, p) for i, p in enumerate(param_leaves)]
    masks = [
        [
            stage.mask
            and stage.mask.flatten(layers.one_of_each(joined(params)), treedef, param_leaves)
            for stage in pipeline.stages
        ]
        for pipeline in pipelines
    ]

    # Leaves share a program if pipeline, stages, formats, dtypes and shape are equal.
    alike: dict[PyTree, list[int]] = {}
    arrays: dict[int, LeafArrays] = {}
    results: list[Leaf] = list(param_leaves) if apply else list(leaves)
    paths = leaf_paths(updates) if call.shardings or layers else []
    stacks = layers.stacks(paths, leaves)
    for i, (g, p, label) in enumerate(zip(leaves, param_leaves, labels, strict=True)):
        if g is None:
            continue
        if label is None:
            results[i] = _unmoved(g, p, apply)
            continue
        used = tuple(k for k, mask in enumerate(masks[label]) if mask is None or mask[i])
        old = tuple(tuple(slot[i] for slot in stored[k]) for k in used)
        formats = tuple(tuple(map(format_of, slots)) for slots in old)
        if not is_floating(g) and {fmt for slots in formats for fmt in slots} == {None}:
            results[i] = _unmoved(g, p, apply)  # As an integer's gradient should be.
            continue
        try:
            g_dtype = check_leaf(g, p, old, formats)
            g_dtype = arithmetic_dtype(g) if later else g_dtype
            dtype = leaf_dtype(p) if apply else update_dtype(g_dtype, p)
            # An unused parameter is not part of the program.
            p = p if needed or isinstance(p, Split) else None
            lies = explicit_sharding(g) or (call.shardings.get(paths[i]) if paths else None)
            axes, first_layer, stride = stacks[i]
            kind = (axes, stride, np.shape(g), g_dtype, jax.tree.structure(p))
            group = (label, used, formats, dtype, lies, *kind)
            if group not in alike:
                for k, its in zip(used, formats, strict=True):
                    stages[k].check_formats(its)
        except (TypeError, ValueError) as error:
            raise ValueError(f"at {leaf_paths(updates)[i]!r}, {error}") from None
        salt = _salt(formats, first, first_layer)
        arrays[i] = LeafArrays(g, pending, old, p, salt)
        alike.setdefault(group, []).append(i)

    groups = []
    for (label, used, formats, dtype, lies, axes, stride, *_), indices in alike.items():
        its = [arrays[i] for i in indices]
        its_rules = [rules[label][k] for k in used]
        plan, parts = plans_of(
            its_rules,
            [fmt for slots in formats for fmt in slots if fmt is not None],
            its[0],
            pipelines[label].kernel,
            lies,
            axes,
        )
        note(updates, indices, Noted(plan, its_rules, formats))
        program = Program(formats, dtype, apply, plan, parts, axes, stride)
        groups.append(LeafGroup(program, (label, used), its))
    for (_, used, *_), indices, stepped in zip(
        alike, alike.values(), run(groups, structures, numbers, call), strict=True
    ):
        for i, (result, new) in zip(indices, stepped, strict=True):
            results[i] = result
            for k, slots in zip(used, new, strict=True):
                for slot, x in zip(stored[k], slots, strict=True):
                    slot[i] = x

    new_states = []
    for stage, s, slots in zip(stages, states, stored, strict=True):
        fields = {name: call.counted(getattr(s, name)) for name in stage.counts}
        for slot, xs in zip(stage.rule.slots, slots, strict=True):
            fields[slot.name] = unflatten_slot(getattr(s, slot.name), xs)
        new_states.append(stage.state_type(**fields))
    rests = {}
    for i in weights:
        results[i], rests[i] = results[i]
    result = jax.tree.unflatten(treedef, results)
    if later and not apply:
        result = as_wide_as(Unrounded(result, dtypes), stored_params(params))
    result = SplitResult(result, rests) if isinstance(params, SplitParams) else result
    return result, pipelines[0].join(new_states)


def _unmoved(g: Leaf, p: Leaf, apply: bool) -> Leaf:
    if isinstance(p, Split):
        return p.stepped_to(p, apply)
    return p if apply else jnp.zeros_like(g)


def _described(state: State) -> str:
    return f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__


def _salt(formats: PyTree, count: Count, index: int) -> Salt | None:
    """The salt of a leaf's random bits in a step; None if no format needs one."""
    if not any(fmt is not None and fmt.stochastic for slots in formats for fmt in slots):
        return None
    if count is None:
        raise ValueError(
            "its state has no step count, which stochastic rounding needs: use another format."
        )
    return salt_of_moments(count, index)
