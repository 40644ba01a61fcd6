"""The optimizers that `benchmarks.tpu` compiles, and the bounds of each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import adam_jax
from benchmarks import gpu
from benchmarks.compilation import array
from benchmarks.tpu.machine import USUAL

Row = dict[str, Any]


class Bounds(NamedTuple):
    """The allowed cost of one leaf of 8192 x 8192; None: no bound.

    Attributes:
      of_floor: bytes through HBM, as a multiple of the floor.
      reads: additional reads of the gradients: a norm has to be known before the step.
      bytes: bytes through HBM per parameter, if they are no multiple of the floor.
      temporary: bytes per parameter.
      passes: fusions and kernels per leaf, in addition to those of `reads`.
      bundles: of a kernel's inner loop, per 8 x 128 parameters, by generation.
    """

    of_floor: float | None = None
    reads: int = 0
    bytes: float | None = None
    temporary: float | None = None
    passes: int | None = None
    bundles: dict[str, int] = {}

    def words(self, generation: str) -> str:
        """The text of the bounds in a table."""
        reads = f" of the floor and {self.reads} read more" if self.reads else " of the floor"
        parts = [
            self.of_floor and f"{self.of_floor:g}{reads}",
            self.bytes and f"{self.bytes:g} B/p",
            self.temporary and f"temporary {self.temporary:g}",
            self.passes and f"passes {self.passes + self.reads}",
            generation in self.bundles and f"bundles {self.bundles[generation]}",
        ]
        return ", ".join(part for part in parts if part)


DENSE = Bounds(1.01, temporary=0.01, passes=1)
# The kernel, or one fusion where XLA makes one.
ONE_PASS = Bounds(1.02, temporary=0.1, passes=1, bundles={"v5e": 44, "v6e": 30})
# Where XLA compiles all.
CODES_BY_XLA = Bounds(bytes=36, temporary=2.2, passes=6)
RESIDUAL_16_BY_XLA = Bounds(bytes=34, temporary=4.01, passes=2)
RESIDUAL_8_BY_XLA = Bounds(bytes=36, temporary=4.01, passes=2)
FREE = Bounds()

# Operations that XLA did not fuse; none are allowed.
BARE = {
    "copies": {"copy"},
    "reduces": {"reduce"},
    "broadcasts": {"broadcast"},
    "transposes": {"transpose", "reshape"},
}


class Case(NamedTuple):
    """A row of the table.

    Attributes:
      tx: the optimizer.
      bounds: the allowed costs.
      dtype: of parameters and gradients.
      apply: `adam_jax.step`; else `tx.update`, whose updates replace the gradients.
    """

    tx: Any
    bounds: Bounds
    dtype: str = "float32"
    apply: bool = True


def _bounds(name: str) -> Bounds:
    """The bounds of a case of `benchmarks.gpu`."""
    if any(word in name for word in ("accumulate", "telemetry", "everything")):
        return FREE
    if "factored" in name or name == "Adam-mini, 8-bit mu":
        return CODES_BY_XLA
    if name == "Adam-mini":
        return DENSE._replace(reads=1)
    stored = ("8-bit", "4-bit", "stochastic bf16", "residual")
    bounds = ONE_PASS if any(word in name for word in stored) else DENSE
    return bounds._replace(reads=1) if "clip" in name or "skip" in name else bounds


def _reduced(floor: float) -> Bounds:
    """For a kernel after XLA has read the leaf for a norm or a mean; the floor includes that."""
    return Bounds(bytes=round(1.02 * floor, 2), temporary=0.1, passes=2)


BASE = "adam_jax.adamw"  # In float32: no case may take longer.
EIGHT = {"mu_dtype": jnp.int8, "nu_dtype": jnp.int8}
FOUR = {"mu_dtype": jnp.int4, "nu_dtype": jnp.int4}


def _cases() -> dict[str, Case]:
    # All cases here have one leaf, so "one leaf" cases would be duplicates.
    shared = {name: case for name, case in gpu.CASES.items() if not name.endswith("one leaf")}
    cases = {name: Case(case.tx, _bounds(name), dtype=case.dtype) for name, case in shared.items()}
    eight = adam_jax.adamw(1e-3, **EIGHT)
    clipped = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), eight)
    looking_once = ONE_PASS._replace(reads=1)
    cases |= {
        "factored nu": Case(adam_jax.adamw(1e-3, nu_dtype=adam_jax.Factored()), DENSE),
        "bf16 weights, residual 16, 4-bit moments": Case(
            adam_jax.master_residual(adam_jax.adamw(1e-3, **FOUR)), ONE_PASS, "bfloat16"
        ),
        "skip, 8-bit moments": Case(adam_jax.skip_nonfinite(eight), looking_once),
        "clip, skip, 8-bit moments": Case(adam_jax.skip_nonfinite(clipped), looking_once),
        "adamw, update": Case(adam_jax.adamw(1e-3), DENSE, apply=False),
        "8-bit moments, update": Case(eight, ONE_PASS, apply=False),
        "8-bit moments, b2=0.95": Case(adam_jax.adamw(1e-3, b2=0.95, **EIGHT), ONE_PASS),
        "cautious, 8-bit moments": Case(adam_jax.cautious(eight), _reduced(16.13 + 6.06)),
        "lamb, 8-bit moments": Case(adam_jax.lamb(1e-3, **EIGHT), _reduced(16.13 + 10.06)),
        "8-bit moments, by XLA": Case(adam_jax.with_kernel(eight, "xla"), CODES_BY_XLA),
    }
    cautious = adam_jax.cautious(adam_jax.adamw(1e-3))
    by_xla = adam_jax.with_kernel(adam_jax.adamw(1e-3), "xla")
    for bits, bounds, floor in ((16, RESIDUAL_16_BY_XLA, 26), (8, RESIDUAL_8_BY_XLA, 24)):
        name = f"bf16 weights, residual {bits}"
        tx = adam_jax.master_residual(cautious, bits)
        cases[f"{name}, cautious"] = Case(tx, _reduced(floor + 10), "bfloat16")
        tx = adam_jax.master_residual(by_xla, bits)
        cases[f"{name}, by XLA"] = Case(tx, bounds, "bfloat16")
    for member in ("nadamw", "adabelief", "adamaxw", "yogi", "ademamix", "lion"):
        formats = {"mu_dtype": jnp.int8} if member == "lion" else EIGHT
        tx = getattr(adam_jax, member)(1e-3, **formats)
        cases[f"{member}, 8-bit moments"] = Case(tx, ONE_PASS)
    radam = adam_jax.radam(1e-3, weight_decay=1e-4, **EIGHT)
    cases["radam with decay, 8-bit moments"] = Case(radam, ONE_PASS)
    cases["atan2, 8-bit moments"] = Case(adam_jax.atan2(eight), ONE_PASS)
    return cases


CASES = _cases()


def leaf(shape: tuple[int, ...]) -> Any:
    return [array(*shape)]


def of_dtype(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def failures(row: Row, bounds: Bounds) -> list[str]:
    """The violated bounds, in words; of a tree only the bytes are checked."""
    found = []

    def at_most(name: str, limit: float | None, value: float | None = None) -> None:
        value = row.get(name) if value is None else value
        if limit is not None and value is not None and value > limit:
            found.append(f"{name} {value:.4g} > {limit:.4g}")

    gradients = 2 if CASES[row["case"]].dtype == "bfloat16" else 4
    if bounds.of_floor is not None:
        least = row["floor B/p"] + gradients * bounds.reads
        at_most("HBM B/p", round(bounds.of_floor * least, 2))
    hbm = row.get("HBM B/p")
    at_most("HBM B/p", bounds.bytes, hbm and round(hbm, 2))
    at_most("temporary B/p", bounds.temporary)
    if row["leaves"] == 1 and bounds.passes is not None and "fusions" in row:
        at_most("passes", bounds.passes + bounds.reads, row["fusions"] + row["kernels"])
        for name in BARE:
            at_most(name, 0)
    at_most("bundles", bounds.bundles.get(row["generation"]))
    if bounds == ONE_PASS and row["generation"] in USUAL:
        at_most("of float32", 1.0)
    return found
