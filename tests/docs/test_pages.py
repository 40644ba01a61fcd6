"""The documentation: its code prints the expected output, its commands and links exist."""

import builtins
import contextlib
import importlib.metadata
import importlib.util
import inspect
import io
import re
import tomllib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from packaging.version import Version

import adam_jax
from tests.catalogue.pages import (
    DOCS,
    PAGES,
    ROOT,
    commands,
    installed_before_samples,
    name_of,
    needed_by_samples,
    samples,
)

README = ROOT / "README.md"
TUNIX = DOCS / "train-an-llm.md"  # Run by tests.trainers, where Tunix is installed.
WITH_SAMPLES = [page for page in PAGES if samples(page) and page != README]
WITH_COMMANDS = [page for page in PAGES if commands(page)]


# Optional modules and their distributions: a page must say to install them.
OPTIONAL = {
    "PIL": "pillow",
    "equinox": "equinox",
    "flatbuffers": "flatbuffers",
    "flax": "flax",
    "keras": "keras",
    "matplotlib": "matplotlib",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "tornado": "tornado",
}
PEERS = ("equinox", "torch", "keras")  # In a separate dependency group.


def lacking(page):
    """For each sample, the peers and newer packages that it needs and that are not installed."""
    rows = zip(samples(page), needed_by_samples(page), strict=True)
    return [
        [*peers_lacking(code), *map(" ".join, filter(is_newer, its))] for (code, _), its in rows
    ]


def peers_lacking(code):
    imported = re.findall(r"\w+", " ".join(re.findall(r"^import (.*)$", code, re.MULTILINE)))
    return [name for name in PEERS if name in imported and not importlib.util.find_spec(name)]


def is_newer(package):
    name, needed = package
    return Version(importlib.metadata.version(name)) < Version(needed)


@contextlib.contextmanager
def only(there):
    """Lets samples and this package import an optional library only if the page installs it."""
    real = builtins.__import__

    def checked(name, globals=None, locals=None, fromlist=(), level=0):
        # Samples have globals without a name; a library may call `__import__` without globals.
        importer = "" if globals is None else globals.get("__name__", "builtins")
        distribution = OPTIONAL.get(name.partition(".")[0]) if level == 0 else None
        if importer.startswith(("builtins", "adam_jax", "examples")) and distribution:
            assert distribution in there, f"{name}: the page does not say to install it before"
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = checked
    try:
        yield
    finally:
        builtins.__import__ = real


def run(page):
    """Runs the blocks of a page; returns the last names, printed and expected output of each.

    A block that imports adam_jax and more is complete: it starts with an empty namespace.
    """
    names, printed, expected = {}, [], []
    installed = installed_before_samples(page)
    for (code, output), there, missing in zip(samples(page), installed, lacking(page), strict=True):
        if missing:
            continue
        if re.search(r"^import adam_jax,", code, re.MULTILINE):
            names = {}
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), only(there):
            exec(compile(code, str(page), "exec"), names)
        if output is not None:
            printed.append(stream.getvalue())
            expected.append(output)
    return names, printed, expected


def marks_of(page):
    """`make test` runs the samples that a new user sees first."""
    imported = any(f"import {name}" in code for code, _ in samples(page) for name in PEERS)
    first = name_of(page) in ("README.md", "docs/index.md")
    return [pytest.mark.peers] * imported + [pytest.mark.slow] * (not first)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras 3.15, of its variables.
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=marks_of(page)) for page in WITH_SAMPLES if page != TUNIX],
    ids=name_of,
)
def test_the_samples_run_and_print_what_stands_behind_them(
    page, tmp_path, monkeypatch, standard_promotion
):
    monkeypatch.chdir(tmp_path)  # Some samples write files.
    matplotlib.use("agg")
    _, printed, expected = run(page)
    assert printed == expected
    if missing := {name for its in lacking(page) for name in its}:
        pytest.skip(f"some samples need {', '.join(sorted(missing))}: make test-peers")


@pytest.mark.parametrize("page", WITH_SAMPLES, ids=name_of)
def test_the_lines_of_samples_fit_beside_the_navigation(page):
    lines = [line for code, _ in samples(page) for line in code.splitlines()]
    assert [line for line in lines if len(line) > 84] == []


def test_every_page_of_the_guide_has_a_sample():
    guide = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    guide = {name for name in guide if not name.startswith("api/")}
    without = guide - {page.relative_to(DOCS).as_posix() for page in WITH_SAMPLES}
    assert not without


