"""Factors by which a pipeline's numbers differ from leaf to leaf."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from adam_jax._types import Leaf
from adam_jax.rules.units import Unit, rescaled, units_of

if TYPE_CHECKING:
    from adam_jax.engine.pipeline import Pipeline


class Factors(NamedTuple):
    """The factors of the numbers of one leaf.

    Attributes:
      learning_rate: of the learning rate.
      eps: of every ε in units of the gradient; its square for every ε in units of the gradient
        squared.
      weight_decay: of decoupled weight decay that is multiplied by the learning rate. Other weight
        decay has no factor.
    """

    learning_rate: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0

    def by_unit(self) -> dict[Unit, float]:
        """The factor for numbers of each unit."""
        return {
            Unit.LEARNING_RATE: self.learning_rate,
            Unit.GRADIENT: self.eps,
            Unit.GRADIENT_SQUARED: self.eps**2,
            Unit.WEIGHT_DECAY: self.weight_decay,
        }


LeafFactors = tuple[tuple[str, Factors], ...]
"""The factors of each leaf, by path."""


def check_scalable(pipeline: "Pipeline") -> None:
    """Checks that all numbers of a pipeline have a factor.

    Raises:
      ValueError: one has none.
    """
    if pipeline.factors:
        raise ValueError("tx must not have factors already: write mup once, with the base model.")
    units = [units_of(stage.rule) for stage in pipeline.stages]
    if not any(Unit.LEARNING_RATE in its for its in units):
        raise ValueError("tx must have a learning rate, as adamw(1e-3) has: write the alias.")
    for k, (stage, its) in enumerate(zip(pipeline.stages, units, strict=True)):
        if Unit.WEIGHT_DECAY in its and k < (pipeline.member or 0):
            raise ValueError(
                "l2 must be None, as it has no factor for a wider model: write adamw and"
                " weight_decay."
            )
        if stage.rule.needs_params and Unit.WEIGHT_DECAY not in its:
            raise ValueError(
                f"tx must have an update that does not depend on the parameter's size, got"
                f" {type(stage.rule).__name__}: write adamw for lamb."
            )


def by_factors(
    pipelines: "tuple[Pipeline, ...]", labels: Sequence[int | None], paths: Sequence[str]
) -> "tuple[tuple[Pipeline, ...], list[int | None]]":
    """Pipelines without factors, one per distinct set of factors of a pipeline; and new labels.

    Args:
      pipelines: with or without factors.
      labels: the index of each leaf's pipeline; None for a frozen leaf.
      paths: of the leaves.

    Raises:
      ValueError: a leaf has no factors.
    """
    tables = [dict(pipeline.factors or ()) for pipeline in pipelines]
    indices: dict[tuple[int, Factors], int] = {}
    made, relabelled = [], []
    for label, path in zip(labels, paths, strict=True):
        if label is None:
            relabelled.append(None)
            continue
        pipeline, table = pipelines[label], tables[label]
        if table and path not in table:
            raise ValueError(
                f"params must be those that mup was told of, {list(table)}, got a leaf at"
                f" {path!r}: write mup(adamw, base, params)."
            )
        key = label, table.get(path, Factors())
        if key not in indices:
            indices[key] = len(made)
            made.append(_with_factors(pipeline, key[1]))
        relabelled.append(indices[key])
    return tuple(made) or pipelines, relabelled


def _with_factors(pipeline: "Pipeline", factors: Factors) -> "Pipeline":
    """The pipeline with its numbers multiplied by the factors."""
    units = factors.by_unit()
    stages: list[Leaf] = []
    for stage in pipeline.stages:
        stages.append(stage.with_rule(rescaled(stage.rule, units)))
        if Unit.LEARNING_RATE in units_of(stage.rule):
            units[Unit.WEIGHT_DECAY] = 1.0  # Later decay is not multiplied by the learning rate.
    return dataclasses.replace(pipeline, stages=tuple(stages), factors=None)
