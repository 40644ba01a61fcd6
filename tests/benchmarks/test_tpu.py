"""Reading steps compiled for TPUs: layouts, loops, bytes, and the bounds that `--gate` enforces."""

import math
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.tpu import machine, plot
from benchmarks.tpu.bundles import Length, length
from benchmarks.tpu.cases import BASE, CASES, CODES_BY_XLA, DENSE, FREE, ONE_PASS, failures, leaf
from benchmarks.tpu.gate import rows, sent
from benchmarks.tpu.machine import compile_for_tpu
from benchmarks.tpu.rows import counted, measure

ROOT = Path(__file__).parents[2]


def run(*arguments, module="tpu"):
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_fused_reduce_scatter_is_sent_once():
    fused = "%all-reduce-scatter.1 (p: f32[64]) -> f32[8] {\n  %r = f32[64]{0} all-reduce(%p)\n}\n"
    gathered = "ENTRY %main () -> f32[64] {\n  %g = f32[64]{0} all-gather(%x)\n}\n"
    assert sent(fused + gathered, 8) == 2 * 64 * 4 * 7 / 8


LOOPS = """
     0   :  { %s0 = smov.u32 0 }
   0x1 LB: > { %s1 = sphi %s0, %s9 /* phi copy */ }
   0x2 LB: >> { %v1 = vld [vmem:[%s2] sm:$0xff] }
   0x3   : >> { %p1 = scmp.ge.s32.totalorder %s4, 4 /* loop exit test */ }
   0x4   :  {}
   0x5   : > { %s5 = smov.u32 0 }
   0x6   : >> { %1 = sbr.rel (!%p1) target = $region4 }
   0x7 PF: > { %p2 = scmp.ge.s32.totalorder %s9, 34 /* loop exit test */ }
   0x8   :  { %3 = vsyncpa [#allocation5], 1 }
"""


def test_bundles_of_loops_are_taken_as_often_as_they_turn():
    # The outer loop has 34 iterations for 32 blocks.
    inner = 4 * 32 * 4
    assert length(LOOPS) == Length(total=2 + 32 * 3 + inner, inner=inner)
    assert length("     0   :  { %s0 = smov.u32 0 }\n") == Length(1, 1)
    unrolled = LOOPS.replace("%s1 = sphi %s0, %s9", "%s4 = sadd.s32 2, %s6")
    assert length(unrolled).inner == inner // 2
    with pytest.raises(ValueError, match="length of a loop"):
        length(LOOPS.replace("34 /* loop exit test", "%s3"))


GOOD = {
    "generation": "v5e",
    "case": "8-bit moments",
    "leaves": 1,
    "floor B/p": 16.125,
    "HBM B/p": 16.2,
    "temporary B/p": 0.0,
    "fusions": 0,
    "kernels": 1,
    "copies": 0,
    "reduces": 0,
    "broadcasts": 0,
    "transposes": 0,
    "bundles": 40.0,
    "of float32": 0.7,
}


@pytest.mark.parametrize(
    "change, bounds, message",
    [
        ({}, ONE_PASS, None),
        ({"bundles": None, "of float32": None}, ONE_PASS, None),
        ({"HBM B/p": 16.5}, ONE_PASS, "HBM B/p 16.5 > 16.45"),
        ({"HBM B/p": 16.5}, ONE_PASS._replace(reads=1), None),
        ({"temporary B/p": 0.05}, DENSE, "temporary B/p 0.05 > 0.01"),
        ({"fusions": 1}, ONE_PASS, "passes 2 > 1"),
        ({"fusions": 1}, ONE_PASS._replace(reads=1), None),
        ({"copies": 2}, ONE_PASS, "copies 2 > 0"),
        ({"bundles": 44.5}, ONE_PASS, "bundles 44.5 > 44"),
        ({"bundles": 44.5, "generation": "v5p"}, ONE_PASS, None),
        ({"of float32": 1.25}, ONE_PASS, "of float32 1.25 > 1"),
        ({"of float32": 1.25, "generation": "v4"}, ONE_PASS, None),  # Reported, not enforced.
        ({"HBM B/p": 35.0, "fusions": 5}, CODES_BY_XLA, None),
        ({"HBM B/p": 37.0}, CODES_BY_XLA, "HBM B/p 37 > 36"),
        ({"leaves": 300, "fusions": 300}, ONE_PASS, None),
        ({"HBM B/p": 500.0}, FREE, None),
    ],
)
def test_what_does_not_hold_is_said(change, bounds, message):
    assert failures(GOOD | change, bounds) == ([message] if message else [])


