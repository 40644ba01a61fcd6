"""Predicted bytes per parameter equal those of the allocated arrays, group by group."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import adam_jax
from adam_jax import adamw, stochastic
from adam_jax.inspect import bytes_per_parameter, report

FORMATS = {
    "float32": {},
    "bfloat16": dict(mu_dtype=jnp.bfloat16, nu_dtype=stochastic(jnp.bfloat16)),
    "stochastic int8": dict(mu_dtype=stochastic(jnp.int8), nu_dtype=stochastic(jnp.int4)),
    "factored": dict(mu_dtype=jnp.int8, nu_dtype=adam_jax.Factored()),
    "block means": dict(mu_dtype=jnp.int8, nu_dtype=adam_jax.AdamMini()),
    "int8": dict(mu_dtype=jnp.int8, nu_dtype=jnp.int8),
    "int4": dict(mu_dtype=jnp.int4, nu_dtype=jnp.int4),
}
int8 = adamw(1e-3, **FORMATS["int8"])
EVERYTHING = {
    **{name: adamw(1e-3, **dtypes) for name, dtypes in FORMATS.items()},
    "stochastic_rounding": adam_jax.stochastic_rounding(int8),
    "master_residual(16)": adam_jax.master_residual(int8),
    "master_residual(8)": adam_jax.master_residual(int8, bits=8),
    "accumulate": adam_jax.accumulate(int8, every=4),
    "accumulate in int8": adam_jax.accumulate(int8, every=4, dtype=jnp.int8),
    "masked": optax.masked(int8, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "groups": adam_jax.groups(adamw, {"head/odd": None}, learning_rate=1e-3),
    "hyperparams": adam_jax.with_hyperparams(adamw)(learning_rate=1e-3),
    "around": adam_jax.telemetry(
        adam_jax.skip_nonfinite(adam_jax.chain(adamw(1e-3), adam_jax.ema_params(0.9)))
    ),
    "optax.adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=32),
    "optax.noisy_sgd": optax.noisy_sgd(1e-3, key=0),
}


def parameters(dtype=jnp.bfloat16):
    """`odd` has 4257 4-bit codes; half of the last byte is unused."""
    return {
        "head": {"kernel": jnp.ones((64, 256), dtype), "odd": jnp.ones((33, 129), dtype)},
        "body": [jnp.ones(256, dtype), jnp.ones((), jnp.float32)],
    }


def allocated(*trees):
    """Two 4-bit codes are one byte; `nbytes` says two."""
    leaves = jax.tree.leaves(trees)
    return sum((x.nbytes + 1) // 2 if x.dtype == jnp.int4 else x.nbytes for x in leaves)


SHAPES = jax.eval_shape(parameters)


def of_state(params, tx, **options):
    found = bytes_per_parameter(params, tx, **options)
    return {name: group.state for name, group in found.groups.items()}


every_tx = pytest.mark.parametrize("tx", EVERYTHING.values(), ids=EVERYTHING)


@every_tx
def test_what_is_predicted_is_what_lives(tx, standard_promotion):
    params = parameters()
    predicted = bytes_per_parameter(SHAPES, tx)
    grads, state = jax.tree.map(jnp.ones_like, params), tx.init(params)
    step = jax.jit(lambda p, s, g: adam_jax.step(tx, g, s, p), donate_argnums=(0, 1))
    for stepped in (False, True):
        params, state = step(params, state, grads) if stepped else (params, state)
        live = [allocated(tree) for tree in (params, grads, state)]
        assert [predicted.parameters, predicted.gradients, predicted.state] == live
        assert predicted.total == allocated(params, grads, state)
    assert predicted.size == sum(x.size for x in jax.tree.leaves(params))
    for part in ("size", "parameters", "gradients", "state", "total"):
        assert getattr(predicted, part) == sum(getattr(x, part) for x in predicted.groups.values())


@every_tx
def test_a_none_is_nothing(tx):
    params = parameters()
    predicted = bytes_per_parameter(params, tx)
    params["body"].append(None)
    assert bytes_per_parameter(params, tx) == predicted
    assert allocated(tx.init(params)) == predicted.state


@pytest.mark.parametrize("name", ["float32", "int8", "int4", "master_residual(8)"])
def test_the_compiler_counts_the_same_bytes(name):
    """XLA's own sum, including 4-bit codes; this package does not compute it."""
    found = report(SHAPES, EVERYTHING[name])
    assert found.arguments == found.model.total
    assert found.results <= 8 * 32  # Pointers
    assert found.peak == found.arguments + found.results + found.temporaries


