"""`transfer.mup` against Microsoft's `mup` 1.0: the factors, and training on the same models.

The docstring of `transfer.mup` has the differences. There are two more in initial values:
`set_base_shapes` multiplies those of PyTorch's initializers, whose variance is 1 / inputs, and
those of an embedding that is also the readout (`MuSharedReadout`), which scales the model's inputs.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import adam_jax
from adam_jax.transfer import mup as our_mup
from adam_jax.transfer import mup_init, mup_table

torch = pytest.importorskip("torch", reason="PyTorch is in a group of its own: make test-peers")
microsoft = pytest.importorskip("mup", reason="mup is in a group of its own: make test-peers")

INPUTS, CLASSES, TOKENS, LENGTH, HEADS, BATCH = 12, 7, 11, 6, 2, 16
BASE, WIDTH, STEPS = 16, 64, 20


class Mlp(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = torch.nn.Linear(INPUTS, width)
        self.middle = torch.nn.Linear(width, width // 2)
        self.readout = microsoft.MuReadout(width // 2, CLASSES)

    def forward(self, x):
        return self.readout(torch.tanh(self.middle(torch.tanh(self.first(x)))))


class Transformer(torch.nn.Module):
    """Attention; the output layer is separate or tied to the embedding."""

    def __init__(self, width, tied):
        super().__init__()
        linear = functools.partial(torch.nn.Linear, bias=False)
        self.embedding = torch.nn.Embedding(TOKENS, width)
        self.norm = torch.nn.LayerNorm(width)
        self.query, self.key, self.value = (linear(width, width) for _ in range(3))
        self.out = torch.nn.Linear(width, width)
        self.last_norm = torch.nn.LayerNorm(width)
        if tied:
            self.readout = microsoft.MuSharedReadout(self.embedding.weight, bias=False)
        else:
            self.readout = microsoft.MuReadout(width, TOKENS)
        self.size = width // HEADS

    def forward(self, tokens):
        def heads(x):
            return x.reshape(BATCH, LENGTH, HEADS, self.size).transpose(1, 2)

        x = self.embedding(tokens)
        y = self.norm(x)
        q, k, v = (heads(layer(y)) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) * (BASE // HEADS) ** 0.5 / self.size
        y = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(x.shape)
        return self.readout(self.last_norm(x + self.out(y)))


MODELS = {
    "mlp": Mlp,
    "transformer": functools.partial(Transformer, tied=False),
    "tied": functools.partial(Transformer, tied=True),
}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name, scaled=True):
    """The model after `set_base_shapes`."""
    make = MODELS[name]
    torch.manual_seed(0)
    model = make(WIDTH)
    delta = make(2 * BASE)
    microsoft.set_base_shapes(model, make(BASE), delta=delta, rescale_params=scaled)
    return model


def turned(name, x):
    """Kernels of PyTorch are [outputs, inputs], and ours the other way round."""
    return x.T if x.ndim == 2 and not name.startswith("embedding") else x


def as_tree(named, transposed=True):
    """Arrays by PyTorch's names, as nested dictionaries."""
    flat = {name: p.detach().numpy() for name, p in named}
    flat = {name: jnp.asarray(turned(name, x) if transposed else x) for name, x in flat.items()}
    if transposed:
        flat = {name.replace("weight", "kernel"): x for name, x in flat.items()}
    return traverse_util.unflatten_dict(flat, sep=".")


def trees(name, transposed=True, scaled=True):
    """The parameters of the base model and of the wide model."""
    models = MODELS[name](BASE), made(name, scaled)
    return [as_tree(model.named_parameters(), transposed) for model in models]


