"""Do the hyperparameters of a small model hold for a wide one, a deep one, and larger batches?

An MLP on digits (widths 64 to 1,024) and a transformer on characters (32 to 256) are trained at a
grid of learning rates in the standard parametrization and in muP; a residual MLP (2 to 32 blocks)
in the standard one and in CompleteP; the transformer with batches of 16 to 512 windows, its
hyperparameters scaled with the batch and left alone. `adam_jax.transfer` makes the numbers.

Writes OUT/widths.png, depths.png, batches.png, table.md and a CSV file of each. Under an hour on
two cores; stopped at any moment, the same command goes on.
"""

import dataclasses
import functools
from typing import Any

from examples import study
from examples.study import Piece, Study
from examples.transfer import plan, report
from examples.transfer.plan import SCALES, Batches, Sweep
from examples.transfer.train import Data, losses


def pieces(parts: tuple[Any, ...], datas: dict[str, tuple[Data, int]], seed: int) -> list[Piece]:
    """The whole work: a piece for each size and parametrization."""
    made = []
    for part in parts:
        scales = (True, False) if isinstance(part, Batches) else SCALES
        for size in part.sizes:
            for scale in scales:
                piece = functools.partial(_piece, part, size, scale, datas, seed)
                made.append(
                    Piece(report.name(part, size, scale), piece, _seconds(part, size, scale))
                )
    return made


def _seconds(part: Sweep | Batches, size: int, scale: Any) -> float:
    if isinstance(part, Batches):
        return part.seconds * part.seeds
    runs = len(getattr(part, scale)) * part.seeds
    return runs * part.seconds[part.sizes.index(size)]


def _piece(
    part: Sweep | Batches,
    size: int,
    scale: Any,
    datas: dict[str, tuple[Data, int]],
    seed: int,
) -> study.Result:
    data, vocabulary = datas["text" if isinstance(part, Batches) else part.model]
    seeds = range(seed, seed + part.seeds)
    if isinstance(part, Batches):
        run, rate = part.run(size, scale, vocabulary)
        return {"rates": [rate], **losses(run, data, [rate], seeds)}
    its_rates = getattr(part, scale)
    run = part.run(size, scale, vocabulary)
    return {"rates": its_rates, **losses(run, data, its_rates, seeds)}


def main(argv: list[str] | None = None) -> None:
    """The command."""
    arguments = study.arguments("examples.transfer", __doc__).parse_args(argv)
    parts = plan.FAST if arguments.fast else (plan.WIDTHS, plan.TEXT, plan.DEPTHS, plan.BATCHES)
    settings = {"parts": [dataclasses.asdict(part) for part in parts], "seed": arguments.seed}
    settings["data_dir"] = arguments.data_dir and str(arguments.data_dir)
    work = Study(arguments.out, settings)
    digits = plan.digits(arguments.data_dir, arguments.fast), 0
    datas = {"mlp": digits, "residual": digits, "text": plan.text()}
    todo = pieces(parts, datas, arguments.seed)
    left = sum(piece.cost for piece in todo if piece.name not in work.done)
    work.say(f"{len(todo)} pieces; on two cores about {study.clock(left)}")
    found = work.run(todo)
    report.write(work, parts, found)


if __name__ == "__main__":
    study.command(main)
