"""The transfer study in its fast setting, end to end: its rules and its summary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.shared.command_line import UserError
from examples.studies.transfer import __main__ as transfer
from examples.studies.transfer import plan, report
from examples.studies.transfer.train import Data, Run, losses
from tests.examples.processes import shows_something, table

pytestmark = pytest.mark.slow


def test_the_fast_setting_end_to_end(tmp_path, capsys):
    transfer.main(["--fast", "--out", str(tmp_path)])
    assert "about" in capsys.readouterr().out
    rows = table(tmp_path / "table.csv")
    assert {row["parametrization"] for row in rows} == {"standard", "muP"}
    assert len(rows) == 4 and all(float(row["held-out loss"]) > 0 for row in rows)
    assert shows_something(tmp_path / "widths.png", 700)
    with pytest.raises(UserError, match="other settings"):
        transfer.main(["--fast", "--seed", "1", "--out", str(tmp_path)])


@pytest.mark.parametrize("model", ["mlp", "text", "residual"])
def test_at_the_base_size_both_parametrizations_are_one(model):
    standard = Run(model, 8, 8, False, 3, 4, vocabulary=9)
    scaled = dataclasses.replace(standard, scaled=True)
    key = jax.random.key(0)
    x = jnp.ones((2, 5), jnp.int32) if model == "text" else jnp.ones((2, 784))
    np.testing.assert_array_equal(*(run.build(8, key)(x) for run in (standard, scaled)))
    params = standard.initial(key)
    grads = jax.tree.map(jnp.ones_like, params)
    updates = []
    for run in (standard, scaled):
        tx = run.optimizer(params, jnp.float32(1e-2))
        updates.append(tx.update(grads, tx.init(params), params)[0])
    jax.tree.map(np.testing.assert_array_equal, *updates)


def test_losses_are_those_of_each_rate_and_seed_alone():
    images = jax.random.uniform(jax.random.key(0), (40, 784))
    labels = jnp.arange(40, dtype=jnp.int32) % 10
    data = Data(images, labels, (images, labels))
    run = Run("mlp", 8, 8, False, 20, 8)
    together = losses(dataclasses.replace(run, together=4), data, [1e-3, 1e-2], [0, 1])
    alone = losses(run, data, [1e-2], [1])
    assert together["held_out"].shape == (2, 2)
    np.testing.assert_allclose(together["held_out"][1, 1], alone["held_out"][0, 0], rtol=1e-4)
    assert together["held_out"][1].mean() < together["held_out"][0].mean() < np.log(10) * 1.1


def test_how_far_the_best_rate_moved_is_counted_in_points_of_the_grid():
    part = dataclasses.replace(plan.FAST[0], standard=plan.rates(1e-3, 4), seeds=1)
    of = {16: [3.0, 2.0, 2.5, float("nan")], 32: [1.5, 1.8, 2.0, 9.0]}
    found = {
        report.name(part, size, "standard"): {
            "rates": list(part.standard),
            "held_out": [[x] for x in loss],
        }
        for size, loss in of.items()
    }
    row = report.row(part, 32, "standard", found)
    assert row["moved"] == -1 and row["rate"] == pytest.approx(1e-3)
    assert row["excess"] == pytest.approx(1.8 / 1.5 - 1)


def test_the_batch_rule_is_that_of_the_library():
    part = plan.BATCHES
    run, [rate] = part.run(64, True, 9)
    assert run.steps == part.windows // 64
    assert rate == pytest.approx(0.02)
    numbers = {"b1": 1 - 4 * 0.03, "b2": 1 - 4 * 0.0015, "eps": 5e-9}
    assert vars(run)["factory"].keywords == pytest.approx(numbers)
    same, [rate] = part.run(64, False, 9)
    assert rate == 0.01 and vars(same)["factory"].keywords["b1"] == 0.97
