"""`inspect.advise`: its text for each leaf, and its warnings about likely mistakes."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import adam_jax

BLOCK = {
    "kernel": jax.ShapeDtypeStruct((512, 2048), jnp.bfloat16),
    "bias": jax.ShapeDtypeStruct((2048,), jnp.bfloat16),
}
PARAMS = {"blocks": [BLOCK] * 3, "embed": jax.ShapeDtypeStruct((1000, 512), jnp.bfloat16)}


def test_each_leaf_by_its_storage_kernel_decay_and_group():
    tx = adam_jax.groups(
        functools.partial(adam_jax.adamw, 1e-3, weight_decay=0.1),
        {"embed": {"weight_decay": 0.0}, ".*bias": {"weight_decay": optax.constant_schedule(0.1)}},
        mu_dtype=jnp.int8,
        nu_dtype=adam_jax.Factored(),
    )
    advice = adam_jax.inspect.advise(PARAMS, adam_jax.skip_nonfinite(tx))
    by_path = {x.path: x for x in advice.leaves}
    kernel, bias, embed = (by_path[x] for x in ("blocks/0/kernel", "blocks/0/bias", "embed"))
    assert kernel.storage["mu"] == "int8 in blocks of 128"
    assert kernel.state == pytest.approx(1 + 4 / 128 + 4 / 512 + 4 / 2048)
    assert bias.storage == {"mu": "float32", "nu": "float32"} and bias.state == 8
    assert (kernel.decay, bias.decay, embed.decay) == ("0.1", "scheduled", "")
    assert (kernel.group, bias.group, embed.group) == ("", ".*bias", "embed")
    assert kernel.kernel.startswith("XLA: ") and advice.warnings
    text = str(advice)
    assert "blocks/#/kernel" in text and "blocks/0" not in text.split("\n\n")[0]
    assert repr(advice) == text and "Warning: 3 vectors" in text


def test_kernels_are_named():
    tx = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    assert {x.path: x.kernel for x in adam_jax.inspect.advise(BLOCK, tx).leaves} == {
        "bias": "XLA: in one pass",
        "kernel": "one kernel",
    }


def warnings_of(params, tx, **options):
    return adam_jax.inspect.advise(params, tx, **options).warnings


def test_mistakes_are_said():
    [still] = warnings_of(BLOCK, adam_jax.adamw(1e-3, weight_decay=0.0, nu_dtype=jnp.bfloat16))
    assert "nu of 2 leaves is bfloat16" in still and "stochastic(jnp.bfloat16)" in still
    assert warnings_of(BLOCK, adam_jax.adam(1e-3, b2=0.9, nu_dtype=jnp.bfloat16)) == ()
    [large] = warnings_of(BLOCK, adam_jax.adam(1e-3, eps=1e-3))
    assert large.startswith("eps is 0.001")
    stacked = {"w": jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)}
    stacked |= {"b": jax.ShapeDtypeStruct((4, 8), jnp.float32)}
    [layers] = warnings_of({"blocks": stacked, "w": stacked["b"]} | BLOCK, adam_jax.adam(1e-3))
    assert "with_layers(tx, 'blocks/.*')" in layers
    masked = adam_jax.adamw(1e-3, weight_decay=0.1, mask=adam_jax.decay_mask)
    assert warnings_of(BLOCK, masked) == ()


def test_what_is_not_donated_back_is_said():
    tx = adam_jax.adamw(1e-3, weight_decay=0.0)
    params = {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32)}

    def step(params, state, grads):
        return adam_jax.step(tx, grads, state, params)

    def keeps(params, state, grads):
        return *adam_jax.step(tx, grads, state, params), params["w"] + grads["w"]

    assert warnings_of(params, tx, step=step) == ()
    [copied] = warnings_of(params, tx, step=keeps)
    assert "1,048,6" in copied and "donate" in copied


def test_another_library_s_optimizer_has_its_storage():
    advice = adam_jax.inspect.advise(BLOCK, optax.sgd(1e-3, momentum=0.9))
    assert all(x.kernel == x.decay == "" and x.state == 2 for x in advice.leaves)
