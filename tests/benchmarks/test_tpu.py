"""Reading steps compiled for TPUs: layouts, loops, bytes, and the bounds that `--gate` enforces."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.tpu import machine, plot
from benchmarks.tpu.bundles import Length, length
from benchmarks.tpu.cases import CASES, CODES_BY_XLA, DENSE, FREE, ONE_PASS, failures
from benchmarks.tpu.gate import rows, sent
from benchmarks.tpu.program import HBM, Buffer, buffers, operations
from benchmarks.tpu.rows import counted

ROOT = Path(__file__).parents[2]
FULL, TURNED = "f32[8192,64]{1,0:T(8,128)}", "f32[8192,64]{0,1:T(8,128)}"
MIB = 2**20


def run(*arguments, module="tpu"):
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "shape, number",
    [
        ("f32[8192,64]{1,0:T(8,128)}", 8192 * 128 * 4),  # Only the last axis is padded.
        ("f32[1001,16,64]{0,2,1:T(8,128)}", 1024 * 16 * 64 * 4),
        ("s8[33,128]{1,0:T(32,128)(4,1)}", 64 * 128),
        ("s4[64,256]{1,0:T(64,128)(8,1)E(4)}", 64 * 128),
        ("f32[8,100]", 3200),
        ("u32[]{:T(128)}", 4),
        ("f8e4m3fn[128]{0}", 128),
    ],
)
def test_bytes_have_the_padding_of_tiles(shape, number):
    assert buffers(shape) == [Buffer(number, HBM)]


def program(*lines):
    inside = f"""HloModule jit_step

%fused (x: f32[8192,64]) -> f32[8192,64] {{
  %x = {FULL} parameter(0)
  ROOT %y = {FULL} negate(%x)
}}

%body (x: f32[8192,64]) -> f32[8192,64] {{
  %x.1 = {FULL} parameter(0)
  ROOT %y.1 = {FULL} copy(%x.1), backend_config={{"estimated_cycles":"7"}}
}}

ENTRY %main (p: f32[8192,64]) -> f32[8192,64] {{
  %p = {FULL} parameter(0)
"""
    return inside + "".join(f"  {line}\n" for line in lines) + "}\n"


ESTIMATE = 'backend_config={"estimated_cycles":"6000"}'


def test_a_fusion_counts_what_it_reads_and_writes():
    [op] = operations(program(f"ROOT %f = {TURNED} fusion(%p), calls=%fused, {ESTIMATE}"))
    assert (op.opcode, op.hbm, op.cycles, op.kernel) == ("fusion", 6 * MIB, 6000, False)
    [op] = operations(program(f"ROOT %f = {TURNED[:-1]}S(1)}} fusion(%p), calls=%fused"))
    assert op.hbm == 4 * MIB
    [op] = operations(
        program(f"%b = {FULL} bitcast(%p)", f"ROOT %f = {FULL} fusion(%b, /*index=5*/%p)")
    )
    assert op.hbm == 12 * MIB


def test_a_fused_reduce_scatter_is_sent_once():
    fused = "%all-reduce-scatter.1 (p: f32[64]) -> f32[8] {\n  %r = f32[64]{0} all-reduce(%p)\n}\n"
    gathered = "ENTRY %main () -> f32[64] {\n  %g = f32[64]{0} all-gather(%x)\n}\n"
    assert sent(fused + gathered, 8) == 2 * 64 * 4 * 7 / 8


@pytest.mark.parametrize(
    "to, source, number",
    [("S(1)", "", 4 * MIB), ("", "S(1)", 4 * MIB), ("", "", 8 * MIB), ("S(1)", "S(1)", 0)],
)
def test_a_copy_reads_and_writes_what_is_in_memory(to, source, number):
    spaces = [f"{FULL[:-1]}{space}}}" for space in (to, source)]
    shape = f"({', '.join(spaces)}, u32[]{{:S(2)}})"
    lines = [f"%c = {shape} copy-start(%p)", f"ROOT %d = {spaces[0]} copy-done(%c)"]
    [op] = operations(program(*lines))
    assert (op.opcode, op.hbm) == ("copy-start", number)


def test_of_a_slice_only_what_is_taken_is_read():
    part = "f32[1024,64]{1,0:T(8,128)S(1)}"
    line = f"ROOT %s = (({FULL}), {part}, s32[]{{:S(2)}}) slice-start(%p), slice={{[0:1024]}}"
    [op] = operations(program(line))
    assert op.hbm == MIB // 2


def test_kernels_loops_branches_and_what_is_free():
    kernel = f"%leaf_step.1 = {FULL} custom-call(%p), custom_call_target="
    [op] = operations(program(kernel + '"tpu_custom_call"'))
    assert op.kernel and op.cycles is None and op.hbm == 8 * MIB
    assert operations(program(kernel + '"ConcatBitcast"')) == []
    turns = 'backend_config={"known_trip_count":{"n":"3"}}'
    found = operations(program(f"ROOT %w = {FULL} while(%p), condition=%c, body=%body, {turns}"))
    assert [(op.opcode, op.cycles) for op in found] == [("copy", 7)] * 3
    branches = "branch_computations={%body, %fused}"
    found = operations(program(f"ROOT %w = {FULL} conditional(%p, %p, %p), {branches}"))
    assert len(found) == 1


def test_operations_are_counted_by_kind_and_small_ones_left_out():
    small = "f32[8,128]{1,0:T(8,128)}"
    row = counted(
        program(
            f"%a = {small} fusion(), {ESTIMATE}",
            f"%b = {small} fusion()",
            f"%c = {FULL} copy(%p)",
            f"%d = {FULL} broadcast(%a)",
            f'%e = {FULL} custom-call(%d), custom_call_target="tpu_custom_call"',
            f"%f = {FULL} sort(%e)",
            f"ROOT %g = ({FULL}, {FULL[:-1]}S(1)}}, u32[]{{:S(2)}}) copy-start(%f)",
        )
    )
    kinds = {"fusions": 1, "kernels": 1, "copies": 1, "broadcasts": 1, "others": 1, "reduces": 0}
    assert {name: row[name] for name in kinds} == kinds
    assert row["cycles"] == 6000


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