def test_gradients_of_their_own():
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3), "ids": jnp.ones(5, jnp.int32)}
    tx = optax.masked(adamw(1e-3), {"w": True, "b": True, "ids": False})
    assert bytes_per_parameter(params, tx).gradients == 2 * 6 + 4 * 3
    grads = {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32), "b": None, "ids": None}
    groups = bytes_per_parameter(params, tx, grads=grads).groups
    found = {name: group.gradients for name, group in groups.items()}
    assert found == {"w": 4 * 6, "b": 0, "ids": 0, "(shared)": 0}


def test_groups_by_first_key_and_by_expression():
    tx = EVERYTHING["master_residual(16)"]
    kernel, odd = 64 * 256, 33 * 129  # Blocks of 128 and of 43.
    of_kernel = (2 + 1 + 1) * kernel + 2 * 4 * kernel // 128
    of_odd = (2 + 1 + 1) * odd + 2 * 4 * odd // 43
    of_body = (2 + 4 + 4) * 256 + (4 + 4)  # Too small for codes; the scalar is float32.
    assert of_state(SHAPES, tx) == {"head": of_kernel + of_odd, "body": of_body, "(shared)": 8}
    by_expression = {"matrices": r"head/(kernel|odd)", "unused": "nothing", "late": "head/.*"}
    state = of_state(SHAPES, tx, patterns=by_expression)
    assert state == {"matrices": of_kernel + of_odd, "other": of_body, "(shared)": 8}
    assert list(bytes_per_parameter(SHAPES, tx).groups) == ["body", "head", "(shared)"]


class Hostile(NamedTuple):
    """A node with the field names of slots and containers in a state."""

    mu: Any
    codes: Any


