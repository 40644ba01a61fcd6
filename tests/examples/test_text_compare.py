"""Optimizers compared on text: the fast setting end to end, the search of rates, the summary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.shared import strict_json
from examples.shared.pages import replaced
from examples.studies.text import averages, compare, report
from examples.studies.text.compare import FAST, OPTIMIZERS, search
from tests.examples.processes import pieces, shows_something

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_moves_matrices_and_vectors(name, standard_promotion):
    tx = compare.optimizer(name, FAST, jnp.full(2, 1e-2))
    block = {"up": {"kernel": jnp.arange(8.0).reshape(4, 2), "bias": jnp.ones(2)}}
    params = {"blocks": [block], "out": {"kernel": jnp.ones((2, 3))}}
    step = jax.jit(lambda state: tx.update(params, state, params))
    _, state = step(tx.init(params))  # Warmup begins at 0.
    updates, _ = step(state)
    assert all(np.any(u < 0) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("slope", [-1.5, 0.0, 0.9])
def test_the_search_ends_where_neither_rate_helps(slope):
    def loss(rates):
        x, y = np.log2(rates) - (5, -3)
        return x**2 + y**2 + slope * x * y if max(rates) < 40 else np.nan

    assert search(loss, (1.0, 1.0)) == (32.0, 0.125)
    assert search(lambda rates: np.inf, (1.0, 2.0)) == (1.0, 2.0)


def test_the_fast_setting_end_to_end(tmp_path, capsys, standard_promotion):
    compare.main(["--fast", "--out", str(tmp_path)])
    figures = strict_json.loads((tmp_path / "figures.json").read_text())
    assert figures["Muon and adamw"]["bytes"] < 8 < figures["adamw"]["bytes"]
    for row in figures.values():
        assert row["lowest"] <= row["mean"] <= row["highest"] < 4.2
    results = pieces(tmp_path)
    # All share parameters and batches: the learning rate begins at 0.
    firsts = {(run["seed"], run["train_losses"][0]) for run in results.values()}
    assert len(firsts) == 4
    # The seeds of the figures are not those of the grid.
    at_best = [r for n, r in results.items() if n.startswith("adamw,") and r["seed"] > 0]
    rates = [figures["adamw"]["matrices"], figures["adamw"]["rest"]]
    assert all(run["rates"] == rates for run in at_best)
    np.testing.assert_allclose(np.mean([r["loss"] for r in at_best]), figures["adamw"]["mean"])
    assert shows_something(tmp_path / "losses.png")


def test_averages(tmp_path, standard_promotion):
    averages.main(["--fast", "--out", str(tmp_path)])
    found = pieces(tmp_path)["constant"]
    for name in ("equal weights", "emulated 1 - √"):
        assert not np.array_equal(found[name], found["newest"])
    assert np.all(np.isfinite(found["newest"])) and len(found) == 4


def test_the_pages_show_the_figures():
    """Run `python -m examples.studies.text.report` to update the pages."""
    published = strict_json.loads(report.FIGURES.read_text())
    assert set(published) == set(OPTIMIZERS)
    for page, path in report.PAGES.items():
        text = page.read_text()
        assert replaced(text, {"comparison on text": report.part(published, path)}) == text
