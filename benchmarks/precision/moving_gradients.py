"""Updates while gradients grow or fall and their second moment is quantized.

python -m benchmarks.precision.moving_gradients [--fast] [--json FILE]

Normal gradients in blocks of 128. From step w on, half of the elements of each block have `factor`
times the gradient; w is the length of the average, 2 / (1 - b2), at most 3,000. The figure is the
root mean square of the updates of these elements w steps later, over 20 steps, relative to that of
float32 moments. Only the decay rate of the second moment is set per member; mu is float32, and also
quantized to `jnp.int8`.
"""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import adam_jax
from benchmarks.machine import describe
from benchmarks.precision.updates import table, write_json

ROWS, BLOCK, LAST = 32, 128, 20
FACTORS = (30.0, 2.6, 1 / 2.6, 0.1)
RATES = (0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)
FORMS: dict[str, tuple[Any, Any]] = {
    "int8": (None, jnp.int8),
    "int8, mu too": (jnp.int8, jnp.int8),
    "int8 stochastic": (None, adam_jax.stochastic(jnp.int8)),
    "int4": (None, jnp.int4),
    "int4 stochastic": (None, adam_jax.stochastic(jnp.int4)),
}
MEMBERS = (
    *("adam", "nadam", "amsgrad", "adamax", "radam"),
    *("belief", "yogi", "adan", "adopt", "ademamix"),
)
OF_A_MAXIMUM = ("amsgrad", "adamax")  # They refuse 4 bits.
BOUND = 0.1  # On the deviation from float32.


def direction(member: str, b2: float, form: tuple[Any, Any] | None) -> Any:
    """The member's scale_by_*, with this decay rate of its second moment."""
    make: Callable[..., Any] = getattr(adam_jax, f"scale_by_{member}")
    rate = "b3" if member == "adan" else "b2"
    dtypes = {} if form is None else {"nu_dtype": form[1]}
    if form is not None and form[0] is not None:
        dtypes["mu_dtype"] = form[0]
    assert {rate, *dtypes} <= set(inspect.signature(make).parameters)
    return make(**{rate: b2}, **dtypes)


def root_mean_squares(tx: Any, window: int, factors: jax.Array) -> jax.Array:
    """The RMS of updates of the elements that changed, for each factor."""
    changed = jnp.arange(BLOCK) < BLOCK // 2

    def run(factor: jax.Array) -> jax.Array:
        def step(state: Any, t: jax.Array) -> Any:
            g = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), (ROWS, BLOCK))
            u, state = tx.update(jnp.where(changed & (t >= window), factor * g, g), state)
            return state, jnp.mean(jnp.square(u[:, : BLOCK // 2]))

        state = tx.init(jnp.zeros((ROWS, BLOCK)))
        _, squares = jax.lax.scan(step, state, jnp.arange(2 * window))
        return jnp.sqrt(jnp.mean(squares[-LAST:]))

    return jax.jit(jax.vmap(run))(factors)


def rows(members: tuple[str, ...], rates: tuple[float, ...], forms: list[str]) -> list[dict]:
    """A row for each member and format: the ratio to float32 farthest from 1, by rate."""
    found = []
    for member in members:
        ratios: dict[str, dict[float, float]] = {form: {} for form in forms}
        its_forms = [x for x in forms if "int4" not in x or member not in OF_A_MAXIMUM]
        for b2 in rates:
            window = min(round(2 / (1 - b2)), 3000) + LAST
            exact = root_mean_squares(direction(member, b2, None), window, jnp.array(FACTORS))
            for form in its_forms:
                coded = direction(member, b2, FORMS[form])
                ratio = root_mean_squares(coded, window, jnp.array(FACTORS)) / exact
                ratios[form][b2] = float(ratio[jnp.argmax(jnp.abs(ratio - 1))])
        for form in its_forms:
            worst = max(ratios[form].values(), key=lambda x: abs(x - 1))
            found.append({"member": member, "form": form, **ratios[form], "worst": worst})
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fast", action="store_true", help="two members, short averages")
    arguments.add_argument("--json", metavar="FILE", type=Path, help="the rows go there too")
    args = arguments.parse_args()
    machine = describe("jax", "jaxlib")
    members, rates = (("adam", "adopt"), (0.95,)) if args.fast else (MEMBERS, RATES)
    forms = ["int8", "int4"] if args.fast else list(FORMS)
    made = rows(members, rates, forms)
    columns: Any = [("member", "member", str), ("nu", "form", str)]
    columns += [(f"b2 {b2:g}", b2, "{:.3f}".format) for b2 in rates]
    columns += [("farthest", "worst", "{:.3f}".format)]
    title = f"RMS of updates beside float32's, the farthest of gradients times {FACTORS}"
    print(f"{machine}\n\n{title}\n\n{table(columns, made)}")
    if args.json:
        write_json(args.json, "benchmarks.precision.moving_gradients", machine, {title: made})


if __name__ == "__main__":
    main()
