"""`benchmarks.step` runs; the measured times are not tested."""

import pytest

from benchmarks.step import __main__ as step
from tests.catalogue.scripts import process, run

pytestmark = pytest.mark.slow


def test_each_base_is_a_case_of_the_same_run(standard_promotion):
    rows = step.measure(step.on_cpu(fast=True)[0], 1)
    cases = {row.case for row in rows}
    compared = [row for row in rows if row.ratio is not None]
    assert compared and all(row.base in cases for row in compared)
    for row in compared:
        assert row.ratio * row.base_median == pytest.approx(row.median)
    assert {row.target for row in rows if row.case == "accumulate 4; step"} == {0.75}


def test_a_table_can_be_chosen_and_what_is_not_installed_is_left_out(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = "
        "['--fast', '--rounds', '1', '--only', 'step, 1 x']\n"
        "from benchmarks.step.__main__ import main; main()"
    )
    printed = process("-c", code).stdout
    assert "torch fused AdamW left out: torch is not installed" in printed
    assert printed.count("| case |") == 1
    assert "| adam_jax.adamw |" in printed


def test_a_population_is_timed():
    printed = run("step.population", "--fast")
    assert "2 MLPs, 10 steps" in printed and printed.count("\n| ") == 6
