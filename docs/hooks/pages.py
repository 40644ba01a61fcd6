"""MkDocs hook: adds pages whose source is elsewhere, one for each member, and rewrites links.

Links in the sources work in the repository. This hook rewrites each one for the site: to the page
made from its target, or to plain text if the target is not a page. It also keeps short code in
tables on one line, which Markdown cannot express.
"""

import ast
import importlib.util
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "benchmarks.md": "benchmarks/RESULTS.md",
    "compiled.md": "benchmarks/COMPILED.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "examples.md": "examples/README.md",
    "serving.md": "examples/mnist/README.md",
}
NOTEBOOKS = ROOT / "examples" / "notebooks"
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
NAME = re.compile(r"^\| `(?P<name>[\w.]+)`", re.MULTILINE)
# Short code without spaces in a table stays on one line.
WORD = re.compile(r"<code>(?=[^<\s]{1,30}</code>)")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
FONT = "fonts/STIXTwoMath-Regular.ttf"  # From ziamath: the only font on PyPI for MathML.


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are outside of docs/, the members, and the font of the formulas."""
    for uri, path in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for uri, text in members():
        files.append(File.generated(config, uri, content=text))
    ziamath = importlib.util.find_spec("ziamath")
    assert ziamath and ziamath.origin, "pip install --group docs"
    font = Path(ziamath.origin).parent / FONT
    files.append(File.generated(config, font.name, abs_src_path=str(font)))
    return files


def members() -> Iterator[tuple[str, str]]:
    """The page of each member: the public names of its file."""
    package = ROOT / "adam_jax"
    for node in ast.walk(ast.parse((package / "__init__.py").read_text())):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if ".family." in module:
                stem = module.rpartition(".")[2]
                tree = ast.parse((package / "family" / f"{stem}.py").read_text())
                title = re.split(r"[:,.]", ast.get_docstring(tree) or "")[0]
                # Aliases first, states last.
                public = sorted((x.name for x in names), key=lambda x: (x[0].isupper(), len(x)))
                blocks = [f"::: adam_jax.{name}" for name in public]
                yield f"api/members/{stem}.md", "\n\n".join([f"# {title}", *blocks]) + "\n"


def on_page_content(html: str, **kwargs: Any) -> str:
    """Marks code in tables that must not wrap."""
    return TABLE.sub(lambda table: WORD.sub('<code class="word">', table[0]), html)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrites the links of one page."""
    if page.file.abs_src_path is None:  # Made by another hook, with links that work in the site.
        return markdown
    folder = Path(page.file.abs_src_path).parent
    uris = {Path(file.abs_src_path): file.src_uri for file in files if file.abs_src_path}
    # Pages made by notebooks.py, which have no file.
    uris |= {path: f"notebooks/{path.stem}.md" for path in NOTEBOOKS.glob("*.ipynb")}
    here = posixpath.dirname(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        if target in uris:
            path = posixpath.relpath(uris[target], here) + (link["anchor"] or "")
            return f"{link['image']}[{link['text']}]({path})"
        inside = target.exists() and not target.is_relative_to(ROOT / "docs")
        return link["text"] if inside else link[0]

    if page.file.src_uri == "api/index.md":
        markdown = NAME.sub(linked, markdown)
    return LINK.sub(turned, markdown)


def linked(row: re.Match[str]) -> str:
    """The start of a row, with a link to what its public name documents."""
    name = row["name"]
    path = ROOT / "adam_jax" / name.replace(".", "/")
    last = f".{path.name}" if path.with_suffix(".py").exists() else ""  # named as its module
    return f"| [`{name}`][adam_jax.{name}{last}]"