@pytest.mark.smoke
def test_the_sample_of_the_readme_finds_the_parameters():
    names, _, _ = run(README)
    np.testing.assert_allclose(names["params"]["w"], [1.0, -2.0, 0.5], atol=0.02)
    np.testing.assert_allclose(names["params"]["b"], 4.0, atol=0.02)


def check_module(name, words):
    """Its source, or that of its package or of examples/shared, has the words of a command."""
    spec = importlib.util.find_spec(name)
    assert spec, name
    files = [*(ROOT / "examples" / "shared").glob("*.py"), Path(spec.origin)]
    if spec.submodule_search_locations:
        assert importlib.util.find_spec(f"{name}.__main__"), name
        files += Path(spec.origin).parent.rglob("*.py")
    source = "".join(file.read_text() for file in files)
    named = re.findall(r"--[\w-]+", " ".join(words))
    named += [word for word in words[:1] if re.fullmatch(r"[a-z-]+", word)]
    for word in named:
        assert f'"{word}"' in source or f'"{word.strip("-")}"' in source, (name, word)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_name_what_there_is(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(page):
        program, *words = re.sub(r"^python -m (?=pip|pytest)", "", command).split()
        if program == "python" and words[0] == "-m":
            check_module(words[1], words[2:])
        elif program in ("python", "pytest"):
            paths = re.findall(r"\S+\.py", command)
            saved = re.findall(r"^Save this as `(.*)`", page.read_text(), re.MULTILINE)
            assert paths and all((ROOT / x).exists() or x in saved for x in paths), command
        elif program == "make":
            assert set(words) <= set(targets), command
        elif program == "pip":
            for names in re.findall(r"\[([a-z,]+)\]", command):
                assert set(names.split(",")) <= set(project["optional-dependencies"]), command
        else:
            others = ("git ", "cd ", "cmp ", "python3 -m venv", "source ")
            assert command.startswith(others), command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page):
    """Links in the repository; `mkdocs build --strict` checks those of the site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for path, _, anchor in re.findall(r"\]\(((?!http)[^)#\s]*)(#([^)\s]*))?\)", text):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor and not anchor.startswith("adam_jax."):  # From docstrings.
            assert anchor in anchors(target.read_text()), f"{path}#{anchor}"


def anchors(text):
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


ALL, TYPES = DOCS / "api" / "index.md", DOCS / "api" / "types.md"


def public_names():
    """The public names without `adam_jax.`, those of its modules included."""
    modules = [name for name in adam_jax.__all__ if inspect.ismodule(getattr(adam_jax, name))]
    assert {"sharding", "inspect", "schedules"} <= set(modules)
    names = set(adam_jax.__all__) - set(modules)
    for module in modules:
        names |= {f"{module}.{name}" for name in getattr(adam_jax, module).__all__}
    return sorted(names)


def test_the_reference_has_every_public_name():
    """With the pages of members, which the site's hook makes, and but for types of arguments."""
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    documented = re.findall(r"^::: adam_jax\.(\S+)$", text, re.MULTILINE)
    # Functions named like their module.
    documented = [re.sub(r"\b(\w+)\.\1$", r"\1", name) for name in documented]
    documented.remove("trainers.keras.Optimizer")  # Needs Keras.
    members = [
        name
        for name in adam_jax.__all__
        if getattr(getattr(adam_jax, name), "__module__", "").startswith("adam_jax.family.")
    ]
    types = [name for name in documented if name not in public_names()]
    assert sorted([*documented, *members]) == sorted([*public_names(), *types])
    assert types == [name for name in types if f"::: adam_jax.{name}\n" in TYPES.read_text()]


def test_all_of_adam_jax_has_every_public_name_once():
    assert sorted(name for name, _ in rows_of_all()) == public_names()


@pytest.mark.slow
def test_the_examples_of_all_of_adam_jax_run(tmp_path, monkeypatch, standard_promotion):
    monkeypatch.chdir(tmp_path)
    names, _, _ = run(ALL)
    for name, example in rows_of_all():
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", example), example
        exec(example, names)


def rows_of_all():
    return re.findall(r"^\| `([\w.]+)` \| .* \| `(.+)` \|$", ALL.read_text(), re.MULTILINE)


def test_no_page_asks_another_host_for_anything():
    """Links may lead to other hosts; pictures, scripts and styles may not."""
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings and "http" not in settings
    for page in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(http|<(img|script|link|iframe)\b", page.read_text())
    assert "http" not in (DOCS / "site.css").read_text().replace("http://www.w3.org", "")
