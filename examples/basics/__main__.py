"""Small experiments with Adam, each a page: a plot and a few lines of findings.

network          the parameters of a 2-3-1 network during training
logistic         a 3 or an 8? Adam's weights next to SGD's
least-squares    distance to the exact solution, with constant and decaying learning rates
constraints      a box around the parameters; L2 against decoupled weight decay
contours         paths of Adam, RMSprop and SGD on Rosenbrock's and Beale's functions
bias-correction  its effect on the first 100 steps
clipping         vanishing and exploding gradients, and clip_by_global_norm
"""

from examples.basics import (
    bias_correction,
    clipping,
    constraints,
    contours,
    least_squares,
    logistic,
    network,
)
from examples.basics.page import Page, Setting
from examples.mnist import data
from examples.study import Piece, Study, arguments, command

PAGES: dict[str, Page] = {
    "network": network,
    "logistic": logistic,
    "least-squares": least_squares,
    "constraints": constraints,
    "contours": contours,
    "bias-correction": bias_correction,
    "clipping": clipping,
}


def main(argv: list[str] | None = None) -> None:
    """Computes the missing pages, writes their plots, prints the findings."""
    parser = arguments("examples.basics", __doc__)
    parser.add_argument(
        "page", nargs="?", choices=list(PAGES), metavar="PAGE", help="one of the above; else all"
    )
    options = parser.parse_args(argv)
    data_dir = str(options.data_dir) if options.data_dir else None
    study = Study(options.out, {"seed": options.seed, "fast": options.fast, "data_dir": data_dir})
    setting = Setting(options.seed, data.load(options.data_dir), options.fast)
    wanted = {name: page for name, page in PAGES.items() if options.page in (None, name)}
    results = study.run(
        Piece(name, lambda page=page: page.compute(setting)) for name, page in wanted.items()
    )
    for name, page in wanted.items():
        page.picture(results[name], study.folder / f"{name}.png")
        study.say(f"\n{name}: {study.folder / name}.png")
        for line in page.findings(results[name]):
            study.say(f"  {line}")
    done = {name: page for name, page in PAGES.items() if name in study.done}
    study.table(
        ["page", "finding"],
        [(name, line) for name, page in done.items() for line in page.findings(study.done[name])],
        "table",
    )


if __name__ == "__main__":
    command(main)
