"""`benchmarks.scale`: a split state takes an eighth of the memory and sends no more bytes."""

import pytest

from benchmarks import scale

pytestmark = pytest.mark.slow


def test_an_eighth_of_the_state_and_the_same_steps():
    for row in scale.devices():
        assert row["share"] <= 1 / 8 + 0.05, row
        assert row["largest difference"] <= 1e-6, row


@pytest.mark.usefixtures("h200_compiler")
def test_compiled_for_8_gpus_as_many_bytes_are_sent_as_by_one_all_reduce():
    rows = {row["state"]: row for row in scale.wire()}
    for name in scale.STATES:
        whole, split = rows[f"{name}, whole"], rows[f"{name}, split"]
        assert split["together"] <= 1.001 * whole["together"]
        assert split["all-reduce B/p"] < 0.001 * whole["all-reduce B/p"]


def test_bytes_around_a_ring():
    starts = "%x = ((f32[64]{0}), (f32[8]{0})) reduce-scatter-start(%g), channel_id=5"
    gathered = "%y = f32[64]{0} all-gather(%p), channel_id=2"
    reduced = "%z = f32[16]{0} all-reduce(%g), to_apply=%add"
    found = scale.sent("\n".join([starts, gathered, reduced]), 8)
    once = 64 * 4 * 7 / 8
    assert found == {"reduce-scatter": once, "all-gather": once, "all-reduce": 2 * 16 * 4 * 7 / 8}


def test_on_paper_the_state_is_all_that_shrinks():
    rows = list(scale.paper())
    assert len(rows) == 12
    for row in rows:
        assert row["split"] < row["GB on each, whole"]
        assert row["GB sent, all-reduce"] == row["reduce-scatter + all-gather"]
