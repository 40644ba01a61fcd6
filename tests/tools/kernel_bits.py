"""Compares interpreted Pallas kernels with XLA's programs, bit for bit, over members x storage.

python -m tests.tools.kernel_bits [--count N] [--seed N]    random cases
python -m tests.tools.kernel_bits --each                    few cases that cover each part

Each case takes 20 steps; inside `skip_nonfinite`, two of them are rejected. The parameters are a
leaf that a kernel steps and a vector that XLA steps. After each step everything is compared: the
parameters or the updates, codes, scales, residuals and counts.

Programs are compiled without fused multiply-add, because XLA:CPU's use of it depends on how it
forms loops.
"""

import argparse
import functools
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.inspect.memory import plans_of
from adam_jax.kernels.tiles import Tiles
from tests.catalogue.kernel_cases import Case, drawn, each_once

WITHOUT_FMA = "--xla_cpu_max_isa=AVX"
STEPS, REFUSED = 20, {4: np.nan, 11: np.inf}


@functools.cache
def gradients(shape: tuple[int, ...], dtype: Any) -> list[dict[str, jax.Array]]:
    """Gradients from 1e-10 to 10, a block of zeros, and one whose square overflows."""
    drawn, of_steps = np.random.default_rng(0), []
    for t in range(STEPS):
        size = 10.0 ** drawn.uniform(-4, 1) * 10.0 ** drawn.uniform(-6, 0, size=shape)
        g = drawn.normal(size=shape) * size
        g[..., :2, :] = 0
        g.flat[5] = REFUSED.get(t, g.flat[5])
        g.flat[7] = 1e25 if t == STEPS - 3 else g.flat[7]
        g = {"kernel": g, "bias": drawn.normal(size=3)}
        of_steps.append({k: jnp.asarray(x, dtype) for k, x in g.items()})
    return of_steps


def run(case: Case, kernel: str) -> tuple[list[list[np.ndarray]], list[str], dict[str, Any]]:
    """All arrays after each step, their paths, and the leaves' plans."""
    drawn = np.random.default_rng(1)
    shapes = {"kernel": case.shape, "bias": (3,)}
    params = {k: jnp.asarray(drawn.normal(size=s), case.dtype) for k, s in shapes.items()}
    tx = case.make(kernel)
    state, step, after = tx.init(params), jax.jit(tx.update if case.update else tx.step), []
    paths: list[str] = []
    plans = plans_of(params, tx, params, state)
    with jax.numpy_dtype_promotion("standard"):
        for grads in gradients(case.shape, case.of_grads):
            found, state = step(grads, state, params)
            params = optax.apply_updates(params, found) if case.update else found
            flat = jax.tree.leaves_with_path((found, params, state))
            paths = [jax.tree_util.keystr(path) for path, _ in flat]
            after.append([np.asarray(x) for _, x in flat])
    return after, paths, {path: plan.kernel for path, plan in plans.items()}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether bits, dtype and shape are equal; NaNs of either sign are equal."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if jnp.issubdtype(a.dtype, jnp.floating):
        a, b = (np.where(np.isnan(x), np.asarray(np.nan, x.dtype), x) for x in (a, b))
    return np.array_equal(np.ravel(a).view(np.uint8), np.ravel(b).view(np.uint8))


def differences(case: Case) -> list[str]:
    """Describes the differences at the first step that has any."""
    (ours, paths, plans), (theirs, _, without) = (run(case, k) for k in ("pallas", "xla"))
    if not isinstance(plans["kernel"], Tiles):
        return [f"{case.name}: no kernel, {plans['kernel']}"]
    if not all(isinstance(x, str) for x in (plans.get("bias", ""), *without.values())):
        return [f"{case.name}: kernels where there should be none"]
    for t, arrays in enumerate(zip(ours, theirs, strict=True)):
        found = [
            f"{case.name}, step {t}: {path}, {np.sum(a != b)} of {a.size}"
            for path, a, b in zip(paths, *arrays, strict=True)
            if not same_bits(a, b)
        ]
        if found:
            return found
    return []


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--each", action="store_true", help="each part in one case")
    arguments.add_argument("--count", type=int, default=500)
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()
    # Must precede the first array.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {WITHOUT_FMA}"
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    chosen = list(each_once() if args.each else drawn(args.count, args.seed))
    start, wrong = time.time(), 0
    for i, x in enumerate(chosen, start=1):
        found = differences(x)
        wrong += bool(found)
        print("\n".join(found), end="\n" * bool(found), flush=True)
        if not i % 50 or i == len(chosen):
            jax.clear_caches()
            minutes = (time.time() - start) / 60
            print(f"{i} of {len(chosen)} cases, {wrong} differ, {minutes:.1f} min", flush=True)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
