"""`benchmarks.step` and its plot run; the measured times are not tested."""

import json

import pytest

from tests.catalogue.scripts import python, run

pytestmark = pytest.mark.slow


def test_the_step_benchmark_runs_and_is_drawn(tmp_path):
    results, picture = tmp_path / "results.json", tmp_path / "chart.png"
    printed = run("step", "--fast", "--rounds", "1", "--json", str(results))
    found = json.loads(results.read_text())
    rows = found["rows"]
    assert all(f"| {row['case']} |" in printed for row in rows)
    assert {"machine", "versions", "command", "rounds"} <= set(found)
    for case, expected in {"accumulate 4; step": 0.75, "trace + lower": 0.25}.items():
        (target,) = {row["target"] for row in rows if row["case"] == case}
        assert target == expected
    # Each base is a peer measured in the same run.
    compared = [row for row in rows if row["ratio"] is not None]
    assert all(abs(r["ratio"] * r["base_median"] / r["median"] - 1) < 1e-9 for r in compared)
    run("plot", str(results), str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_table_can_be_chosen_and_what_is_not_installed_is_left_out(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = "
        "['--fast', '--rounds', '1', '--only', 'step, 1 x']\n"
        "from benchmarks.step.__main__ import main; main()"
    )
    printed = python("-c", code)
    assert "torch fused AdamW left out: torch is not installed" in printed
    assert printed.count("| case |") == 1
    assert "| adam_jax.adamw |" in printed


def test_all_learning_rates_are_one_compilation():
    printed = run("step.population", "--fast")
    assert "compilations for 2 learning rates: 1\n" in printed
    assert "2 MLPs, 10 steps" in printed


def test_eager_steps_compile_nothing_and_a_sweep_is_measured():
    printed = run("step.eager", "--fast")
    lines = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    wrappers = {cells[0]: cells[1] for cells in lines if len(cells) == 4}
    assert wrappers.pop("| wrapper") == "programs compiled"
    assert len(wrappers) == 4 and set(wrappers.values()) == {"---", "0"}
    assert (
        "| radam |" not in printed
        and "| adam |" in printed
        and "schedules, adam_jax.adamw:" in printed
    )
