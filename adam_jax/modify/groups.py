"""Parameter groups: hyperparameters per group, in one pass, or an optimizer per group."""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from adam_jax._types import AnyTransformation, Leaf, Named, Params, PyTree, Result, State, Updates
from adam_jax.engine.call import Body, Call, NoPipeline
from adam_jax.engine.layers import looks_stacked
from adam_jax.engine.pipeline import Pipeline, init_pipelines, run_pipelines
from adam_jax.engine.states import found
from adam_jax.engine.transformation import Transformation, body_of
from adam_jax.engine.trees import leaf_paths
from adam_jax.engine.unrounded import raw
from adam_jax.formats.dense import is_floating
from adam_jax.modify.expressions import first_matches
from adam_jax.modify.factory import check_factory, name_of
from adam_jax.modify.partition import Entry, Partition, partitioned
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import bind_arguments, check_expression


@frozen_pytree
class Groups(Body):
    """The body of `groups`.

    Attributes:
      pipelines: one per group that is not frozen; the default group's, if any, is the last.
      expressions: each with the index of its pipeline, or None if its leaves are frozen.
      default: the index of the pipeline for unmatched leaves; None if there is none.
    """

    joins = True

    pipelines: tuple[Pipeline, ...]
    expressions: tuple[tuple[str, int | None], ...] = static()
    default: int | None = static()

    def init(self, params: Params) -> State:
        """The member's initial state; frozen leaves have none."""
        paths = leaf_paths(params, none_is_leaf=False)
        moving = list(map(is_floating, jax.tree.leaves(params)))
        # optax.tree.map_params calls init with a tree without leaves.
        return init_pipelines(self.pipelines, self.labels(paths, moving, check=bool(paths)), params)

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """One optimizer step; each leaf uses the hyperparameters of its group."""
        tree = raw(updates)
        leaves = jax.tree.leaves(tree, is_leaf=lambda x: x is None)
        labels = self.labels(leaf_paths(tree), [g is not None for g in leaves], check=False)
        return run_pipelines(self.pipelines, labels, updates, state, params, call)

    def labels(self, paths: list[str], moving: list[bool], check: bool) -> list[int | None]:
        """The pipeline of each leaf: that of the first expression that matches its whole path.

        Raises:
          ValueError: an updated leaf matches none; or, with `check`, an expression has no leaf.
        """
        instead = (
            "add one, or pass the arguments for all other leaves as keywords, groups(adamw, ...,"
            " learning_rate=1e-3)"
        )
        found = first_matches(
            [expression for expression, _ in self.expressions],
            paths,
            moving,
            check=check,
            instead=instead if self.default is None else None,
        )
        return [self.default if i is None else self.expressions[i][1] for i in found]


def expressions_in(tx: AnyTransformation) -> list[str]:
    """The expressions of `groups` in a transformation, including those of frozen leaves."""
    bodies = found(tx, lambda x: isinstance(x, Groups | Partition))
    return [e if isinstance(e, str) else e[0] for x in bodies for e in x.expressions]


