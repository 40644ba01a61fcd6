"""A pytest plugin that replaces Optax's members by ours in Optax's own test files.

python -m pytest -p tests.peers.optax_suite --pyargs optax._src.alias_test
"""

import functools
import os
import re
import sys
import unittest
from typing import Any

import jax
import optax
import pytest
from optax import contrib
from optax._src import test_utils

import adam_jax
from tests.catalogue.compilation import FASTER, share_contexts

ALIASES = ("adam", "adamw", "nadam", "nadamw", "amsgrad", "adamax", "adamaxw", "radam", "adabelief")
ALIASES += ("yogi", "adan", "lion", "lamb")
DIRECTIONS = ("scale_by_adam", "scale_by_amsgrad", "scale_by_adamax", "scale_by_radam")
DIRECTIONS += ("scale_by_belief", "scale_by_yogi", "scale_by_adan", "scale_by_lion")
CONTRIB = ("adopt", "ademamix", "scale_by_adopt", "scale_by_ademamix", "schedule_free_adamw")
MEMBERS = {optax: (*ALIASES, *DIRECTIONS, "scale_by_learning_rate"), contrib: CONTRIB}


class Version(str):
    """Compares versions as numbers; Optax's tests compare strings, where "0.10.2" < "0.7.2"."""

    def __lt__(self, other: str) -> bool:
        ours, theirs = ([int(n) for n in v.split(".")[:3]] for v in (self, other))
        return ours < theirs

    def __ge__(self, other: str) -> bool:
        return not self < other


ORIGINALS = {name: getattr(module, name) for module, names in MEMBERS.items() for name in names}
OURS = {name: getattr(adam_jax, name) for name in ORIGINALS}


def pytest_configure() -> None:
    """Replaces the members before the test files are imported, whose tables contain them."""
    jax.__version__ = Version(jax.__version__)
    share_contexts()
    replace(ORIGINALS, OURS)


def replace(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Replaces the given functions by others wherever Optax exports them."""
    for place in [m for n, m in sys.modules.items() if n.partition(".")[0] == "optax"]:
        for name in old:
            if getattr(place, name, None) is old[name]:
                setattr(place, name, new[name])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests of optimizers that we do not have, and duplicates."""
    left_out = [item for item in items if of_others(item) or is_a_double(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
    # sharding_test overwrites the flags at import, before XLA reads them.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FASTER}"


def parameters_of(item: pytest.Item) -> str:
    """The parameters as absl formats them: opt_name='adam', wrapper_name=None, ..."""
    return str(getattr(item.function, "__x_params_repr__", ""))  # pyright: ignore


def of_others(item: pytest.Item) -> bool:
    """Whether the test's parameters or name, as in sharding_test, contain another optimizer."""
    ours = "|".join(name for names in MEMBERS.values() for name in names)
    if "ShardingTest" in item.nodeid:
        return not re.search(f"_({ours})$", item.name)
    parameters = parameters_of(item)
    return "opt_name" in parameters and not re.search(f"'({ours})'", parameters)


def is_a_double(item: pytest.Item) -> bool:
    """Whether another test is equivalent.

    Some of the wrappers' tests run without the wrapper, as alias_test does. A mu_dtype of float32
    is the default of our Adam. Double precision is tested in float64_test.
    """
    parameters = parameters_of(item)
    wrapped = "wrapper_name" in parameters and "wrapper_name=None" not in parameters
    unused = item.name.startswith("test_state_shape_dtype") or "wrap=False" in parameters
    again = item.name.startswith("test_multi_steps_mixed_precision") and "mu_dtype" in parameters
    wider = "shard_stability" in item.name and re.search("float64|complex128", parameters)
    return again or bool(wider) or (wrapped and unused)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Names the tested members at the end, because the start of a long log may be cut."""
    replaced = [name for names in MEMBERS.values() for name in names]
    for module, names in MEMBERS.items():
        assert all(getattr(module, name) is getattr(adam_jax, name) for name in names)
    told = f"{__name__}: {len(replaced)} members of Optax replaced: {', '.join(replaced)}"
    terminalreporter.write_line(told)


# These compare Adam with b1 = 0 with Optax's RMSProp to 1e-6. Optax's two results are both 7e-6
# off the exact one, in the same direction. Ours is exact, and so 7e-6 off Optax's.
TOLERANCE = {"test_rms_match_adam": 2e-5, "test_schedule_free_adamw": 2e-5}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Raises the tolerance of tests that compare with Optax's own rounding error."""
    rtol = TOLERANCE.get(item.name)
    if rtol is None:
        return (yield)
    exact = test_utils.assert_trees_all_close
    test_utils.assert_trees_all_close = functools.partial(exact, rtol=rtol)
    try:
        return (yield)
    finally:
        test_utils.assert_trees_all_close = exact


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Fails a test that is skipped with our members but runs with Optax's."""
    report = yield
    if call.when == "call" and report.skipped and not skipped_with_optax(item):
        report.outcome, report.longrepr = "failed", f"{item.nodeid} is not skipped with Optax"
    return report


def skipped_with_optax(item: pytest.Item) -> bool:
    """Runs the test again with Optax's members restored; returns whether it is skipped."""
    test_case: Any = getattr(item.parent, "obj", None)
    result = unittest.TestResult()
    replace(OURS, ORIGINALS)
    try:
        test_case(item.name).run(result)
    finally:
        replace(ORIGINALS, OURS)
    return bool(result.skipped)