def test_every_case_has_bounds_and_the_gate_has_cases_that_are_there():
    assert len(CASES) > 35
    free = [name for name, case in CASES.items() if case.bounds == FREE]
    assert len(free) == 3
    listed = list(rows())
    assert all(name in CASES for _, _, _, name in listed)
    assert len({name for generation, _, _, name in listed if generation == "v5e"}) >= 12
    assert {generation for generation, *_ in listed} == {"v5e", "v6e", "v5p"}


def test_the_version_is_the_one_that_make_installs():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert groups["tpu-compiler"] == [f"libtpu=={machine.LIBTPU}"]
    assert f"libtpu=={machine.LIBTPU}" in (ROOT / "benchmarks" / "tpu" / "__main__.py").read_text()


def test_without_the_compiler_it_says_what_to_install(tmp_path):
    done = run("--libtpu", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert f"--target FOLDER libtpu=={machine.LIBTPU}" in done.stderr.splitlines()[-1]


def test_the_published_table_is_drawn(tmp_path):
    found = plot.rows()
    assert found["8-bit moments"][0] == [16.13] and len(found["8-bit moments"]) == 4
    picture = tmp_path / "chart.png"
    done = run(str(picture), module="tpu.plot")
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


SIDE = 4096, 4096
LOOP = """
%body (x: f32[64,128]) -> f32[64,128] {
  ROOT %y = f32[64,128] copy(%x)
}
ENTRY %main (p: f32[64,128]) -> f32[64,128] {
  ROOT %w = f32[64,128] while(%p), body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_a_loop_counts_as_often_as_it_turns():
    assert counted(LOOP)["HBM"] == 3 * 4 * 64 * 128


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize(
    "name, shape, padding, reads, kinds",
    [
        (BASE, SIDE, 1.0, 0, (1, 0, 0)),
        ("4-bit moments", SIDE, 1.0, 0, (0, 1, 0)),
        ("bf16 weights, residual 8", SIDE, 1.0, 0, (0, 1, 0)),
        ("clip, skip, 8-bit moments", SIDE, 1.0, 4, (1, 1, 0)),
        # XLA reads the gradient, the codes and their scales twice, some of them in slices.
        ("8-bit, factored moments", SIDE, 1.0, 4 + 1 + 4 / 128, (4, 0, 2)),
        # XLA turns the axes of both. The second then has tiles of 8 by 128.
        ("8-bit moments", (8192, 16, 64), 1.0, 0, (0, 1, 0)),
        (BASE, (65536, 100), 104 / 100, 0, (1, 0, 0)),
    ],
)
def test_bytes_are_those_of_all_inputs_and_outputs(name, shape, padding, reads, kinds):
    row = measure("v5e", name, leaf(shape))
    assert row["HBM B/p"] == pytest.approx(padding * row["floor B/p"] + reads, rel=1e-3)
    assert (row["fusions"], row["kernels"], row["copies"]) == kinds


@pytest.mark.usefixtures("tpu_compiler")
def test_what_passes_through_fast_memory_and_branches_not_taken_count_nothing():
    def step(x):
        x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x)
        return jax.lax.cond(x[0, 0] > 0, lambda x: -x, jnp.cos, x)

    found = counted(compile_for_tpu("v5e", step, jax.ShapeDtypeStruct(SIDE, "float32")).as_text())
    assert found["HBM"] == pytest.approx(8 * math.prod(SIDE), rel=1e-3)


@pytest.mark.usefixtures("tpu_compiler")
def test_float32_is_one_pass_on_a_tpu():
    done = run("--generation", "v5e", "--only", "adamw", "--side", "4096")
    assert done.returncode == 0, done.stderr
    lines = [line[2:-2].split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    found = {row["case"]: row for row in (dict(zip(lines[0], x, strict=True)) for x in lines[1:])}
    assert found.keys() == {name for name in CASES if "adamw" in name}
    for name in ("optax.adamw", "adam_jax.adamw", "adamw, update"):
        row = found[name]
        assert row["verdict"] == "holds", row
        assert float(row["HBM B/p"]) == pytest.approx(28, rel=1e-3) and row["fusions"] == "1.00"
    assert found["adam_jax.adamw"]["of float32"] == "1.00"
    assert all(f"{name} " in done.stdout for name in ("jax", "jaxlib", "optax", "libtpu"))
