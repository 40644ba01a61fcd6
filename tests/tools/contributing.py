"""Generates the parts of CONTRIBUTING.md made from code: two tables, and four diffs.

python -m tests.tools.contributing    writes them to the page
"""

import re
import tomllib
from pathlib import Path

from examples.shared.pages import replaced
from tests.tools.mutations import MUTATIONS, TESTS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"

# Each layer may import itself and those before it. The text is its content.
LAYERS = {
    "_types": "type aliases for arguments and results",
    "_compat": "differences between versions of JAX",
    "validation": "checks of arguments, of numbers and functions, and their errors",
    "pytrees": "`frozen_pytree`, the base of rules, stages and bodies",
    "slots": "an accumulator: its name, and its properties for rules and formats",
    "xla": "workarounds for XLA: one file per habit, with its figure and its test",
    "numerics": "arithmetic of arrays: roots, quotients, sums, `exact`",
    "rates": "decay rates: split, scheduled, and the products of those that were applied",
    "rules": "what a rule is and sees; Adam's moments and directions, weight decay, learning rate",
    "formats": "storage of one slot of one leaf",
    "kernels": "the program of a leaf as one kernel on TPUs; imported when a leaf may need it",
    "core": "`Step`, which passes through; the plan and the program of a leaf; trees and states",
    "roles": "what each leaf is, by its name; the usual mask of weight decay",
    "adam_mini": "Adam-mini's partition of a transformer, by roles",
    "schedules": "schedules that Optax lacks",
    "family": "one file per paper: its rule or its moments, its `scale_by_*`, its aliases",
    "sphere": "matrices of constant norm: `scale_on_sphere`, `adamh`",
    "modifiers": "changes of a member: rule and function side by side; kernels and stacked layers",
    "wrap": "wrappers of transformations: accumulate, chain, clip, ema, skip, telemetry, weights",
    "groups": "hyperparameters or optimizers for groups of leaves",
    "hyperparams": "hyperparameters in the state",
    "spreading": "`sharding.spread`: whole matrices, each on one device",
    "sharding": "the state sharded over devices, or in host memory",
    "convert": "states in other formats, and from and to other libraries",
    "inspect": "memory, predicted; what happens to each leaf; records, live; layout of tables",
    "transfer": "hyperparameters for larger models, batches, runs: muP, CompleteP, scaling rules",
    "trainers": "optimizers of Keras; imported by nothing here, since each needs its trainer",
    "__init__": "the public names",
    "__main__": "`python -m adam_jax`: versions, devices, dtypes; `watch`; `convert`",
}

# The smallest example of each kind: files, and the beginnings of the first and last line shown.
EXAMPLES: dict[str, list[tuple[str, str, str]]] = {
    "member": [
        ("adam_jax/family/adamax.py", "class DecayingMax:", '        return leaf.new["nu"]'),
        ("adam_jax/family/adamax.py", "class Ratio(", "        return divide("),
        ("adam_jax/family/adamax.py", "def scale_by_adamax(", ") -> Transformation:"),
        ("adam_jax/family/adamax.py", "    nu = DecayingMax(", "    return scale_by_rule("),
        ("adam_jax/family/adamax.py", "def adamax(", ") -> Transformation:"),
        ("adam_jax/family/adamax.py", '    return alias("adamax"', "    return"),
        ("adam_jax/__init__.py", "from adam_jax.family.adamax import", "from"),
        ("tests/catalogue/__init__.py", '    Member("adamax"', "    Member"),
        ("tests/catalogue/oracles.py", "def adamax(", "        yield"),
    ],
    "modifier": [
        ("adam_jax/modifiers.py", "class Cautious(", "        return u * "),
        ("adam_jax/modifiers.py", "def cautious(", "def"),
        ("adam_jax/modifiers.py", "    return modified(cautious, tx", "    return"),
        ("tests/catalogue/modifiers.py", '    "cautious": adam_jax', "    "),
    ],
    "format": [
        ("adam_jax/formats/rounding.py", "class Rounded:", "        return jax.tree.map("),
        ("tests/catalogue/low_precision.py", '    "stochastic bfloat16"', "    "),
    ],
    "wrapper": [
        ("adam_jax/wrap/clip.py", "class ClipByGlobalNorm(", "        return step.times("),
        ("adam_jax/wrap/clip.py", "def clip_by_global_norm(", "def"),
        ("adam_jax/wrap/clip.py", "    return Transformation.around(ClipBy", "    return"),
        ("adam_jax/__init__.py", "from adam_jax.wrap.clip import", "from"),
    ],
}


def table() -> str:
    """The layers as a table, in the order in which they import each other."""
    rows = (f"| `{name}` | {holds} |" for name, holds in LAYERS.items())
    return "\n".join(("| layer | holds |", "|---|---|", *rows))


def mutations() -> str:
    """The bugs that tests must find, with the files of those tests."""
    rows = (f"| {x} | `{file}` | `{TESTS[file]}` |" for file in MUTATIONS for x in MUTATIONS[file])
    return "\n".join(("| bug | in `adam_jax/` | found in `tests/` |", "|---|---|---|", *rows))


def diff(kind: str) -> str:
    """The lines that were added for the smallest example of a kind."""
    lines, last, stop = ["```diff"], None, 0
    for file, first, end in EXAMPLES[kind]:
        text = (ROOT / file).read_text().splitlines()
        before = stop if file == last else -1
        start = next(i for i, line in enumerate(text) if i > before and line.startswith(first))
        stop = next(i for i, line in enumerate(text) if i >= start and line.startswith(end))
        while text[start - 1].startswith("@"):
            start -= 1
        part = text[start : stop + 1]
        lines += [f"+++ b/{file}"] if file != last else ["@@"]
        lines += ["+" + line for line in part]
        last = file
    return "\n".join([*lines, "```"])


def written(page: str) -> str:
    parts = {"layers": table(), "mutations": mutations()}
    parts |= {kind: diff(kind) for kind in EXAMPLES}
    return replaced(page, {name: f"\n{part}\n" for name, part in parts.items()})


# Pages with the address of the repository, which are written as well.
ADDRESSED = [ROOT / name for name in ("CITATION.cff", "README.md", "docs/index.md")]


def addressed(text: str) -> str:
    """The text with the repository's address from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    place = r"(git clone |repository-code: |\[repository\]\()[^\s)]+"
    return re.sub(place, rf"\g<1>{project['urls']['Repository']}", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    for path in ADDRESSED:
        path.write_text(addressed(path.read_text()))
