"""`inspect.advise`: its text for each leaf, and its warnings about likely mistakes."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import adam_jax
from tests.tools.record import WRAPPERS

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
    kernels = {x.path: x.kernel for x in adam_jax.inspect.advise(BLOCK, tx).leaves}
    assert kernels == {"bias": "XLA: in one pass", "kernel": "one kernel"}


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


MATRICES = {"head": {"w": jnp.ones((4, 4))}, "body": {"w": jnp.ones((4, 4))}}
CLIPS = {
    "ours": (adam_jax.clip_by_global_norm(1.0), adam_jax.chain, "clip_by_global_norm"),
    "Optax's": (optax.clip_by_global_norm(1.0), optax.chain, "clip_by_global_norm"),
    "by element": (optax.clip(1.0), optax.chain, "clip"),
    "by parameter": (optax.adaptive_grad_clip(0.1), adam_jax.chain, "adaptive_grad_clip"),
}


@pytest.mark.parametrize(("clip", "chain", "name"), CLIPS.values(), ids=CLIPS)
def test_a_clip_in_the_wrong_place(clip, chain, name):
    adam, around = adam_jax.adam(1e-3), adam_jax.skip_nonfinite
    assert warnings_of(MATRICES, around(chain(clip, adam))) == ()
    assert warnings_of(MATRICES, adam_jax.accumulate(chain(clip, adam), 4)) == ()
    [behind] = warnings_of(MATRICES, around(chain(adam, clip)))
    assert f"{name} stands behind adam" in behind and f"chain({name}(...), adam(...))" in behind
    [outside] = warnings_of(MATRICES, chain(clip, adam_jax.accumulate(adam, 4)))
    assert outside.endswith(f"Write accumulate(chain({name}(...), ...), every).")


def test_two_members_on_one_leaf(standard_promotion):
    adam, lion = adam_jax.adam(1e-3), adam_jax.lion(1e-3, weight_decay=0.0)
    twice = adam_jax.chain(adam, lion), optax.chain(optax.adan(1e-3), optax.adam(1e-3))
    for tx in twice:
        [warning] = warnings_of(MATRICES, tx)
        assert "such as 'body/w' have moments of two members" in warning
    partition = adam_jax.groups({"head/.*": adam, ".*": lion})
    assert warnings_of(MATRICES, partition) == ()


def test_a_learning_rate_of_a_thousand():
    for tx in (adam_jax.adam(1000.0), adam_jax.groups(adam_jax.lion, {}, learning_rate=-1e3)):
        [warning] = warnings_of(MATRICES, tx)
        assert "the learning rate is" in warning and warning.endswith("Write 1e-3.")
    assert warnings_of(MATRICES, adam_jax.adam(1.0)) == ()


def test_a_weight_without_a_gradient():
    grads = {"head": MATRICES["head"], "body": {"w": None}}
    [warning] = warnings_of(MATRICES, adam_jax.adam(1e-3), grads=grads)
    assert "such as 'body/w' have a state, but no gradient" in warning
    frozen = adam_jax.groups(adam_jax.adam, {"body/w": None}, learning_rate=1e-3)
    assert warnings_of(MATRICES, frozen, grads=grads) == ()


def test_averaged_gradients_are_refused():
    average, adam = adam_jax.ema_params(0.9), adam_jax.adam(1e-3)
    wrong = (
        lambda: adam_jax.chain(average, adam),
        lambda: adam_jax.chain(adam, average, optax.scale(0.5)),
        lambda: adam_jax.skip_nonfinite(optax.chain(average, adam)),
        lambda: adam_jax.inspect.advise(MATRICES, optax.chain(average, adam)),
    )
    for make in wrong:
        with pytest.raises(
            ValueError, match=r"^ema_params must be last .* Write chain\((adam|scale)"
        ):
            make()
    adam_jax.chain(adam, average, adam_jax.ema_params(0.99))


def in_state(factory, groups, **defaults):
    return adam_jax.with_hyperparams(functools.partial(adam_jax.groups, factory, groups))(
        **defaults
    )


@pytest.mark.parametrize("make", [adam_jax.groups, in_state], ids=["numbers", "in the state"])
def test_each_leaf_has_its_numbers_and_the_expressions_that_it_matches(make):
    params = {name: {"w": jnp.ones((2, 2)), "bias": jnp.ones(2)} for name in ("body", "head")}
    bias, head = {"b1": 0.5}, {"learning_rate": 3e-4, "b2": 0.95}
    trap = make(adam_jax.adam, {".*bias": bias, "head/.*": head}, learning_rate=1e-3)
    advice = adam_jax.inspect.advise(params, trap)
    by_path = {x.path: x for x in advice.leaves}
    assert by_path["head/bias"].group == ".*bias"
    assert "b2=0.95" in by_path["head/w"].numbers and "eps" not in by_path["head/w"].numbers
    assert "b1=0.5" in by_path["head/bias"].numbers
    [warning] = advice.warnings
    assert warning.startswith("'head/bias' matches '.*bias' and 'head/.*'")
    right = {"head/bias": bias | head, "head/.*": head, ".*bias": bias, ".*": {}}
    right = make(adam_jax.adam, right, learning_rate=1e-3)
    advice = adam_jax.inspect.advise(params, right)
    by_path = {x.path: x for x in advice.leaves}
    assert by_path["head/bias"].group == "head/bias" and advice.warnings == ()
    assert "b1=0.5" in by_path["head/bias"].numbers and "b2=0.95" in by_path["head/bias"].numbers


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


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_hyperparameters_in_the_state_inside_every_wrapper(wrap):
    params = {"w": jnp.ones((8, 16)), "bias": jnp.ones(16)}
    for rate in (0.1, optax.linear_schedule(0.1, 0.0, 10)):
        tx = wrap(adam_jax.with_hyperparams(adam_jax.adamw)(rate, b2=0.99))
        advice = adam_jax.inspect.advise(params, tx)
        assert {x.path for x in advice.leaves} == {"w", "bias"} and "traced" not in str(advice)
        inside = jax.eval_shape(lambda s, tx=tx: tx.update(params, s, params), tx.init(params))
        assert jax.tree.leaves(inside) and "Tracer" not in repr(tx)
