"""Runs Optax's own test files with our members in place of Optax's, in a separate process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.catalogue.compilation import IN_A_HURRY

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
    command = [sys.executable, "-m", "pytest", "-q", "-p", plugin, "--noconftest"]
    command += ["-p", "no:cacheprovider", "-rs"]
    # L-BFGS has no counterpart here, and its tests take half of the time.
    command += ["-k", "not LBFGS and not lbfgs", "-c", os.devnull, "--pyargs", *SUITES[suite]]
    root = Path(__file__).parents[2]
    # Optax's files expect one device. They compile for minutes and run for seconds.
    environment = os.environ | IN_A_HURRY
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    summary = done.stdout.strip().splitlines()[-1]
    record_property("printed", f"Optax's {suite} tests with our members: {summary}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert int(re.search(r"(\d+) passed", summary)[1]) > 20
    assert f"{plugin}: 27 members of Optax replaced" in done.stdout
