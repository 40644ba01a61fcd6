"""A convolutional network on real digits: trained in PyTorch, continued in Flax, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from sklearn.datasets import load_digits

import adam_jax
from adam_jax import convert

torch = pytest.importorskip("torch", reason="PyTorch is in a group of its own: make test-peers")

pytestmark = pytest.mark.usefixtures("standard_promotion")

RATE, BATCH = 1e-2, 64


class Network(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (3, 3), padding="SAME")(x))
        x = linen.Dense(10)(x.reshape(x.shape[0], -1))  # H, W, C
        return x * self.param("scale", linen.initializers.ones, (10,))


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.fc = torch.nn.Linear(4 * 8 * 8, 10)
        self.scale = torch.nn.Parameter(torch.ones(10))

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1)) * self.scale  # C, H, W


NAMES = convert.conv("Conv_0", "conv") | convert.linear("Dense_0", "fc", flattened=(4, 8, 8))


def batches(count):
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    for t in range(count):
        part = np.arange(t * BATCH, (t + 1) * BATCH) % len(images)
        yield images[part], digits.target[part]


def torch_step(model, optimizer, images, labels):
    optimizer.zero_grad()
    logits = model(torch.as_tensor(images)[:, None])
    loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(labels))
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def jax_step(tx):
    @jax.jit
    def step(params, state, images, labels):
        def loss(params):
            logits = Network().apply(params, images[..., None])
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses)

        value, grads = jax.value_and_grad(loss)(params)
        return *adam_jax.step(tx, grads, state, params), value

    return step


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("named", [True, False], ids=["named", "numbered"])
def test_from_pytorch_to_flax_and_back(named, record_property):
    torch.manual_seed(0)
    model = Scaled()
    order = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.AdamW(
        model.named_parameters() if named else model.parameters(), RATE, weight_decay=0.1
    )
    before, after = list(batches(30)), list(batches(50))[30:]
    for batch in before:
        torch_step(model, optimizer, *batch)

    like = Network().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    params = convert.params_from_named(dict(model.named_parameters()), like, names=NAMES)
    tx = adam_jax.adamw(RATE, weight_decay=0.1)
    given = None if named else order
    state = convert.from_torch(optimizer.state_dict(), params, tx, names=NAMES, order=given)

    step, params = jax_step(tx), {"params": params}
    state = jax.tree.unflatten(jax.tree.structure(tx.init(params)), jax.tree.leaves(state))
    differences = []
    for images, labels in after:
        params, state, ours = step(params, state, images, labels)
        theirs = torch_step(model, optimizer, images, labels)
        differences.append(abs(float(ours) - theirs) / theirs)
    record_property("printed", f"losses of the CNN, PyTorch to Flax: {max(differences):.1e} apart")
    assert max(differences) < 1e-4 and differences[0] < 1e-5

    other = Scaled()
    named_arrays = convert.params_to_named(params["params"], names=NAMES)
    other.load_state_dict({name: torch.as_tensor(x) for name, x in named_arrays.items()})
    back = torch.optim.AdamW(other.named_parameters(), RATE, weight_decay=0.1)
    inside = jax.tree.unflatten(
        jax.tree.structure(tx.init(params["params"])), jax.tree.leaves(state)
    )
    saved = convert.to_torch(inside, params["params"], tx, back.state_dict(), names=NAMES)
    back.load_state_dict(saved | {"state": jax.tree.map(torch.as_tensor, saved["state"])})
    assert back.state_dict()["param_groups"][0]["weight_decay"] == 0.1
    for images, labels in after[:5]:
        params, state, ours = step(params, state, images, labels)
        assert abs(torch_step(other, back, images, labels) - float(ours)) < 1e-4 * float(ours)


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
