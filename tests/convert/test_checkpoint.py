"""`python -m adam_jax convert` writes the state that `convert.from_optax` returns."""

import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import adam_jax
from adam_jax.__main__ import main
from adam_jax.convert import from_optax
from tests.catalogue.runs import assert_same_bits

pytestmark = pytest.mark.usefixtures("standard_promotion")

PARAMS = {"w": jnp.ones((64, 128)), "layers": [jnp.ones(3), {"b": jnp.ones(4)}]}
GRADS = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), PARAMS)
OPTAX = "optax.adamw(1e-2)"
INT8 = "adam_jax.adamw(1e-2, mu_dtype=jnp.int8, nu_dtype=jnp.int8)"
INJECTED = "optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2)"
HYPERPARAMS = "adam_jax.with_hyperparams(adam_jax.adamw)(2e-2, nu_dtype=jnp.int8)"


def small():
    return adam_jax.scale_by_adam(mu_dtype=jnp.int8)


def made(code):
    return eval(code, {"adam_jax": adam_jax, "optax": optax, "jnp": jnp, "small": small})


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs it; returns what it prints."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["adam_jax", "convert", *map(str, words)])
        main()
        return capsys.readouterr().out

    return run


def plain(tree):
    def array(x):
        is_key = jnp.issubdtype(getattr(x, "dtype", int), jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(array, tree)


def contents(folder):
    return {x: x.read_bytes() for x in folder.rglob("*") if x.is_file()}


def saved(folder, code):
    """The tree of a run after three steps, written by Orbax."""
    tx = made(code)
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(GRADS, state, PARAMS)
    others = {"step": 7, "name": "run", "key": jax.random.key(1), "none": None, "empty": {}}
    others |= {"wide": np.arange(3) + 2**40, "mean": jax.tree.map(lambda p: p / 3, PARAMS)}
    with jax.enable_x64(True):
        others["double"] = jnp.arange(3.0) / 3
    tree = {"params": PARAMS, "opt_state": state, **others}
    ocp.PyTreeCheckpointer().save(folder, tree, custom_metadata={"tokens": 12})
    return tree


@pytest.mark.parametrize(
    ("source", "to"),
    [
        (OPTAX, INT8),
        (INJECTED, HYPERPARAMS),
        (INT8, OPTAX),
        (f"optax.MultiSteps({OPTAX}, 1)", INT8),
    ],
)
def test_a_state_is_converted_and_all_else_is_kept(command, tmp_path, source, to):
    tree = saved(tmp_path / "old", source)
    before = contents(tmp_path / "old")
    report = command(tmp_path / "old", tmp_path / "new", "--from", source, "--to", to)
    assert contents(tmp_path / "old") == before
    assert "steps: {3} → {3}" in report and "int8" in report
    assert ("learning_rate: 0.01 → 0.02" in report) == (to == HYPERPARAMS)

    orbax, new = ocp.PyTreeCheckpointer(), from_optax(tree["opt_state"], PARAMS, made(to))
    assert orbax.metadata(tmp_path / "new").custom_metadata == {"tokens": 12}
    with jax.enable_x64(True):
        like = {**tree, "opt_state": new}
        args = ocp.checkpoint_utils.construct_restore_args(like)
        again = orbax.restore(tmp_path / "new", item=like, restore_args=args)
    assert_same_bits(plain(again), plain(like))
    files = (tmp_path / x / "_METADATA" for x in ("old", "new"))
    kinds = [json.loads(x.read_bytes())["tree_metadata"].items() for x in files]
    others = [{k: v for k, v in x if "opt_state" not in k} for x in kinds]
    assert others[0] == others[1] and len(others[0]) > 10


def test_a_part_of_a_state(command, tmp_path):
    """The average of the parameters, which from_optax refuses to lose, stays."""
    chain = f"adam_jax.chain({OPTAX}, adam_jax.ema_params(0.9))"
    tree = saved(tmp_path / "old", chain)
    words = tmp_path / "old", tmp_path / "new", "--from"
    with pytest.raises(SystemExit, match=r"nothing but moments and counts.*1/ema"):
        command(*words, chain, "--to", INT8)
    part = "optax.scale_by_adam()", "--to", f"{__name__}:small", "--state", "opt_state/0/0"
    command(*words, *part)
    (moments, *rest), average = tree["opt_state"]
    new = from_optax(moments, PARAMS, small())
    like = {"params": PARAMS, "opt_state": ((new, *rest), average)}
    ways = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.PyTreeRestore(like, ways, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
        assert_same_bits(orbax.restore(tmp_path / "new", args), like)


class Adapted(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        layers = [nnx.Linear(128, 128, rngs=rngs) for _ in range(11)]
        self.layers = nnx.List(nnx.LoRA(128, 64, 128, base_module=x, rngs=rngs) for x in layers)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def optimizer_of(code, steps=0):
    model = Adapted()
    optimizer = nnx.Optimizer(model, made(code), wrt=nnx.LoRAParam)
    grads = jax.tree.map(
        lambda p: jnp.cos(jnp.arange(p.size * 1.0)).reshape(p.shape),
        nnx.state(model, nnx.LoRAParam),
    )
    for _ in range(steps):
        optimizer.update(model, grads)
    return model, optimizer, grads


@pytest.mark.parametrize("as_state", [nnx.state, lambda *x: nnx.to_pure_dict(nnx.state(*x))])
def test_adapters_of_nnx_in_two_items_as_tunix_saves_them(command, tmp_path, as_state):
    model, optimizer, grads = optimizer_of(INJECTED, 2)

    def args(kind, *modules):
        names = "model_params", "optimizer_state"
        return ocp.args.Composite(
            **dict(zip(names, map(kind, map(as_state, modules)), strict=False))
        )

    with ocp.CheckpointManager(tmp_path / "old") as manager:
        manager.save(
            5, args=args(ocp.args.StandardSave, model, optimizer), custom_metadata={"a": 1}
        )
    (tmp_path / "old/5/iterator").mkdir()
    (tmp_path / "old/5/iterator/place.json").write_text("12")
    before = contents(tmp_path / "old")
    command(tmp_path / "old/5", tmp_path / "new/5", "--from", INJECTED, "--to", HYPERPARAMS)
    assert contents(tmp_path / "old") == before
    after = contents(tmp_path / "new")
    for path, text in before.items():
        if "optimizer_state" not in path.parts:
            assert after[tmp_path / "new" / path.relative_to(tmp_path / "old")] == text

    _, again, _ = optimizer_of(HYPERPARAMS)
    with ocp.CheckpointManager(tmp_path / "new") as manager:
        read = manager.restore(5, args=args(ocp.args.StandardRestore, model, again))
    kept = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))
    state = jax.tree.map(
        lambda x: x[...], optimizer.opt_state, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )
    new = ocp.tree.to_flat_dict(from_optax(state, kept, made(HYPERPARAMS)))
    found = ocp.tree.to_flat_dict(read["optimizer_state"]["opt_state"])
    assert {k[:-1] if k[-1] == "value" else k: v.tobytes() for k, v in found.items()} == {
        k: v.tobytes() for k, v in new.items()
    }
    nnx.update(again, read["optimizer_state"])
    again.update(model, grads)


def test_errors_are_one_line(command, tmp_path, monkeypatch):
    saved(tmp_path / "old", OPTAX)
    both = old, new = tmp_path / "old", tmp_path / "new"

    def check(pattern, *words, source=OPTAX, to=INT8):
        with pytest.raises(SystemExit) as error:
            command(*words, "--from", source, "--to", to)
        assert re.match(pattern, str(error.value)) and "\n" not in str(error.value)
        assert not new.exists()

    check("convert: FileExistsError: OUT must be a new folder outside CHECKPOINT, got", old, old)
    check("convert: FileExistsError: OUT must be", old, old / "new")
    check(
        r"convert: ValueError: the state .* missing: '0/mu/w/codes_int8_power2_block128 int8\[64"
        r".*extra: '0/mu/w float32\[64, 128\]'.*Write --from as",
        *both,
        source=INT8,
    )
    check(
        "convert: ValueError: --state must fit one.*'optimizer' for .*'params/w'",
        *both,
        "--state",
        "optimizer",
    )
    check(
        "convert: ValueError: --params must fit one.*'mean', 'params'", *both, "--params", "model"
    )
    check("convert: FileNotFoundError: CHECKPOINT must be a step", old / "d", new)
    check("convert: NameError: name 'adamw'", *both, to="adamw()")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check("convert: ImportError: .*: pip install orbax-checkpoint", *both)
