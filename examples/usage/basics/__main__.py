"""Small experiments with Adam, each a page: a plot and a few lines of findings (none with --fast).

least-squares    distance to the exact solution, with constant and decaying learning rates
constraints      a box around the parameters; L2 against decoupled weight decay
contours         paths of Adam, RMSprop and SGD on Rosenbrock's and Beale's functions
bias-correction  its effect on the first 100 steps
clipping         vanishing and exploding gradients, and clip_by_global_norm
"""

from examples.mnist import data
from examples.shared.study import Parser, Piece, Study, command
from examples.usage.basics import (
    bias_correction,
    clipping,
    constraints,
    contours,
    least_squares,
)
from examples.usage.basics.page import Page, Setting

PAGES: dict[str, Page] = {
    "least-squares": least_squares,
    "constraints": constraints,
    "contours": contours,
    "bias-correction": bias_correction,
    "clipping": clipping,
}


def main(argv: list[str] | None = None) -> None:
    """Computes the missing pages, writes their plots, prints the findings."""
    parser = Parser("usage.basics", __doc__, fast=22, full=27)
    parser.add_argument(
        "page", nargs="?", choices=list(PAGES), metavar="PAGE", help="one of the above; else all"
    )
    options = parser.options(argv)
    study = Study(options.out, {"seed": options.seed, "fast": options.fast})
    setting = Setting(options.seed, data.load(), options.fast)
    wanted = {name: page for name, page in PAGES.items() if options.page in (None, name)}
    results = study.run(
        Piece(name, lambda page=page: page.compute(setting)) for name, page in wanted.items()
    )
    for name, page in wanted.items():
        page.picture(results[name], study.folder / f"{name}.png")
        print(f"\n{name}: {study.folder / name}.png")
        for held, text in [] if options.fast else page.findings(results[name]):
            print(f"  {'holds' if held else 'DOES NOT HOLD'}: {text}")


if __name__ == "__main__":
    command(main)
