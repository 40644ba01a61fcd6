"""This version reads the states that each released version saved, and takes the same steps."""

import jax
import numpy as np
import pytest

import adam_jax
from tests.tools import saved

FILES = sorted(saved.FOLDER.rglob("*.msgpack"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_saved_state_is_read_and_continues(path):
    tx, params = saved.transformations()[path.stem], saved.parameters(path.stem)
    state = tx.init(params)
    like = {"params": params, "state": state, "grads": params, "after": params}
    read = saved.read(path, like)
    assert any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (read["state"], state))))  # noqa: B905
    after, _ = saved.stepped(tx, read["grads"], read["state"], read["params"])
    for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(read["after"]), strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        np.testing.assert_allclose(
            ours, theirs, rtol=1e-6 if after["bias"].dtype != "bfloat16" else 1e-2
        )


def test_this_version_has_its_files():
    """Run `python -m tests.tools.saved` once for each version."""
    names = {path.stem for path in FILES if path.parent.name == adam_jax.__version__}
    assert names == set(saved.transformations())
