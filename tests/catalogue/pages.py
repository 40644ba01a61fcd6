"""Reads the documentation for tests: pages, tables, code blocks and commands."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def table(page: Path, heading: str) -> list[dict[str, str]]:
    """The first table under a heading, row by row: each row maps column names to cells."""
    section = f"\n{page.read_text()}".partition(f"\n{heading}\n")[2]
    assert section, f"{name_of(page)} has no {heading}"
    lines = re.split(r"^#+ ", section, flags=re.MULTILINE)[0].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    columns, _, *rows = rows
    return [dict(zip(columns, row, strict=True)) for row in rows]


def codes(cell: str) -> list[str]:
    """The texts between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def code(cell: str) -> str:
    """The only text between backticks."""
    [only] = codes(cell)
    return only


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def samples(page: Path) -> list[tuple[str, str | None]]:
    """The Python blocks, each with its expected output: the text block after it, or None."""
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    found = re.findall(pattern, page.read_text(), re.DOTALL | re.MULTILINE)
    return [(code, printed or None) for code, printed in found]


def installed_before_samples(page: Path) -> list[set[str]]:
    """For each Python block, the distributions that the page installs before it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name: {re.match(r"[\w-]+", line)[0] for line in lines}
        for name, lines in project["optional-dependencies"].items()
    }
    pattern = r"^```python\n.*?^```|pip install ([^\n`]*)"
    before, found = [], set()
    for match in re.finditer(pattern, page.read_text(), re.DOTALL | re.MULTILINE):
        if match[1] is None:
            before.append(set(found))
            continue
        for names in re.findall(r"\.\[([a-z,]+)\]", match[1]):
            found |= set().union(*(extras[name] for name in names.split(",")))
        found |= set(re.findall(r"(?<![\w.\[-])[a-z][\w-]*", match[1].partition("#")[0]))
    return before


def needed_by_samples(page: Path) -> list[set[tuple[str, str]]]:
    """For each Python block, packages and versions, from "needs jax >= 0.10" in its section."""
    pattern = r"^```python\n.*?^```|^#+ [^\n]*|\b(jax|optax|flax) >= ([\d.]*\d)"
    needed, found = [], set()
    for match in re.finditer(pattern, page.read_text(), re.DOTALL | re.MULTILINE):
        if match[1]:
            found.add((match[1], match[2]))
        elif match[0].startswith("#"):
            found.clear()
        else:
            needed.append(set(found))
    return needed


def commands(page: Path) -> list[str]:
    """The shell commands: each line of an sh block, and commands between backticks in the text."""
    lines = [
        line.partition("#")[0].strip()
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    quoted = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose)]
    starts = ("python -m ", "pytest ", "make ", "pip install ")
    return [line for line in lines if line] + [text for text in quoted if text.startswith(starts)]
