"""Adam's paper on two cores: figures 1, 2 and 4, and the counterexample of the AMSGrad paper.

Each figure is recomputed at a small scale, and this run decides each claim about it: the table of
claims shows which held. Kingma & Ba 2015, https://arxiv.org/abs/1412.6980; Reddi, Kale & Kumar
2018, https://arxiv.org/abs/1904.09237.
"""

import dataclasses
import itertools
from typing import Any

from examples.mnist import data
from examples.shared.study import Parser, Study, command
from examples.studies.paper import claims, counterexample, logistic, mlp, plots, vae

FIGURES: dict[str, Any] = {
    "figure1": logistic,
    "figure2": mlp,
    "figure4": vae,
    "counterexample": counterexample,
}
PICTURES = {
    "figure1": plots.race,
    "figure2": plots.race,
    "figure4": plots.correction,
    "counterexample": plots.regret,
}


def main(argv: list[str] | None = None) -> None:
    """Computes the figures, plots them, and decides the claims."""
    parser = Parser("studies.paper", __doc__, fast=34, full=529)
    parser.add_argument("--only", choices=FIGURES, help="one figure (default: all)")
    options = parser.options(argv)
    chosen = [options.only] if options.only else list(FIGURES)
    scales = {name: m.FAST if options.fast else m.FULL for name, m in FIGURES.items()}
    digits = data.load()

    settings = {name: dataclasses.asdict(scale) for name, scale in scales.items()}
    settings |= {"seed": options.seed}
    study = Study(options.out, settings)
    pieces = {name: FIGURES[name].pieces(digits, scales[name], options.seed) for name in chosen}
    results = study.run(itertools.chain(*pieces.values()))

    found = []
    for name in chosen:
        # By the names of the pieces, which start with the name of the figure.
        own = {p.name.removeprefix(f"{name} "): results[p.name] for p in pieces[name]}
        title = FIGURES[name].title(scales[name])
        PICTURES[name](own, title, options.out / f"{name}.png")
        print(f"{title}: {options.out}/{name}.png")
        found += FIGURES[name].claims(own)
    if options.fast:
        return
    print(study.table(claims.COLUMNS, [claim.row() for claim in found], "table"))


if __name__ == "__main__":
    command(main)
