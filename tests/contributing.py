"""Generates the parts of CONTRIBUTING.md made from code: two tables, and four diffs.

python -m tests.contributing    writes them to the page
"""

from pathlib import Path

from examples.pages import replaced
from tests.mutations import MUTATIONS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"

# Each layer may import itself, `_types`, `_compat` and the named layers. The text is its content.
LAYERS: dict[str, tuple[set[str], str]] = {
    "_types": (set(), "type aliases for arguments and results"),
    "_compat": (set(), "differences between versions of JAX"),
    "validation": (set(), "checks of numeric arguments, and their errors"),
    "slots": (set(), "an accumulator: its name, and its properties for rules and formats"),
    "xla": (set(), "workarounds for XLA: one file per habit, with its figure and its test"),
    "rules": (
        {"slots", "xla", "validation"},
        "arithmetic on arrays: moments, directions, and the modifiers that wrap them",
    ),
    "formats": ({"slots", "xla", "validation"}, "storage of one slot of one leaf"),
    "engine": (
        {"rules", "formats", "slots", "xla", "validation"},
        "the program of a leaf, from rules and formats; trees, states, pipelines, `step`",
    ),
    "schedules": ({"validation"}, "learning-rate schedules that Optax lacks"),
    "family": (
        {"engine", "rules", "formats", "slots", "xla", "validation"},
        "one file per paper: its `scale_by_*`, its aliases, its rule if it needs one of its own",
    ),
    "modify": (
        {"family", "engine", "xla", "rules", "formats", "slots", "validation"},
        "edits of our own pipelines: modifiers, groups, hyperparameters in the state",
    ),
    "wrap": (
        {"modify", "engine", "xla", "rules", "formats", "slots", "validation"},
        "wrappers of any transformation: accumulate, chain, clip, ema, skip, telemetry, weights",
    ),
    "sharding": (
        {"engine", "rules", "formats", "slots", "validation"},
        "the state sharded over devices, or in host memory",
    ),
    "convert": (
        {"wrap", "modify", "family", "engine", "rules", "formats", "slots"},
        "states in other formats, and from and to other libraries",
    ),
    "inspect": (
        {"sharding", "wrap", "modify", "engine", "rules", "formats"},
        "memory, predicted and measured; records; the style of tables and plots",
    ),
    "transfer": (
        {"inspect", "modify", "engine", "rules", "formats", "validation"},
        "hyperparameters for larger models, batches and runs: muP, CompleteP, scaling rules",
    ),
    "__init__": (
        {"convert", "engine", "family", "formats", "inspect", "modify", "rules", "schedules"}
        | {"sharding", "transfer", "wrap"},
        "the public names",
    ),
}

# The smallest example of each kind: files, and the beginnings of the first and last line shown.
EXAMPLES: dict[str, list[tuple[str, str, str]]] = {
    "member": [
        ("adam_jax/family/adamax.py", "def scale_by_adamax(", ") -> Transformation:"),
        ("adam_jax/family/adamax.py", "    nu = DecayingMax(", "    return scale_by_rule("),
        ("adam_jax/family/adamax.py", "def adamax(", ") -> Transformation:"),
        (
            "adam_jax/family/adamax.py",
            "    return optimizer(scaled, learning_rate, l2",
            "    return",
        ),
        ("adam_jax/__init__.py", "from adam_jax.family.adamax import", "from"),
        ("tests/catalogue/__init__.py", '    Member("adamax"', "    Member"),
        ("tests/catalogue/oracles.py", "def adamax(", "        yield"),
    ],
    "modifier": [
        ("adam_jax/rules/modifiers.py", "class Cautious(", "        return jnp.where("),
        ("adam_jax/modify/modifiers.py", "def cautious(", "def"),
        ("adam_jax/modify/modifiers.py", "    return modified(cautious, tx", "    return"),
        ("tests/catalogue/modifiers.py", '    "cautious": adam_jax', "    "),
    ],
    "format": [
        ("adam_jax/formats/rounding.py", "class Rounded:", "        return np.shape(stored.values"),
        ("tests/catalogue/low_precision.py", '    "stochastic 16 bits"', "    "),
    ],
    "wrapper": [
        ("adam_jax/wrap/clip.py", "class ClipByGlobalNorm(", "        return (applied("),
        (
            "adam_jax/wrap/clip.py",
            "    return Transformation.around(ClipByGlobalNorm",
            "    return",
        ),
        ("adam_jax/__init__.py", "from adam_jax.wrap.clip import", "from"),
    ],
}


def table() -> str:
    """The layers as a table, in the order in which they import each other."""
    rows = (f"| `{name}` | {holds} |" for name, (_, holds) in LAYERS.items())
    return "\n".join(("| layer | holds |", "|---|---|", *rows))


def mutations() -> str:
    """The bugs that tests must find, with the files of those tests."""
    rows = (f"| {m.name} | `{m.file}` | `{m.tests}` |" for m in MUTATIONS)
    return "\n".join(("| bug | in `adam_jax/` | found in `tests/` |", "|---|---|---|", *rows))


def diff(kind: str) -> str:
    """The lines that were added for the smallest example of a kind."""
    lines, last = ["```diff"], None
    for file, first, end in EXAMPLES[kind]:
        text = (ROOT / file).read_text().splitlines()
        [start] = [i for i, line in enumerate(text) if line.startswith(first)]
        stop = next(i for i, line in enumerate(text) if i >= start and line.startswith(end))
        part = text[start : stop + 1]
        lines += [f"+++ b/{file}"] if file != last else ["@@"]
        lines += ["+" + line for line in part]
        last = file
    return "\n".join([*lines, "```"])


def written(page: str) -> str:
    """The page with its generated parts replaced."""
    parts = {"layers": table(), "mutations": mutations()}
    parts |= {kind: diff(kind) for kind in EXAMPLES}
    return replaced(page, {name: f"\n{part}\n" for name, part in parts.items()})


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
