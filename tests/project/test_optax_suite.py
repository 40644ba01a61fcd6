"""Runs Optax's own test files with our members in place of Optax's, in a separate process."""

import os
import re

import pytest

from tests.catalogue.scripts import process

pytestmark = pytest.mark.slow

SUITES = {
    "members": [
        "optax._src.alias_test",
        "optax._src.transform_test",
        "optax._src.float64_test",
        "optax.contrib._common_test",
        "optax.contrib._schedule_free_test",
    ],
    "wrappers": [
        "optax._src.sharding_test",
        "optax.schedules._inject_test",
        "optax.schedules._schedule_test",
        "optax.transforms._accumulation_test",
    ],
}


@pytest.mark.parametrize("suite", SUITES)
def test_optaxs_own_tests_pass_with_our_members(suite, record_property):
    plugin = "tests.peers.optax_suite"
    # L-BFGS has no counterpart here, and its tests take half of the time.
    options = ["-p", "no:cacheprovider", "-rs", "-k", "not LBFGS and not lbfgs", "-c", os.devnull]
    # Optax's files expect one device. They compile for minutes and run for seconds.
    pytest_of_optax = ["-m", "pytest", "-q", "-p", plugin, "--noconftest", *options, "--pyargs"]
    printed = process(*pytest_of_optax, *SUITES[suite]).stdout
    summary = printed.strip().splitlines()[-1]
    record_property("printed", f"Optax's {suite} tests with our members: {summary}")
    assert int(re.search(r"(\d+) passed", summary)[1]) > 20
    assert f"{plugin}: 27 members of Optax replaced" in printed
