"""The structure of the package: direction of imports, length of files, and the public API page."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from pathlib import Path

import pytest

import adam_jax
from tests.catalogue.scripts import process
from tests.tools import contributing

ROOT = Path(adam_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ORDER = list(contributing.LAYERS)
# Only the core and the layers above it may import Optax.
WITHOUT_OPTAX = {"formats", "kernels", "numerics", "pytrees", "rules", "slots", "validation", "xla"}


def layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path):
    """Each imported name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield from (f"{base}.{a.name}" for a in node.names) if base == "adam_jax" else [base]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_the_list(path):
    own = layer(path)
    assert own in ORDER, f"{own} has no place in the order of imports"
    for name in imported(path):
        top, *rest = name.split(".") if name != "adam_jax" else (name, "__init__")
        if top == "adam_jax":
            assert ORDER.index(rest[0]) <= ORDER.index(own), f"{own} imports {name}"
        else:
            extra = {"rich"} if path.name == "watch.py" else set()  # adam_jax[watch]
            assert top in sys.stdlib_module_names | {"jax", "optax", "numpy"} | extra, name
            assert top != "optax" or own not in WITHOUT_OPTAX, f"{own} imports optax"


@pytest.mark.parametrize("folder", ["adam_jax", "examples", "benchmarks", "tests"])
def test_files_are_short(folder):
    lengths = {p: len(p.read_text().splitlines()) for p in (ROOT.parent / folder).rglob("*.py")}
    assert lengths
    assert {str(p): n for p, n in lengths.items() if n > 600} == {}


# Folders with tests of several folders of the package, and folders that tests share.
OTHER_TESTS = {"benchmarks", "docs", "examples", "peers", "project"}
SHARED = {"catalogue", "tools", "trainers", "typing"}


def test_tests_have_the_folders_of_the_package():
    """A module with tests in several files has a folder of them."""
    tests = ROOT.parent / "tests"
    with_tests = {path.parent.name for path in tests.rglob("test_*.py") if path.parent != tests}
    packages = {path.parent.name for path in ROOT.rglob("*.py") if path.parent != ROOT}
    packages.remove("trainers")  # Needs other libraries: tests/peers.
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert with_tests - modules == packages | OTHER_TESTS
    folders = {path.parent.name for path in tests.glob("*/*.py")}
    assert folders == with_tests | SHARED


def test_no_test_imports_another():
    for path in (ROOT.parent / "tests").rglob("*.py"):
        assert not re.search(r"^\s*from tests\S*\btest_\w+ import", path.read_text(), re.M), path


def test_each_habit_of_xla_has_its_test_and_its_end():
    habits = [p for p in (ROOT / "xla").glob("*.py") if p.stem != "__init__"]
    tests = ROOT.parent / "tests" / "xla"
    assert {f"test_{p.name}" for p in habits} == {p.name for p in tests.glob("*.py")}
    for path in habits:
        header = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert re.search(r"jax 0\.\d+", header), path.name
        assert re.search(rf"Delete .*tests/xla/test_{path.name}", header, re.DOTALL), path.name


def test_a_member_is_one_short_file():
    """With its own rule or moments, its `scale_by_*`, its aliases and its state."""
    lengths = {p.stem: lines_of_code(p) for p in (ROOT / "family").glob("*.py")}
    assert {"adam", "adamax", "amsgrad", "adabelief", "yogi", "lamb"} <= set(lengths)
    assert max(lengths.values()) <= 150, lengths


def lines_of_code(path: Path) -> int:
    """Lines without docstrings, which document every argument."""
    text = path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, documented)]
    strings = [n.body[0] for n in nodes if ast.get_docstring(n)]
    return len(text.splitlines()) - sum(s.end_lineno - s.lineno + 1 for s in strings)


def test_the_layers_and_the_diffs_of_contributing_are_those_of_the_code():
    """Run `python -m tests.tools.contributing` to update the page."""
    page = contributing.PAGE.read_text()
    assert contributing.written(page) == page
    assert len(re.findall(r"^\+class ", page, re.MULTILINE)) >= 4


def test_the_address_of_the_repository_is_that_of_the_project():
    """Run `python -m tests.tools.contributing` to update the pages."""
    citation, *pages = texts = [path.read_text() for path in contributing.ADDRESSED]
    assert [contributing.addressed(text) for text in texts] == texts
    address = re.search(r"^repository-code: (https://\S+)$", citation, re.MULTILINE)[1]
    assert sum(page.count(address) for page in pages) >= 2


def test_the_public_page_is_sorted_and_complete():
    names = adam_jax.__all__
    assert sorted(names) == list(names)
    assert all(getattr(adam_jax, name).__doc__ for name in names)


@pytest.mark.smoke
def test_importing_starts_no_backend_and_changes_no_setting():
    code = (
        "import jax; before = dict(jax.config.values)\n"
        "import adam_jax\n"
        "adam_jax.adamw(1e-3, weight_decay=lambda count: 0.1)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends\n"
        "assert {k: jax.config.values[k] for k in before} == before\n"
    )
    process("-c", code)


def classes():
    """Every class of the package, listed in the module that defines it."""
    modules = pkgutil.walk_packages(adam_jax.__path__, "adam_jax.")
    for module in [m for m in modules if m.name != "adam_jax.trainers.keras"]:  # Needs Keras.
        for x in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(x) and x.__module__ == module.name:
                yield x


def function_of(x):
    """The function of a method, a property, a class method; None for another attribute."""
    if isinstance(x, property):
        return x.fget
    if isinstance(x, functools.cached_property):
        return x.func
    x = getattr(x, "__func__", x)
    return x if inspect.isfunction(x) else None


def is_concrete(x):
    """Not abstract, and with a body that does more than raise an error."""
    if (f := function_of(x)) is None or getattr(f, "__isabstractmethod__", False):
        return False
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(f))).body
    body = definition.body[ast.get_docstring(definition) is not None :]
    return not all(isinstance(statement, ast.Raise) for statement in body)


def overridden(cls):
    """The methods with which this class overrides those of other classes of the package."""
    for name, own in vars(cls).items():
        for base in cls.__mro__[1:]:
            theirs = vars(base).get(name)
            ours = base.__module__.startswith("adam_jax.")
            if ours and not name.startswith("__") and theirs is not own and is_concrete(theirs):
                yield f"{cls.__module__}.{cls.__qualname__}.{name} of {base.__qualname__}"


def test_no_class_overrides_a_concrete_method():
    """A method of a base class does the same in all subclasses."""
    found = sorted(o for cls in set(classes()) for o in overridden(cls))
    assert found == []
