"""MkDocs hook: pages of the site that are files elsewhere in the repository, and links to them.

Every link is written as it works in the repository. Here it is turned into one that works in the
site: to the page which that file became, or into mere text if the file is no page. And code in
tables is kept from being broken, for which Markdown has no word.
"""

import importlib.util
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "benchmarks.md": "benchmarks/RESULTS.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "examples.md": "examples/README.md",
    "serving.md": "examples/mnist/README.md",
}
NOTEBOOKS = ROOT / "examples" / "notebooks"
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
# Of code in a table, what has no blank in it and is short stays on one line.
WORD = re.compile(r"<code>(?=[^<\s]{1,30}</code>)")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
FONT = "fonts/STIXTwoMath-Regular.ttf"  # The one font on PyPI that can set MathML: ziamath's.


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are not in docs/, and the font of the formulas."""
    for uri, path in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    ziamath = importlib.util.find_spec("ziamath")
    assert ziamath and ziamath.origin, "pip install --group docs"
    font = Path(ziamath.origin).parent / FONT
    files.append(File.generated(config, font.name, abs_src_path=str(font)))
    return files


def on_page_content(html: str, **kwargs: Any) -> str:
    """Marks the code in tables that may not be broken."""
    return TABLE.sub(lambda table: WORD.sub('<code class="word">', table[0]), html)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns the links of one page."""
    if page.file.abs_src_path is None:  # Made by another hook, with the links of the site.
        return markdown
    folder = Path(page.file.abs_src_path).parent
    uris = {Path(file.abs_src_path): file.src_uri for file in files if file.abs_src_path}
    # The pages that notebooks.py makes; they have no file of their own.
    uris |= {path: f"notebooks/{path.stem}.md" for path in NOTEBOOKS.glob("*.ipynb")}
    here = posixpath.dirname(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        if target in uris:
            path = posixpath.relpath(uris[target], here) + (link["anchor"] or "")
            return f"{link['image']}[{link['text']}]({path})"
        inside = target.exists() and not target.is_relative_to(ROOT / "docs")
        return link["text"] if inside else link[0]

    return LINK.sub(turned, markdown)
