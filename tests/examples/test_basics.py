"""All pages of examples.usage.basics, run with `--fast` on the bundled digits."""

import math

import jax
import numpy as np
import pytest

from examples.usage.basics import __main__ as basics
from examples.usage.basics import constraints, contours
from tests.examples.processes import pieces, shows_something

pytestmark = pytest.mark.slow

PAGES = list(basics.PAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that one run of all pages writes."""
    folder = tmp_path_factory.mktemp("basics")
    with jax.numpy_dtype_promotion("standard"):  # For Optax's schedules.
        basics.main(["--fast", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return pieces(folder)


def test_every_page_is_computed_described_and_drawn(folder, results):
    assert list(results) == PAGES
    for name in PAGES:
        assert shows_something(folder / f"{name}.png", 400)
        assert f"\n{name} " in basics.__doc__
        assert len(basics.PAGES[name].findings(results[name])) >= 3


def test_what_needs_no_long_run_holds(results):
    sure = {
        "constraints": (0, 4),
        "contours": (1, 4),
        "bias-correction": (0, 2),
        "clipping": (0, 2),
    }
    for name, (first, stop) in sure.items():
        findings = basics.PAGES[name].findings(results[name])
        assert all(held for held, _ in findings[first:stop]), findings
    assert min(np.array(results["bias-correction"]["losses_with"])[:, -10:].mean(axis=1)) < 1.0


def test_least_squares_are_reached_exactly_only_without_noise(results):
    result = results["least-squares"]
    exact, noisy = (np.array(result[f"cosine, {kind}"])[-1] for kind in ("all rows", "batches"))
    constant = np.array(result["constant, batches"])[-1]
    np.testing.assert_allclose([exact[0], noisy[0], constant[0]], 1.0, rtol=1e-6)
    assert exact[-1] < 1e-5 < noisy[-1] < constant[-50:].mean()


def test_the_projected_path_stays_in_the_box_and_ends_where_the_gradient_leaves_it(results):
    result = results["constraints"]
    boxed = np.array(result["boxed"], np.float32)
    assert np.abs(boxed).max() <= 1.0
    np.testing.assert_allclose(boxed[-1], result["solution"], atol=1e-2)
    # KKT conditions: across the wall the loss decreases outwards, along it the slope is 0.
    gradient = np.array(jax.grad(constraints.loss_of)(boxed[-1]))
    assert boxed[-1, 0] == 1.0
    assert gradient[0] < -1
    assert abs(gradient[1]) < 1e-2


def test_paths_arrive_where_they_say(results):
    for name, function in contours.FUNCTIONS.items():
        for run in results["contours"][name].values():
            if math.isnan(run["steps"]):
                continue
            ends = np.array(run["path"])[[0, -1]]
            np.testing.assert_allclose(ends[0], function.start)
            assert run["steps"] > 1000 or np.linalg.norm(ends[1] - function.minimum) < 1e-2


def test_arrivals_counts_steps_for_the_first_arrival_and_to_stay():
    near, far, lost = (1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)
    paths = [[far, near, far, near], [near] * 4, [far, near, near, far], [far, far, lost, lost]]
    first, settled = contours.arrivals(np.array(paths), (1.0, 1.0))
    np.testing.assert_array_equal(first, [1, 0, 1, np.nan])
    np.testing.assert_array_equal(settled, [3, 0, np.nan, np.nan])


def test_clipping_saves_sgd(results):
    result = results["clipping"]
    # Both have the same first gradient. At the largest rate the unclipped run diverges.
    plain, clipped = np.array(result["SGD"]["norms"]), np.array(result["SGD, clipped"]["norms"])
    np.testing.assert_allclose(plain[:, 0], clipped[:, 0], rtol=1e-5)
    assert not np.isfinite(result["SGD"]["losses"][-1][-1])
    assert np.isfinite(result["SGD, clipped"]["losses"]).all()


def test_one_page_alone_finds_the_same(folder, results, tmp_path, standard_promotion):
    basics.main(["constraints", "--fast", "--out", str(tmp_path)])
    assert (tmp_path / "constraints.png").read_bytes() == (folder / "constraints.png").read_bytes()
    assert pieces(tmp_path) == {"constraints": results["constraints"]}
    assert not (tmp_path / "contours.png").exists()
