"""A pytest plugin: our names in the place of Optax's, and what became of each test, as JSON.

It runs where only the project and adam_jax are installed, so it imports nothing of these tests.
"""

import functools
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import optax
import optax.contrib
import pytest

# Defaults, since this package's own pytest imports every module in search of doctests.
OURS = os.environ.get("DOWNSTREAM_OURS") == "1"
REPORT = Path(os.environ.get("DOWNSTREAM_REPORT", os.devnull))
outcomes: dict[str, str] = {}
with_ours: set[str] = set()  # Tests in which one of our transformations was called.
running = ""


def replaced() -> dict[str, Any]:
    """Puts each function that both libraries have in its public places in Optax."""
    import adam_jax
    from adam_jax.engine.functions import Init, Update

    names = {}
    public = [m for n, m in sys.modules.items() if n.split(".")[0] == "optax" and "._" not in n]
    for name in adam_jax.__all__:
        ours = getattr(adam_jax, name)
        theirs = getattr(optax, name, getattr(optax.contrib, name, None))
        # A function there may be a functools.partial, as nadam is.
        if not inspect.isfunction(ours) or isinstance(theirs, type) or not callable(theirs):
            continue
        for module in public:
            if getattr(module, name, None) is theirs:
                setattr(module, name, ours)
                names[name] = ours
    for kind in (Init, Update):
        kind.__call__ = noted(kind.__call__)
    return names


def noted(call: Any) -> Any:
    """A method that notes the test which calls it."""

    @functools.wraps(call)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with_ours.add(running)
        return call(self, *args, **kwargs)

    return method


# When it is imported: before a conftest.py of the project does `from optax import adam`.
NAMES = replaced() if OURS else {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Remembers which test runs."""
    global running
    running = item.nodeid
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Of set-up, call and tear-down, what is worse than a pass counts."""
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported is a failure, not an absence."""
    if report.failed:
        outcomes[report.nodeid] = "failed"


def pytest_sessionfinish() -> None:
    """Writes the report."""
    used = sorted(with_ours - {""})
    found = {"outcomes": outcomes, "with_ours": used, "names": sorted(NAMES)}
    REPORT.write_text(json.dumps(found, indent=1))
