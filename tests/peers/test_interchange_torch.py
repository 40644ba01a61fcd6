"""PyTorch's own tensors and files; tests/convert/test_interchange.py continues runs there."""

import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax import convert

torch = pytest.importorskip("torch", reason="PyTorch is in a group of its own: make test-peers")

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_a_state_of_bfloat16_and_one_from_a_file(tmp_path):
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.named_parameters())
    model(torch.ones(4, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    names = convert.linear("dense", "")
    like = {"dense": {"kernel": jnp.zeros((3, 2), "bfloat16"), "bias": jnp.zeros(2, "bfloat16")}}
    params = convert.params_from_named(dict(model.named_parameters()), like, names=names)
    tx = adam_jax.adam(1e-3)
    mu = convert.from_torch(saved, params, tx, names=names)[0].mu["dense"]["kernel"]
    assert mu.dtype == jnp.float32
    np.testing.assert_array_equal(mu, saved["state"][0]["exp_avg"].float().numpy().T)
