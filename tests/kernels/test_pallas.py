"""Pallas kernels have the bits of XLA's programs; the leaves that use one; the lowered programs."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adam_jax
from adam_jax.inspect.memory import plans_of
from adam_jax.kernels.tiles import TOO_LARGE, Tiles
from tests.catalogue import kernel_cases
from tests.catalogue.compilation import FASTER
from tests.catalogue.runs import assert_same_bits
from tests.catalogue.scripts import process

EIGHT_BITS = adam_jax.adamw(1e-2, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
SHAPE = (128, 512)
NAME = "leaf_step"


def arguments(tx, shape=SHAPE):
    params, grads = jax.random.normal(jax.random.key(0), (2, *shape))
    return grads, tx.init(params), params


def plan(tx, shape, dtype=jnp.float32):
    params = jax.ShapeDtypeStruct(shape, dtype)
    (found,) = plans_of(params, tx, params, jax.eval_shape(tx.init, params)).values()
    return found.kernel


def lowered(f, platform, *args, **options):
    return jax.jit(f, **options).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.slow
@pytest.mark.bits
def test_a_kernel_has_the_bits_of_xlas_program():
    """20 steps of each member, modifier, storage, form of weights and shape."""
    # The former emitters compile faster. Without fused multiply-add, the bits are the same.
    environment = {"XLA_FLAGS": FASTER, "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0"}
    printed = process(
        "-m", "tests.tools.kernel_bits", "--each", in_a_hurry=False, **environment
    ).stdout
    count = len(list(kernel_cases.each_once()))
    assert f"{count} of {count} cases, 0 differ" in printed


COARSE, FINE = adam_jax.Quantized(block=64), adam_jax.Quantized(min_size=1)
MARS = adam_jax.mars_adamw(1e-2, mu_dtype=jnp.int8, nu_dtype=jnp.int8)


@pytest.mark.parametrize(
    "tx, shape, reason",
    [
        (adam_jax.with_kernel(EIGHT_BITS, "xla"), SHAPE, "the transformation asks for XLA"),
        (adam_jax.adamw(1e-2), SHAPE, "in one pass"),
        (adam_jax.cautious(MARS), SHAPE, "Cautious sees whole leaves"),
        (
            adam_jax.with_layers(adam_jax.cautious(EIGHT_BITS), ".*"),
            *((4, *SHAPE), "each of its layers has its own norms or means"),
        ),
        (
            adam_jax.adamw(1e-2, mu_dtype=jnp.int8, nu_dtype=adam_jax.Factored()),
            *(SHAPE, "RowsAndColumns sees whole leaves"),
        ),
        (EIGHT_BITS, (2**16,), "it is a vector, or has less than 65536 elements"),
        (EIGHT_BITS, (127, 512), "it is a vector, or has less than 65536 elements"),
        (
            adam_jax.adamw(1e-2, mu_dtype=COARSE, nu_dtype=jnp.int8),
            *(SHAPE, "it has blocks of 64 and 128 elements"),
        ),
        (
            adam_jax.adamw(1e-2, mu_dtype=COARSE, nu_dtype=COARSE),
            *(SHAPE, "blocks of 64 elements are not whole registers of 128"),
        ),
        (
            *(EIGHT_BITS, (256, 8, 33)),
            "its blocks lie along neither of the axes that are in a register",
        ),
        (EIGHT_BITS, (128, 100032), TOO_LARGE),
        (
            adam_jax.with_layers(adam_jax.adamw(1e-2, mu_dtype=FINE, nu_dtype=FINE), {".*": 2}),
            *((4, 128, 512), "a register holds several layers"),
        ),
    ],
    ids=lambda x: x.replace(" ", "_") if isinstance(x, str) else "",
)
def test_a_leaf_without_a_kernel_has_a_reason(tx, shape, reason):
    assert plan(tx, shape) == reason


def test_dtypes_that_kernels_do_not_know(x64):
    for dtype in ("float16", "float64"):
        assert plan(EIGHT_BITS, SHAPE, jnp.dtype(dtype)) == f"kernels know no {dtype}"
    reason = "its hyperparameters are not single numbers of 32 bits"
    assert plan(EIGHT_BITS, SHAPE) == reason


def test_what_with_kernel_refuses():
    with pytest.raises(ValueError, match="kernel must be 'auto', 'xla' or 'pallas', got 'triton'"):
        adam_jax.with_kernel(EIGHT_BITS, "triton")
    with pytest.raises(ValueError, match="tx must be a member of adam_jax, got"):
        adam_jax.with_kernel(optax.adamw(1e-2), "xla")


def test_of_a_function_it_makes_a_function_and_the_state_stays():
    made = adam_jax.with_kernel(adam_jax.adamw, "pallas")(1e-2)
    assert made == adam_jax.with_kernel(adam_jax.adamw(1e-2), "pallas") != adam_jax.adamw(1e-2)
    params = jnp.ones(SHAPE)
    assert_same_bits(made.init(params), adam_jax.adamw(1e-2).init(params))


def test_elsewhere_nothing_changes():
    args = arguments(EIGHT_BITS)
    by_xla = adam_jax.with_kernel(EIGHT_BITS, "xla")

    def operations(tx):
        text = jax.jit(tx.step).lower(*args).compile().as_text()
        return Counter(re.findall(r"= (\S+ [a-z-]+)\(", text))

    assert adam_jax.with_kernel(EIGHT_BITS, "auto") == EIGHT_BITS
    assert operations(EIGHT_BITS) == operations(by_xla)
    assert sum(operations(by_xla).values()) > 100
    kernels = {
        platform: [NAME in lowered(tx.step, platform, *args) for tx in (EIGHT_BITS, by_xla)]
        for platform in ("cpu", "cuda", "tpu")
    }
    assert kernels == {"cpu": [False] * 2, "cuda": [False] * 2, "tpu": [True, False]}


def test_vmap_and_derivatives_are_those_of_xla():
    txs = [adam_jax.with_kernel(EIGHT_BITS, kernel) for kernel in ("pallas", "xla")]
    grads, params = jax.random.normal(jax.random.key(1), (2, 2, *SHAPE))
    states = jax.vmap(EIGHT_BITS.init)(params)
    assert_same_bits(*(jax.jit(jax.vmap(tx.step))(grads, states, params) for tx in txs))

    def after(grads, params, tx):
        params, state = adam_jax.step(tx, grads, EIGHT_BITS.init(params), params)
        return jnp.sum(params**2) + jnp.sum(state[0].mu.scale)

    derivatives = [jax.jit(jax.grad(after, (0, 1)), static_argnums=2) for _ in txs]
    found = [f(grads[0], params[0], tx) for f, tx in zip(derivatives, txs, strict=True)]
    assert_same_bits(*found)
    assert all(np.any(x) for x in found[0])


def test_it_is_exported_without_a_tpu_and_runs_here():
    # Flat lists, because a NamedTuple in an exported file must be registered.
    leaves, treedef = jax.tree.flatten(arguments(EIGHT_BITS))
    f = jax.jit(lambda xs: jax.tree.leaves(EIGHT_BITS.step(*jax.tree.unflatten(treedef, xs))))
    exported = jax.export.export(f, platforms=["cpu", "tpu"])(leaves)
    read = jax.export.deserialize(exported.serialize())
    assert read.mlir_module().count("stablehlo.custom_call @tpu_custom_call") == 1
    assert NAME in read.mlir_module()
    assert_same_bits(read.call(leaves), f(leaves))


def test_arrays_that_are_given_away_are_stepped_in_place():
    tx = adam_jax.with_kernel(EIGHT_BITS, "pallas")
    grads, state, params = arguments(tx)
    expected = jax.jit(tx.step)(grads, state, params)
    donated = jax.jit(tx.step, donate_argnums=(1, 2))
    assert_same_bits(donated(grads, *jax.tree.map(jnp.copy, (state, params))), expected)
    text = lowered(tx.step, "tpu", grads, state, params, donate_argnums=(1, 2))
    assert text.count("output_operand_alias<") == 5  # The weights, and codes and scales twice.


@pytest.mark.parametrize("spec", [("data",), (None, "data")], ids=["rows", "columns"])
def test_each_device_has_its_kernel_inside_shard_map(spec):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
    parts = PartitionSpec(*spec)

    def local(grads, params):
        return EIGHT_BITS.step(grads, EIGHT_BITS.init(params), params)[0]

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(parts, parts), out_specs=parts)
    assert NAME in lowered(mapped, "tpu", params, params)
    # XLA cannot partition a kernel.
    sharded = jax.ShapeDtypeStruct(params.shape, params.dtype, sharding=NamedSharding(mesh, parts))
    assert NAME not in lowered(local, "tpu", sharded, sharded)
    assert NAME not in lowered(mapped, "cpu", params, params)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    ("spec", "wrapped", "width"),
    [
        ((), True, 1024),
        ((), False, 1024),
        (("data",), False, 1024),
        ((None, "data"), False, 1024),
        ((None, "data"), False, 256),  # Blocks of 32, for which the whole leaf has no kernel.
    ],
    ids=["sharded state", "replicated", "rows", "columns", "short columns"],
)
@pytest.mark.parametrize("devices", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_kernels_of_parts_have_the_bits_of_xlas_program(kind, spec, wrapped, width, devices):
    """And they send nothing that XLA's program does not send."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(kind,), devices=jax.devices()[:devices])
    there = NamedSharding(mesh, PartitionSpec(*spec))
    params, grads = (
        jax.device_put(x, there)
        for x in jax.random.normal(jax.random.key(0), (2, 2**19 // width, width))
    )
    after, sent = [], []
    for kernel in ("pallas", "xla"):
        tx = adam_jax.with_kernel(EIGHT_BITS, kernel)
        tx = adam_jax.sharding.shard_state(tx, mesh) if wrapped else tx
        state = tx.init(params)
        known = wrapped or kind == AxisType.Explicit or devices == 1
        has_kernel = NAME in lowered(tx.step, "tpu", grads, state, params)
        assert has_kernel == (known and kernel == "pallas")
        compiled = jax.jit(tx.step).lower(grads, state, params).compile()
        after.append(compiled(grads, state, params))
        text = compiled.as_text()
        sent.append(Counter(re.findall(r" (all-\w+|collective-\w+|reduce-scatter)\(", text)))
    assert_same_bits(*after)
    assert sent[0] <= sent[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "axes", "shape"),
    [
        ("float32", 1, (3, 128, 512)),
        ("float32", 2, (2, 3, 64, 512)),
        ("master_residual 8", 1, (3, 64, 512)),
    ],
)
def test_a_kernel_rounds_each_layer_by_its_own_bits(weights, axes, shape):
    wrapper, dtype = kernel_cases.WEIGHTS[weights]
    params, grads = jax.random.normal(jax.random.key(0), (2, *shape)).astype(dtype)
    after = []
    for kernel in ("pallas", "xla"):
        tx = adam_jax.with_layers(wrapper(adam_jax.with_kernel(EIGHT_BITS, kernel)), {"w": axes})
        tree = {"a": jnp.ones(3, dtype), "w": params}
        after.append(jax.jit(tx.step)({"a": tree["a"], "w": grads}, tx.init(tree), tree))
        found = plans_of(tree, tx, tree, tx.init(tree))
        assert isinstance(found["w"].kernel, Tiles) == (kernel == "pallas")
    assert_same_bits(*after)
