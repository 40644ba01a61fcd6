"""MkDocs hook: pages of the site that are files elsewhere in the repository, and links to them.

Every link is written as it works in the repository. Here it is turned into one that works in the
site: to the page which that file became, or into mere text if the file is no page.
"""

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
}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are not in docs/."""
    for uri, path in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns the links of one page."""
    folder = Path(page.file.abs_src_path).parent
    uris = {Path(file.abs_src_path): file.src_uri for file in files if file.abs_src_path}
    here = posixpath.dirname(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        if target in uris:
            path = posixpath.relpath(uris[target], here) + (link["anchor"] or "")
            return f"{link['image']}[{link['text']}]({path})"
        inside = target.exists() and not target.is_relative_to(ROOT / "docs")
        return link["text"] if inside else link[0]

    return LINK.sub(turned, markdown)