@pytest.mark.parametrize(
    "params",
    [
        (jnp.ones((64, 256)), jnp.ones((32, 128))),
        [jnp.ones((64, 256)), jnp.ones((32, 128))],
        Hostile(jnp.ones((64, 256)), jnp.ones((32, 128))),
        {"mu": jnp.ones((64, 256)), "nu": {"mu": jnp.ones((32, 128))}},
    ],
    ids=["tuple", "list", "named", "nested"],
)
def test_the_owner_is_found_whatever_it_is_called(params):
    tx = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), int8, adam_jax.ema_params(0.9))
    first, second = (n * (2 + 4) + 2 * 4 * n // 128 for n in (64 * 256, 32 * 128))
    expressions = {"first": "0|mu", "second": "1|codes|nu/mu"}
    state = of_state(params, tx, patterns=expressions)
    assert state == {"first": first, "second": second, "(shared)": 8}


def test_the_owner_in_states_of_other_shapes():
    """Factored moments, a list below each leaf, an nnx variable, an array without a path."""
    params = {"w": jnp.ones((256, 512)), "b": jnp.ones(8)}
    state = of_state(params, optax.scale_by_factored_rms(min_dim_size_to_factor=32))
    assert state == {"w": 4 * (256 + 512 + 1), "b": 4 * (1 + 1 + 8), "(shared)": 4}
    state = of_state(params, optax.scale_by_sm3())
    assert state == {"w": 4 * 256 * 512, "b": 4 * 8, "(shared)": 4 * (256 + 512 + 8)}
    state = of_state(params, adam_jax.adamw(1e-3, **FORMATS["factored"]))
    assert state["w"] == (1 + 4 / 128) * 256 * 512 + 4 * (256 + 512) and state["b"] == 8 * 8
    model = nnx.Linear(256, 64, rngs=nnx.Rngs(0))
    n = 256 * 64
    for tx in (int8, adam_jax.stochastic_rounding(int8)):
        state = of_state(nnx.state(model, nnx.Param), tx)
        assert state["kernel"] == 2 * n + 2 * 4 * n // 64 and state["bias"] == 8 * 64
    state = of_state(jnp.ones((64, 256)), int8)
    assert state == {"(the whole tree)": 2 * n + n // 16, "(shared)": 4}


def test_what_is_nobodys_is_shared():
    params = {"b": jnp.ones(()), "w": jnp.ones((2, 3)), "v": jnp.ones(5)}
    telemetry = of_state(params, adam_jax.telemetry(adamw(1e-3)))
    assert telemetry == {"b": 8, "w": 48, "v": 40, "(shared)": 3 * 4 + 3 * 6 * 4}
    # The index of a stage is not a leaf's, although the stage stores its norms under it.
    pair = (params["w"], params["v"])
    spikes = adam_jax.clip_by_history(adamw(1e-3))
    around = of_state(pair, optax.chain(optax.identity(), spikes))
    assert around == {"0": 48, "1": 40, "(shared)": 3 * 4 + 4 * 4}


def test_the_tables():
    params = {"encoder": jnp.ones((1000, 1000)), "b": jnp.ones(5)}
    found = report(params, adamw(1e-3))
    lines = str(found).splitlines()
    model, step, leaves = lines[1:6], lines[8:13], lines[14:]
    assert lines[0] == "bytes per parameter" and lines[6:8] == ["", "a step, on each device (cpu)"]
    assert str(found.model) == "\n".join(lines[:6])
    assert model[2].split() == "encoder 1,000,000 4.00 4.00 8.00 16.00 16.00 MB".split()
    assert model[3].split() == "(shared) 0 4 B".split()
    assert [line.split()[0] for line in step[1:]] == ["arguments", "results", "temporaries", "peak"]
    assert leaves[0] == "stepped on TPUs by"
    assert leaves[2].split() == "XLA: in one pass 2".split()
    assert found.on_tpus.keys() == {"encoder", "b"}
    assert step[1].split()[1:] == ["16.00", "16.00", "MB"]
    assert len({len(line) for line in model}) == len({len(line) for line in step}) == 1


@pytest.mark.parametrize(
    "size, printed",
    [(249, "996 B"), (250, "1.00 kB"), (2**18, "1.05 MB"), (2**30, "4.29 GB"), (2**40, "4.40 TB")],
)
def test_units(size, printed):
    params = [jax.ShapeDtypeStruct((size,), jnp.float32), None]
    found = bytes_per_parameter(params, optax.identity(), grads=[None, None])
    assert found.total == 4 * size and str(found).endswith(printed)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(params={}),
            r"params must have arrays or jax.ShapeDtypeStructs in it, got a dict: pass",
        ),
        (dict(params=None), "params must have arrays"),
        (dict(params={"a": {"f": "text"}}), "got str at 'a/f': put None there"),
        (dict(tx=adamw), "tx must be an Optax transformation, got .*: write adamw"),
        (dict(grads={"v": 1.0}), "grads must be a tree like params, with None for a leaf"),
        (dict(grads={"w": jnp.ones(3)}), r"for the shape \(2, 3\) at 'w': pass the gradients"),
        (dict(grads={"w": {"x": jnp.ones((2, 3))}}), r"for the shape \(2, 3\) at 'w'"),
        (dict(patterns={"all": "("}), r"patterns\['all'\] must be a regular expression, got '\('"),
        (dict(args=(1,)), r"args must come with the step that takes them: pass step="),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        report(**{"params": {"w": jnp.ones((2, 3))}, "tx": int8} | options)
