"""A pytest plugin that replaces Optax's functions by ours and writes each test's outcome as JSON.

It runs where only the project and adam_jax are installed, so it cannot import from `tests`.
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

# Defaults, because this package's own pytest imports every module to collect doctests.
OURS = os.environ.get("PEERS_OURS") == "1"
REPORT = Path(os.environ.get("PEERS_REPORT", os.devnull))
outcomes: dict[str, str] = {}
with_ours: set[str] = set()  # Tests that called one of our transformations.
running = ""


def replaced() -> dict[str, Any]:
    """Replaces each function that both libraries have, wherever Optax exports it."""
    import adam_jax
    from adam_jax.core.member import Member
    from adam_jax.core.step import Body

    names = {}
    public = [m for n, m in sys.modules.items() if n.split(".")[0] == "optax" and "._" not in n]
    for name in adam_jax.__all__:
        ours = getattr(adam_jax, name)
        theirs = getattr(optax, name, getattr(optax.contrib, name, None))
        # Optax's function may be a functools.partial, such as nadam.
        if not inspect.isfunction(ours) or isinstance(theirs, type) or not callable(theirs):
            continue
        for module in public:
            if getattr(module, name, None) is theirs:
                setattr(module, name, ours)
                names[name] = ours
    Member.init, Body.update = noted(Member.init), noted(Body.update)
    return names


def noted(call: Any) -> Any:
    @functools.wraps(call)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with_ours.add(running)
        return call(self, *args, **kwargs)

    return method


# At import, before a conftest.py of the project runs `from optax import adam`.
NAMES = replaced() if OURS else {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    global running
    running = item.nodeid
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Records the worst outcome of set-up, call and tear-down."""
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Records a file that cannot be imported as a failure."""
    if report.failed:
        outcomes[report.nodeid] = "failed"


def pytest_sessionfinish() -> None:
    used = sorted(with_ours - {""})
    found = {"outcomes": outcomes, "with_ours": used, "names": sorted(NAMES)}
    REPORT.write_text(json.dumps(found, indent=1))
