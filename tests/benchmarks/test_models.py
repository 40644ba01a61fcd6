"""`benchmarks.models`: published shapes, and the links of collectives between slices."""

import math

import jax
import pytest

from benchmarks import models
from benchmarks.tpu.program import collectives

SENT = (
    "  %send = (f32[1,1,128]{2,1,0}, u32[], token[]) send(%all-reduce.1, %after-all), channel_id=2,"
    ' frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_host_transfer_rendezvous="all-reduce_0"}'
)


@pytest.mark.parametrize("name", models.MODELS)
def test_the_parameters_are_as_many_as_published(name):
    model = models.MODELS[name]
    mesh = jax.make_mesh((1, 8), ("slice", "fsdp"))
    leaves = jax.tree.leaves(models.parameters(model, "float32", mesh))
    assert sum(math.prod(p.shape) for p in leaves) == model.published
    assert models.on_device(leaves) == pytest.approx(4 * model.published / 8, rel=2e-3)


def test_a_collective_has_a_name_and_a_link():
    program = "\n".join(
        [
            "  %x = (f32[]{:T(128)}, f32[8]{0}) all-reduce(%a, %b), channel_id=1",
            "  %y = bf16[64]{0} all-gather(%p), channel_id=2",
            "  %z = bf16[64]{0} all-gather-start(%q), channel_id=3",
            SENT,
            "  %w = f32[] multiply(%all-reduce, %y)",
        ]
    )
    found = collectives(program)
    assert found == {
        ("all-reduce", "ICI"): (1, 36),
        ("all-gather", "ICI"): (2, 256),
        ("all-reduce", "DCN"): (1, 512),
    }
    assert models.printed(found).endswith("1 all-reduce, 0.512 kB DCN")
    assert models.printed({}) == "none"


@pytest.mark.slow
@pytest.mark.usefixtures("tpu_compiler", "standard_promotion")
def test_between_slices_only_a_state_split_over_them_sends():
    wanted = (*models.FIRST, *models.CLIPPED, models.APART)
    rows = models.models([("Llama 3.2 1B", "v5e:2x4", 2, wanted)], rounds=1)
    found = {row["optimizer"]: row for row in rows}
    assert {name for name, row in found.items() if row["collectives"] == "none"} == {*models.FIRST}
    assert {name for name, row in found.items() if "DCN" in row["collectives"]} == {models.APART}
    for row in found.values():
        assert row["init: temporaries"] <= 0.01 * row["state"]
        if row["optimizer"] != models.APART:
            assert row["step: temporaries"] <= 0.01 * row["GB: all"]
    assert found["8-bit moments"]["state"] <= 0.27 * found["adamw"]["state"]
