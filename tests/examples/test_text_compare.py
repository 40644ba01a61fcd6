"""Optimizers compared on text: the fast setting end to end, the search of rates, the summary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.shared import strict_json
from examples.shared.pages import replaced
from examples.studies.text import compare, report
from examples.studies.text.compare import FACTOR, FAST, OPTIMIZERS, RATES, first_grid, further
from tests.examples.processes import pieces, shows_something

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_moves_matrices_and_vectors(name, standard_promotion):
    tx = compare.optimizer(name, FAST, jnp.float32(1e-2))
    block = {"up": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
    params = {"blocks": [block], "out": {"kernel": jnp.ones((2, 3))}}
    step = jax.jit(lambda state: tx.update(params, state, params))
    _, state = step(tx.init(params))  # Warmup begins at 0.
    updates, _ = step(state)
    assert all(np.all(u < 0) for u in jax.tree.leaves(updates))


def run(loss, rate):
    return {"chosen_by": loss, "rate": rate}


def test_a_grid_goes_on_beyond_a_best_rate_at_its_edge():
    rates = first_grid(0.01)
    assert len(rates) == RATES and rates[RATES // 2] == 0.01
    assert np.allclose(np.diff(np.log(rates)), np.log(FACTOR))

    def runs(*losses):
        return [run(loss, rate) for loss, rate in zip(losses, (1, 2, 4, 8, 16), strict=True)]

    assert further(runs(3, 2, 1, 2, 3)) == []
    assert further(runs(1, 2, 3, 4, 5)) == [1 / FACTOR]
    assert further(runs(5, 4, 3, 2, 1)) == [16 * FACTOR]
    assert further(runs(5, 4, 3, 2, np.nan)) == []
    assert further(runs(np.nan, 1, 3, 4, np.inf)) == []
    assert further([run(-i, 2.0**i) for i in range(50)]) == []


def test_the_fast_setting_end_to_end(tmp_path, capsys, standard_promotion):
    compare.main(["--fast", "--out", str(tmp_path)])
    figures = strict_json.loads((tmp_path / "figures.json").read_text())
    assert figures["Muon and adamw"]["bytes"] < 8 < figures["adamw"]["bytes"]
    for row in figures.values():
        assert row["lowest"] <= row["mean"] <= row["highest"] < 4.2 and not row["edge"]
    results = pieces(tmp_path)
    # All share parameters and batches: the learning rate begins at 0.
    firsts = {(run["seed"], run["train_losses"][0]) for run in results.values()}
    assert len(firsts) == 4
    # The seeds of the figures are not those of the grid.
    at_best = [r for n, r in results.items() if n.startswith("adamw,") and r["seed"] > 0]
    assert {run["rate"] for run in at_best} == {figures["adamw"]["rate"]}
    np.testing.assert_allclose(np.mean([r["loss"] for r in at_best]), figures["adamw"]["mean"])
    assert shows_something(tmp_path / "losses.png")


def test_the_pages_show_the_figures():
    """Run `python -m examples.studies.text.report` to update the pages."""
    published = strict_json.loads(report.FIGURES.read_text())
    assert set(published) == set(OPTIMIZERS)
    for page, path in report.PAGES.items():
        text = page.read_text()
        assert replaced(text, {"comparison on text": report.part(published, path)}) == text
