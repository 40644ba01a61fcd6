"""Do the hyperparameters of a small model hold for a wide one, a deep one, and larger batches?

An MLP on digits (widths 64 to 1,024) and a transformer on characters (32 to 256) are trained over a
grid of learning rates in the standard parametrization and in muP; a residual MLP (2 to 32 blocks)
in the standard one and in CompleteP. The transformer is also trained with the matrices of its
blocks on the sphere (`adamh`), over a grid of angles, and with batches of 16 to 512 windows, with
hyperparameters scaled or unchanged. `adam_jax.transfer` computes the hyperparameters.

Writes OUT/widths.png, angles.png, depths.png, batches.png, table.md and a CSV file of each. Takes
an hour on two cores; after an interruption, the same command resumes.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from examples.shared import study
from examples.shared.study import Piece, Study
from examples.studies.transfer import plan, report
from examples.studies.transfer.train import Data, Run, losses


def pieces(parts: tuple[Any, ...], datas: dict[str, tuple[Data, int]], seed: int) -> list[Piece]:
    """All work: a piece for each size and parametrization."""
    made = []
    for part in parts:
        data, vocabulary = datas[part.model]
        for size in part.sizes:
            for scale in part.scales:
                run, rates = part.run(size, scale, vocabulary)
                seeds = range(seed, seed + part.seeds)
                compute = functools.partial(_compute, run, data, rates, seeds)
                name, cost = report.name(part, size, scale), part.cost(size, scale)
                made.append(Piece(name, compute, cost, loss="training"))
    return made


def _compute(run: Run, data: Data, rates: Sequence[float], seeds: Sequence[int]) -> study.Result:
    return {"rates": rates, **losses(run, data, rates, seeds)}


def main(argv: list[str] | None = None) -> None:
    """The command."""
    arguments = study.Parser("studies.transfer", __doc__, fast=35, full=3400).options(argv)
    parts = plan.FAST if arguments.fast else plan.FULL
    settings = {"parts": [dataclasses.asdict(part) for part in parts], "seed": arguments.seed}
    work = Study(arguments.out, settings)
    digits = plan.digits(arguments.fast), 0
    text = plan.text()
    datas = {"mlp": digits, "residual": digits, "text": text, "sphere": text}
    todo = pieces(parts, datas, arguments.seed)
    found = work.run(todo)
    report.write(work, parts, found)


if __name__ == "__main__":
    study.command(main)
