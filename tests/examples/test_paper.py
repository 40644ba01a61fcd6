"""The experiments of Adam's paper: the fast version end to end, and its parts against formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from examples.mnist import data
from examples.shared.command_line import UserError
from examples.studies.paper import counterexample, logistic, mlp, race, vae
from examples.studies.paper.__main__ import FIGURES, main
from examples.studies.paper.claims import COLUMNS
from examples.studies.paper.training import Digits, train
from tests.examples.processes import pieces, shows_something

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder that `--fast` writes."""
    folder = tmp_path_factory.mktemp("paper")
    main(["--fast", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def results(study):
    return pieces(study)


@pytest.fixture(scope="module")
def table(study, results):
    """The claims, which the fast version does not print."""
    rows = []
    for name, module in FIGURES.items():
        own = {k.removeprefix(f"{name} "): r for k, r in results.items() if k.startswith(name)}
        rows += [dict(zip(COLUMNS, claim.row(), strict=True)) for claim in module.claims(own)]
    return rows


# The whole command.


def test_every_claim_is_judged_and_every_figure_drawn(study, table):
    assert len(table) == 15
    for row in table:
        assert row["here"] in ("held", "did not hold")
        assert "2015" in row["source"] or "2018" in row["source"]
        assert any(c.isdigit() for c in row["figures"])
    held = [row["claim"] for row in table if row["here"] == "held"]
    # Adam goes to the worst point, AMSGrad to the best; the average regret.
    assert sum(claim.startswith(("C = 3:", "online:")) for claim in held) == 4
    assert not (study / "table.md").exists()
    assert all(shows_something(study / f"{name}.png") for name in FIGURES)


@pytest.mark.parametrize(("figure", "module"), [("figure1", logistic), ("figure2", mlp)])
def test_every_optimizer_learns_at_its_best_rate(results, figure, module):
    for name in module.ENTRANTS:
        costs = race.best(results[f"{figure} {name}"]).costs
        assert len(costs) == module.FAST.epochs
        assert costs[-1] < 0.75 * costs[0] and costs[-1] < np.log(10)


def test_without_correction_the_first_steps_of_a_slow_average_are_larger(results):
    smallest = {
        name: np.array(results[f"figure4 {name} b1=0.9 b2=0.9999"]["costs"])[0, -1]
        for name in vae.OPTIMIZERS
    }
    # Far below the best step size, larger steps converge faster.
    assert smallest["uncorrected"] < 0.8 * smallest["corrected"]


def test_the_autoencoder_learns_at_every_step_size_with_the_correction(results):
    for panel in vae.PANELS:
        costs = np.array(results[f"figure4 corrected {panel}"]["costs"])
        assert costs.shape == (len(vae.FAST.log10_rates), vae.FAST.epochs)
        assert (costs[:, -1] < 0.95 * costs[:, 0]).all() and costs[-1, -1] < 0.6 * costs[-1, 0]


def test_another_seed_is_another_study(study):
    with pytest.raises(UserError, match="seed"):
        main(["--fast", "--out", str(study), "--seed", "1"])


# Its parts.


def test_a_sweep_is_each_of_its_runs_alone():
    digits = Digits.of(data.load(), 512)
    loss, first = logistic.model()
    rates = (0.01, 0.1)
    settings = {"epochs": 2, "batch_size": 128, "seed": 3}
    found = train(loss, first, adam_jax.adam, {"learning_rate": rates}, digits, **settings)
    order_key, key = jax.random.split(jax.random.key(3))

    @jax.jit
    def one_step(tx, params, state, rows):
        batch = Digits(digits.pixels[rows], digits.labels[rows])
        cost, grads = jax.value_and_grad(loss)(params, batch, key)
        return *adam_jax.step(tx, grads, state, params), cost

    for rate, costs in zip(rates, found, strict=True):
        params, tx = first, adam_jax.adam(rate)
        state = tx.init(params)
        for epoch, cost in enumerate(costs):
            expected = []
            for rows in data.batches(jax.random.fold_in(order_key, epoch), 512, 128):
                params, state, value = one_step(tx, params, state, rows)
                expected.append(value)
            np.testing.assert_allclose(cost, np.mean(expected), rtol=1e-4)


def test_the_game_is_the_papers_in_float64():
    problem = counterexample.PROBLEMS["C = 3"]
    found = counterexample.play(problem, "Adam", counterexample.Scale(chunks=1), seed=0)
    x = m = v = 0.0
    points, regrets = [], []
    for t in range(1, counterexample.CHUNK + 1):
        g = 3.0 if t % 3 == 1 else -1.0
        points.append(x)
        regrets.append(g * x - g * -1)
        m, v = g, 0.1 * v + 0.9 * g * g
        x -= 0.5 / np.sqrt(t) * m / (np.sqrt(v / (1 - 0.1**t)) + 1e-8)
        x = min(max(x, -1.0), 1.0)
    np.testing.assert_allclose(found["x"], [[np.mean(points)]], rtol=1e-4)
    np.testing.assert_allclose(found["regret"], [[np.mean(regrets)]], rtol=1e-4)


def test_the_random_gradients_are_rare_and_their_regret_is_expected():
    problem = counterexample.PROBLEMS["stochastic"]
    g = problem.gradients(jnp.array(0), 100_000, jax.random.key(0))
    assert set(np.unique(g)) == {-10.0, 1010.0}
    assert 0.009 < float((g > 0).mean()) < 0.011
    np.testing.assert_allclose(problem.regret(g[0], jnp.array(1.0)), 2 * 0.2, rtol=1e-5)


def test_the_best_run_has_not_diverged_and_may_lie_at_the_edge():
    costs = [[2.0, 1.5], [2.0, 0.5], [3.0, float("nan")]]
    found = race.best({"rates": [0.1, 1.0, 10.0], "costs": costs})
    assert found.rate == 1.0 and found.inside
    assert not race.best({"rates": [0.1, 1.0], "costs": costs[:2]}).inside
    assert race.epochs_to(found.costs, 0.6) == 2 and race.epochs_to(found.costs, 0.1) is None


def test_a_claim_that_is_not_so_did_not_hold():
    def result(last):
        return {"rates": [1.0], "costs": [[2.0, last]]}

    def judged(adam, sgd, adagrad):
        lasts = {"Adam": adam, "AdaGrad": adagrad, "AdaGrad α/√t": 1.0}
        lasts |= zip(logistic.SGD, (sgd, sgd + 0.1), strict=True)
        return [c.held for c in logistic.claims({n: result(x) for n, x in lasts.items()})]

    assert judged(0.50, 0.51, 0.7) == [True, True, True]
    assert judged(0.50, 0.60, 0.7) == [False, True, True]
    assert judged(0.50, 0.51, 0.3) == [True, False, True]

    others = {name: result(0.5) for name in mlp.ENTRANTS}
    assert [claim.held for claim in mlp.claims(others | {"Adam": result(0.4)})][0]
    assert not [claim.held for claim in mlp.claims(others | {"Adam": result(0.6)})][0]
