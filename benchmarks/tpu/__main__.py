"""Compiles optimizer steps for TPUs without having one, and analyses the programs; runs nothing.

python -m benchmarks.tpu [--generation v5e] [--only WORD] [--side N | --shape 1024,16,64]
                         [--bundles] [--libtpu FOLDER]
python -m benchmarks.tpu --gate

Each case is a step of one leaf. FOLDER has the compiler, `pip install --no-deps --target FOLDER
libtpu==0.0.52`; without it JAX's own search is used.
"""

import argparse
from importlib import metadata

import jax

from benchmarks.tpu import gate
from benchmarks.tpu.cases import BASE, CASES, leaf
from benchmarks.tpu.machine import GENERATIONS, USUAL, libtpu_version, use_libtpu_of
from benchmarks.tpu.rows import COLUMNS, measure
from examples.options import positive

SIDE = 8192  # A smaller leaf stays largely in VMEM, where bytes and temporaries do not count.


def shape_of(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise argparse.ArgumentTypeError(
            f"must be two or more positive integers with commas between them, as 1024,16,64,"
            f" got {text!r}"
        )
    return shape


def table(args: argparse.Namespace) -> None:
    """Prints row by row."""
    shape = args.shape or (args.side,) * 2
    params = leaf(shape)
    print(f"\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for generation in args.generation or USUAL:
        base = measure(generation, BASE, params)
        for name in (name for name in CASES if args.only in name):
            counted = shape if args.bundles else None
            row = base if name == BASE else measure(generation, name, params, base, counted)
            cells = (cell(row.get(column)) for column in COLUMNS)
            print(f"| {' | '.join(cells)} |", flush=True)


def cell(x: object) -> str:
    if x is None:
        return ""
    return f"{x:.2f}" if isinstance(x, float) else str(x)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--libtpu", metavar="FOLDER", help="the folder with the wheel")
    arguments.add_argument(
        "--generation",
        action="append",
        choices=list(GENERATIONS),
        help=f"of TPUs, may be repeated; default: {', '.join(USUAL)}",
    )
    arguments.add_argument("--only", metavar="WORD", default="", help="cases with it in their name")
    what = arguments.add_mutually_exclusive_group()
    what.add_argument("--side", metavar="N", type=positive, default=SIDE, help="a leaf of N x N")
    what.add_argument("--shape", metavar="N,N,...", type=shape_of, help="a leaf of this shape")
    arguments.add_argument(
        "--bundles", action="store_true", help="count the instructions of kernels: seconds for each"
    )
    arguments.add_argument(
        "--gate",
        action="store_true",
        help="check a few rows in two minutes; exit status 1 if one fails",
    )
    args = arguments.parse_args()
    jax.config.update("jax_platforms", "cpu")  # Do not use a TPU of this machine.
    try:
        use_libtpu_of(args.libtpu)
    except ModuleNotFoundError as missing:
        arguments.exit(2, f"{missing}\n")
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "optax")}
    versions["libtpu"] = libtpu_version()
    print(", ".join(" ".join(version) for version in versions.items()), flush=True)
    if args.gate:
        arguments.exit(gate.run())
    table(args)


if __name__ == "__main__":
    main()