def groups(
    factory: Callable[..., Transformation] | Mapping[str, Entry],
    expressions: Mapping[str, Mapping[str, Any] | None] | None = None,
    **defaults: Leaf,
) -> Transformation:
    r"""Selects leaves by path and gives each group its own hyperparameters or its own optimizer.

    `groups(adamw, {".*bias": dict(weight_decay=0.0)}, learning_rate=1e-3)` is one member with
    different hyperparameters for some leaves. It steps all leaves in one pass and keeps one count.
    `groups({".*/kernel": optax.contrib.muon(0.02), ".*": adamw(1e-3)})` uses one optimizer per
    group, from this package or any other.

    A path joins the dict keys, attributes and indices of a leaf with slashes: `layers/0/kernel`. A
    leaf belongs to the first expression that matches its whole path.

    Args:
      factory: `adamw`, any other alias or scale_by_* of this package, or a modifier of one. For
        several optimizers, a dict from regular expressions to the optimizer of the matching leaves.
        None freezes them. A function that makes an optimizer is called with `defaults`; a
        `functools.partial` keeps its own arguments.
      expressions: for one member, a dict from regular expressions to arguments of `factory` for the
        matching leaves, which override `defaults`. None freezes the leaves: no state, an update of
        zero. Omitted if the first argument is a dict.
      **defaults: arguments of `factory` for all leaves; with several optimizers, arguments of each
        one that is a function.

    Returns:
      A transformation. For one member it has the member's own state, and the schedules of all
      groups read its one count. For several optimizers it has the `optax.PartitionState` that
      `optax.partition` keeps with the expressions as labels, and each optimizer keeps its own
      counts. `with_hyperparams(functools.partial(groups, {...}))(learning_rate=schedule)` keeps one
      count and one schedule for all. Members of this package step their leaves in one pass.

    Raises:
      TypeError: an argument that `factory`, or one of several, does not take.
      ValueError: in this call, an invalid expression, or groups of one member that keep different
        states; in `init`, an expression that matches nothing or only leaves that earlier ones
        match, or leaves without a match, unless `defaults` suffice to make the member. The message
        lists the paths.

    Example:
      >>> import adam_jax, functools, jax.numpy as jnp, optax
      >>> tx = adam_jax.groups(
      ...     adam_jax.adamw,
      ...     {"frozen": None, r".*bias|norm/.*": dict(weight_decay=0.0), r"head/.*": dict(b2=0.9)},
      ...     learning_rate=1e-3,
      ... )
      >>> head = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(1)}
      >>> params = {"head": head, "norm": {"scale": 1.0}, "frozen": jnp.ones(3)}
      >>> print(tx.init(params)[0].mu["frozen"])
      MaskedNode()
      >>> tx = adam_jax.groups(
      ...     {"frozen": None, r".*/kernel": functools.partial(optax.sgd, momentum=0.9),
      ...      ".*": adam_jax.adamw},
      ...     learning_rate=1e-3,
      ... )
      >>> print(*tx.init(params).inner_states)
      frozen .*/kernel .*

    Differs from Optax (`partition`) in: labels are expressions; `step` is supported; one member
    takes one pass and keeps one count and its own state, where `partition` has a masked
    transformation and a count per group; frozen leaves stay untouched, where `optax.set_to_zero`
    adds zeros.
    Differs from PyTorch (parameter groups) in: leaves are selected by path.
    """
    if isinstance(factory, Mapping):
        if expressions is not None:
            raise ValueError(
                f"expressions must be left out where the first argument is a dict, got"
                f" {expressions!r}: write functools.partial(adamw, ...) in that dict."
            )
        return partitioned(factory, defaults)
    check_factory(factory, 'groups(adamw, {".*bias": {"weight_decay": 0.0}}, learning_rate=1e-3)')
    signature = inspect.signature(factory)
    bind_arguments(name_of(factory), signature, (), defaults, partial=True)
    if not isinstance(expressions, Mapping):
        raise ValueError(
            f"expressions must be a dict from regular expressions to arguments, got"
            f' {expressions!r}: write {{".*bias": {{"weight_decay": 0.0}}}}.'
        )
    pipelines, labelled = [], []
    for expression, overrides in expressions.items():
        check_expression("each key of expressions", expression)
        try:
            if overrides is None:
                labelled.append((expression, None))
                continue
            if not isinstance(overrides, Mapping):
                raise ValueError(
                    f"must have a dict of arguments, or None to freeze its leaves, got"
                    f" {overrides!r}: write dict(learning_rate={overrides!r})."
                )
            labelled.append((expression, len(pipelines)))
            pipelines.append(_pipeline(factory, {**defaults, **overrides}))
        except (ValueError, TypeError) as error:
            raise type(error)(f"the expression {expression!r}: {error}") from None
    default = None
    try:
        signature.bind(**defaults)
    except TypeError:
        pass  # Arguments are missing: there is no default group, and every leaf must match.
    else:
        default = len(pipelines)
        pipelines.append(_pipeline(factory, defaults))
    if not pipelines:
        raise ValueError("expressions must leave a leaf that moves: write optax.set_to_zero().")
    kept = list(map(_kept, pipelines))
    for expression, i in labelled:
        if i is not None and kept[i] != kept[-1]:
            raise ValueError(
                f"groups must keep the same state, got {kept[i]} for {expression!r} and {kept[-1]}"
                f" elsewhere: give every group the same flags, and leave the same arguments None"
                f" in each."
            )
    return Transformation.around(Groups(_with_one_count(pipelines), tuple(labelled), default))


def _pipeline(factory: Callable[..., Transformation], arguments: Named) -> Pipeline:
    tx = factory(**arguments)
    try:
        return body_of("factory's result", tx).pipeline()
    except NoPipeline as error:
        raise ValueError(
            f"factory must make a member of adam_jax, got {error}: pass other optimizers in a dict,"
            f" groups({{expression: optimizer, ...}}), and put with_hyperparams outermost,"
            f" with_hyperparams(functools.partial(groups, adamw, {{...}}))(learning_rate=1e-3)."
        ) from None


def _with_one_count(pipelines: list[Pipeline]) -> tuple[Pipeline, ...]:
    """Lets stages without slots keep a count only in pipelines where no stage has slots."""
    alone = pipelines[0].member is None
    state_types = []
    for alike in zip(*(pipeline.stages for pipeline in pipelines), strict=True):
        counting = [stage.state_type for stage in alike if stage.counts]
        state_types.append(counting[0] if alone and counting else optax.EmptyState)

    def counted(pipeline: Pipeline) -> Pipeline:
        stages = tuple(
            stage if stage.rule.slots else dataclasses.replace(stage, state_type=state_type)
            for stage, state_type in zip(pipeline.stages, state_types, strict=True)
        )
        return dataclasses.replace(pipeline, stages=stages)

    return tuple(map(counted, pipelines))


def _kept(pipeline: Pipeline) -> list[str]:
    """A description of each stage's state, to compare groups; counts of schedules are left out."""
    return [
        f"{stage.state_type.__name__}({', '.join(slot.name for slot in stage.rule.slots)})"
        if stage.rule.slots
        else "nothing"
        for stage in pipeline.stages
    ]


def decay_mask(params: Params) -> PyTree:
    """The usual weight decay mask: matrices and larger tensors decay, vectors and scalars do not.

    It excludes biases and the scales of normalization layers: `adamw(1e-3, mask=decay_mask)`.

    Args:
      params: the parameters. As the `mask` of a transformation inside `with_layers`, this function
        sees the shape of one layer.

    Returns:
      A tree of booleans with the structure of `params`. Warns if leaves look like stacked layers.
    """
    for prefix, count in looks_stacked(params).items():
        expression = f"{prefix}/.*" if prefix else ".*"
        warnings.warn(
            f"every leaf below {prefix!r} has a first axis of size {count}: if these are stacked"
            f" layers, their biases and scales look like matrices here and decay. Write"
            f" with_layers(adamw(..., mask=decay_mask), {expression!r}).",
            stacklevel=2,
        )
    return jax.tree.map(lambda p: np.ndim(p) > 1, params)
