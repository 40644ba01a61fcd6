"""Steps exported to files, and read and continued in another process, have the same bits."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.core import states
from tests.catalogue.low_precision import MOMENTS, WEIGHTS
from tests.catalogue.recipes import RECIPES, schedule
from tests.catalogue.scripts import process

STEPPED = {
    **{name: make() for name, (make, _) in [*RECIPES.items()][4:]},
    **{f"moments {name}": adam_jax.adamw(schedule, mu_dtype=mu, nu_dtype=nu)
       for name, (mu, nu) in MOMENTS.items() if name not in ("bfloat16", "stochastic int4")},
    **{f"weights {name}": wrap(adam_jax.adamw(schedule)) for name, wrap in WEIGHTS.items()
       if name != "stochastic_rounding"},
    "factored": adam_jax.adan(schedule, nu_dtype=adam_jax.Factored(32, 32)),
    "hyperparams": adam_jax.with_hyperparams(adam_jax.adamw)(schedule, b2=0.99),
    "groups": adam_jax.groups({"w": optax.contrib.muon(1e-2), ".*": adam_jax.lion(schedule)}),
    "rates": adam_jax.mars_adamw(1e-2, b2=adam_jax.schedules.power_law_schedule(0.8)),
    "spikes": adam_jax.clip_by_history(adam_jax.laprop(1e-2, weight_decay=1e-4)),
    "telemetry": adam_jax.telemetry(adam_jax.adamh(schedule, 1e-3)),
    "noise scale": adam_jax.estimate_noise_scale(adam_jax.accumulate(adam_jax.adam(schedule), 2)),
    "schedule-free": adam_jax.schedule_free_adamw(1e-2),
    "MultiSteps": optax.MultiSteps(optax.amsgrad(schedule), 2).gradient_transformation(),
}  # fmt: skip
PROGRAM = """
import sys, pathlib, jax, jax.export, numpy as np, adam_jax

adam_jax.register_optax_states()
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.step")):
    step = jax.export.deserialize(path.read_bytes())
    data, leaves = path.with_suffix(".in").read_bytes(), []
    for x in step.in_avals:
        own = np.frombuffer(data, x.dtype, x.size).reshape(x.shape)
        data, leaves = data[own.nbytes :], [*leaves, own]
    run, _ = jax.tree.unflatten(step.in_tree, leaves)
    for _ in range(3):
        run = step.call(*run)
    after = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(run))
    path.with_suffix(".out").write_bytes(after)
"""


def in_bytes(tree):
    return b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_exported_steps_have_the_same_bits_in_another_process(tmp_path):
    assert len(STEPPED) >= 20
    adam_jax.register_optax_states()
    after = {}
    for i, (name, tx) in enumerate(STEPPED.items()):
        dtype = jnp.bfloat16 if "weights" in name else jnp.float32
        matrix = jnp.sin(jnp.arange(64.0 * 128)).reshape(64, 128)
        params = {"w": matrix, "b": jnp.ones(128), "deep": {"k": jnp.ones((8, 2, 3))}}
        params = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), params)

        def step(params, state, tx=tx):
            return adam_jax.step(tx, jax.tree.map(jnp.sin, params), state, params)

        run = params, tx.init(params)
        exported = jax.export.export(jax.jit(step))(*run)
        (tmp_path / f"{i}.step").write_bytes(exported.serialize())
        (tmp_path / f"{i}.in").write_bytes(in_bytes(run))
        for _ in range(3):
            run = exported.call(*run)
        after[i, name] = in_bytes(run)
    process("-c", PROGRAM, tmp_path, in_a_hurry=False)
    for (i, name), expected in after.items():
        assert (tmp_path / f"{i}.out").read_bytes() == expected, name


NAMES = """AccumulateState EmaParamsState ExactRate HistoryState LeafCountsState
    NoiseScaleState Past ScaleByLapropState ScaleByMarsState ScaleOnSphereState ScheduledRatesState
    SpreadState TelemetryState WeightsState"""


def test_names_in_files_never_change():
    own = {kind.__name__: kind for kind in states._KNOWN if kind.__module__.startswith("adam_jax.")}
    assert {*own} == {*NAMES.split()}  # Add names, and change none.
    trees = [kind(*map(jnp.asarray, range(len(kind._fields)))) for kind in own.values()]
    written = jax.export.export(jax.jit(lambda x: x))(trees).serialize()
    assert all(f"adam_jax.{name}".encode() in written for name in own)
    assert jax.export.deserialize(written).in_tree == jax.tree.structure(((trees,), {}))