@every_model
@pytest.mark.parametrize("transposed", [True, False], ids=["inputs first", "outputs first"])
def test_learning_rate_and_weight_decay_of_each_leaf(name, transposed):
    model = made(name)
    last = "kernel" if transposed else "weight"
    named = model.named_parameters()
    names = {id(p): key.replace(".", "/").replace("weight", last) for key, p in named}
    optimizer = microsoft.MuAdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    theirs = {
        names[id(p)]: (group["lr"], group["weight_decay"], group["eps"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    table = mup_table(*trees(name, transposed))
    ours = {
        row.path: (1e-2 * row.learning_rate, 0.5 * row.weight_decay, 1e-8) for row in table.rows
    }
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        assert ours[path] == pytest.approx(expected), path
    hidden = [row.path for row in table.rows if row.role == "hidden"]
    assert len(hidden) == (1 if name == "mlp" else 4)
    # ε differs.
    assert {row.eps for row in table.rows if row.role == "hidden"} == {BASE / WIDTH}


@every_model
def test_the_factor_of_the_output(name):
    readout = made(name).readout
    width = WIDTH // 2 if name == "mlp" else WIDTH
    assert width // (width * BASE // WIDTH) == readout.width_mult()


def test_sides_that_grow_differently():
    theirs = microsoft.shape.zip_infshapes({"w": (8, 8)}, {"w": (16, 32)})["w"]
    ours = mup_table({"weight": np.ones((8, 8))}, {"weight": np.ones((16, 32))})
    assert ours.rows[0].learning_rate == 1 / theirs.width_mult() == 1 / 4


def deviations(tree):
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {path: float(jnp.sqrt(jnp.mean(x**2))) for path, x in flat.items()}


@every_model
def test_sizes_of_initial_values(name):
    base, params = trees(name, scaled=False)
    ours = deviations(mup_init(params, base))
    theirs = deviations(trees(name)[1])
    sizes = {row.path: math.prod(row.base_shape) for row in mup_table(base, params).rows}
    for path, size in ours.items():
        other = theirs[path]
        if name == "tied" and path.startswith("embedding"):
            other /= math.sqrt(WIDTH / BASE)  # The tied readout's √n: see the module's docstring.
        # The relative error of the size of n random numbers is 1/√(2·n); both sides are random.
        assert size == pytest.approx(other, rel=5 / math.sqrt(2 * sizes[path])), path


def data(name):
    rng = np.random.default_rng(0)
    if name == "mlp":
        labels = rng.integers(0, CLASSES, (BATCH,))
        return rng.standard_normal((BATCH, INPUTS)), labels
    tokens = rng.integers(0, TOKENS, (BATCH, LENGTH))
    return tokens, np.roll(tokens, 1, axis=1)


def losses(name, optimizer):
    """Of the model, which `optimizer(model)` makes a function to step."""
    model = made(name).double()
    step = optimizer(model)
    x, labels = (torch.tensor(a) for a in data(name))
    found = []
    for _ in range(STEPS):
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, -2), labels.flatten())
        loss.backward()
        step()
        found.append(float(loss.detach()))
    return found


def ours(base, learning_rate, **kwargs):
    """AdamW with `transfer.mup`, for models that grow from a base; without one, no model grows."""

    def optimizer(model):
        named = dict(model.named_parameters())
        params = as_tree(named.items())
        tx = our_mup(adam_jax.adamw, base or params, params)(learning_rate, **kwargs)
        state, compiled = tx.init(params), jax.jit(tx.step)

        def step():
            nonlocal params, state
            grads = as_tree((name, p.grad) for name, p in named.items())
            params, state = compiled(grads, state, params)
            for name, x in traverse_util.flatten_dict(params, sep=".").items():
                name = name.replace("kernel", "weight")
                named[name].data = torch.tensor(turned(name, np.asarray(x)))

        return step

    return optimizer


@every_model
def test_the_same_training(name, x64, record_property):
    """The same initial values and weight decay give the same losses, step by step."""
    numbers = {"weight_decay": 0.3, "eps": 1e-18}
    theirs = losses(name, lambda m: microsoft.MuAdamW(m.parameters(), lr=3e-3, **numbers).step)
    found, without = (losses(name, ours(x, 3e-3, **numbers)) for x in (trees(name)[0], None))
    np.testing.assert_allclose(found, theirs, rtol=1e-13)
    assert theirs[-1] < 0.9 * theirs[0]
    assert not np.allclose(without, theirs, rtol=1e-2)
    largest = np.max(np.abs(np.array(found) / theirs - 1))
    record_property("printed", f"largest difference of losses, mup, {name}: {largest:.1e}")
