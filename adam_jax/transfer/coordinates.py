"""Measures whether the activations of a model keep their size as it grows wider.

Yang et al. 2022, Tensor Programs V, https://arxiv.org/abs/2203.03466
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Function, Params, PyTree
from adam_jax.core.transformation import step
from adam_jax.core.trees import leaf_paths
from adam_jax.formats.dense import wider_dtype
from adam_jax.inspect.tables import aligned
from adam_jax.numerics import root_mean_square
from adam_jax.validation import check_integer, check_number, printed


@dataclasses.dataclass(frozen=True, eq=False)
class CoordinateCheck:
    """The size of each activation by width; it prints as a table with verdicts.

    Sizes are root mean squares over all elements, and geometric means over seeds.

    Attributes:
      widths: the widths, ascending.
      names: the paths of the activations.
      rms: the RMS of each activation, float64 [steps + 1, widths, names]. Row 0 is before the first
        step.
      change: the RMS of each activation's change since before the first step, with the shape of
        `rms`. Row 0 is 0.
      errors: two standard errors of the slopes of RMS and change over seeds, float64 [2, names]; 0
        for one seed.
      tolerance: the largest slope that counts as none.
    """

    widths: tuple[int, ...]
    names: tuple[str, ...]
    rms: np.ndarray
    change: np.ndarray
    errors: np.ndarray
    tolerance: float

    @property
    def slopes(self) -> dict[str, float]:
        """The slope of log RMS against log width after the last step, by least squares.

        0 where the size does not depend on the width; NaN where it is 0 or not finite at a width.
        """
        return dict(zip(self.names, _slopes(self.widths, self.rms[-1]).tolist(), strict=True))

    @property
    def change_slopes(self) -> dict[str, float]:
        """The slope of the change."""
        return dict(zip(self.names, _slopes(self.widths, self.change[-1]).tolist(), strict=True))

    @property
    def verdicts(self) -> dict[str, str]:
        """The fault of each activation, or "ok". The first one that applies:

        - "not finite": a size is NaN or infinite, in any step, at any width.
        - "does not move": the change after the last step is exactly 0 at one width or more. No
          trained parameter reaches the activation, or its updates are lost to rounding.
        - "grows with width": the slope of the RMS or that of its change is > tolerance.
        - "vanishes with width": the slope of the change is < -tolerance. The RMS itself may shrink:
          under muP the logits before the first step are proportional to 1/√width.

        A slope counts if it is beyond the tolerance by two standard errors over the seeds, and also
        over the larger half of the widths alone: a missing factor keeps its slope as widths grow,
        and an effect of small widths loses it.
        """
        found, half = {}, len(self.widths) // 2 if len(self.widths) > 2 else 0
        signs = []
        for sizes, error in zip((self.rms[-1], self.change[-1]), self.errors, strict=True):
            every, late = _slopes(self.widths, sizes), _slopes(self.widths[half:], sizes[half:])
            least = np.minimum(np.abs(every) - error, np.sign(every) * late)
            signs.append(np.where(least > self.tolerance, np.sign(every), 0))
        for i, name in enumerate(self.names):
            if not np.isfinite([self.rms[:, :, i], self.change[:, :, i]]).all():
                found[name] = "not finite"
            elif not self.change[-1, :, i].all():
                found[name] = "does not move"
            elif max(signs[0][i], signs[1][i]) > 0:
                found[name] = "grows with width"
            elif signs[1][i] < 0:
                found[name] = "vanishes with width"
            else:
                found[name] = "ok"
        return found

    @property
    def ok(self) -> bool:
        """Whether all verdicts are "ok"."""
        return set(self.verdicts.values()) == {"ok"}

    @property
    def summary(self) -> str:
        """Which activations are wrong, by verdict; or that all sizes hold."""
        wrong: dict[str, list[str]] = {}
        for name, verdict in self.verdicts.items():
            if verdict != "ok":
                wrong.setdefault(verdict.capitalize(), []).append(name)
        if not wrong:
            return f"All sizes hold from width {self.widths[0]} to {self.widths[-1]}."
        return " ".join(f"{verdict}: {', '.join(names)}." for verdict, names in wrong.items())

    def __str__(self) -> str:
        at = [f"RMS at {self.widths[0]}", f"at {self.widths[-1]}"]
        rows = [["activation", *at, "slope", "slope of change", "verdict"]]
        for i, (name, verdict) in enumerate(self.verdicts.items()):
            sizes = (f"{self.rms[-1, k, i]:.3g}" for k in (0, -1))
            slopes = (self.slopes[name], self.change_slopes[name])
            words = ("none" if np.isnan(slope) else f"{slope:+.2f}" for slope in slopes)
            rows.append([name, *sizes, *words, verdict])
        return f"{aligned(rows, (0, 5))}\n{self.summary}"


def _slopes(widths: Sequence[int], sizes: np.ndarray) -> np.ndarray:
    """The slopes of log size against log width, by least squares; widths are the first axis."""
    x = np.log(widths)
    x = x - np.mean(x)
    logs = np.log(np.where(np.isfinite(sizes) & (sizes > 0), sizes, np.nan))
    return np.tensordot(x, logs, axes=1) / (x @ x)


def coordinate_check(
    make_model: Callable[[int, jax.Array], tuple[Params, Function]],
    widths: Sequence[int],
    make_optimizer: Callable[[Params], optax.GradientTransformation],
    *,
    steps: int = 4,
    seeds: int = 3,
    tolerance: float = 0.1,
) -> CoordinateCheck:
    """Trains a model for a few steps at several widths and measures how activations grow.

    Under muP RMS(x_t) and RMS(x_t - x_0) do not depend on the width. A forgotten factor shows as a
    slope of about ±1/2 or ±1 in the activation after it, and often in the following ones.

    Three other causes of a slope: widths below 64 (up to ±0.1); random initial logits, which shrink
    as 1/√width under muP and change the gradients of all layers, so initialize the output layer
    with small values or 0 (appendix D.2); a learning rate that fits the batch within the few steps.

    Args:
      make_model: a function of a width and a key, `jax.random.key(seed)`, that returns the
        parameters and their loss. `loss(params)` returns the loss on one fixed batch and a pytree
        of activations, such as a dict by layer; None is ignored. Leave out activations that no
        trained parameter reaches, such as the input. All seeds of a width share the first one's
        loss and optimizer.
      widths: two or more, ascending; a factor of 8 or more between the first and the last.
      make_optimizer: a function of the parameters that returns any Optax transformation, such as
        `lambda params: mup(adamw, base, params)(1e-2)`.
      steps: optimizer steps, on the same batch, ≥ 1.
      seeds: models of each width, ≥ 1.
      tolerance: the largest slope that counts as none, ≥ 0.

    Returns:
      The sizes, with slopes, verdicts and a table (`print`).

    Raises:
      ValueError: an argument out of range; no activations; names that differ between widths.

    With Flax NNX, `nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)(x)`
    returns the output of the model and a pytree of the outputs of all modules.

    Differs from Microsoft's `mup.coord_check` in: that plots the mean absolute outputs of all
    modules and leaves the verdict to the reader; this one measures the RMS, also of the change,
    fits slopes and names the wrong activations.

    Reference: Yang et al. 2022, appendix D.1 (coordinate checking); figure 5 has the change since
    initialization.
    """
    try:
        checked = tuple(operator.index(width) for width in widths)
    except TypeError:
        checked = ()
    if len(checked) < 2 or checked[0] < 1 or list(checked) != sorted(set(checked)):
        raise ValueError(
            f"widths must be two or more positive integers, ascending, got {printed(widths)}: write"
            f" [64, 128, 256, 512], for example."
        )
    steps = check_integer("steps", steps, 1, instead="4 is usual")
    seeds = check_integer("seeds", seeds, 1, instead="3 is usual")
    tolerance = float(check_number("tolerance", tolerance, instead="0.1 is usual"))
    names: list[str] = []
    sizes = []  # [widths, seeds, steps + 1, 2, names]
    for width in checked:
        its_names, its_sizes = _measured(make_model, width, make_optimizer, steps, seeds)
        names = names or its_names
        if its_names != names:
            missing, new = sorted({*names} - {*its_names}), sorted({*its_names} - {*names})
            raise ValueError(
                f"make_model must return activations of the same names at every width: width"
                f" {width} lacks {missing} and has {new} besides those of width {checked[0]}."
            )
        sizes.append(its_sizes)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 stays 0, NaN is a verdict.
        rms, change = np.moveaxis(np.exp(np.mean(np.log(sizes), axis=1)), (2, 1), (0, 1))
        by_seed = _slopes(checked, np.asarray(sizes)[:, :, -1])  # [seeds, 2, names]
        errors = 2 * np.std(by_seed, axis=0, ddof=min(seeds - 1, 1)) / math.sqrt(seeds)
    return CoordinateCheck(checked, tuple(names), rms, change, errors, tolerance)


def _measured(
    make_model: Function, width: int, make_optimizer: Function, steps: int, seeds: int
) -> tuple[list[str], np.ndarray]:
    """The names of the activations, and their sizes [seeds, steps + 1, 2, names]."""
    models = (make_model(width, jax.random.key(seed)) for seed in range(seeds))
    first, loss = next(models)
    tx = make_optimizer(first)

    @jax.jit
    def advance(params: Params, state: PyTree) -> tuple[Params, PyTree, PyTree]:
        (_, activations), grads = jax.value_and_grad(loss, has_aux=True, allow_int=True)(params)
        return *step(tx, grads, state, params), activations

    names: list[str] = []
    found = []
    for seed in range(seeds):
        params = first if seed == 0 else next(models)[0]
        state, start, sizes = tx.init(params), None, []
        for _ in range(steps + 1):
            params, state, activations = advance(params, state)
            names = leaf_paths(activations, none_is_leaf=False)
            if not names:
                raise ValueError("make_model must return a loss with activations, got none.")
            leaves = jax.tree.leaves(activations)
            start = leaves if start is None else start
            sizes.append(_sizes(leaves, start))
        found.append(sizes)
    return names, np.asarray(jax.device_get(found), np.float64)


@jax.jit
def _sizes(leaves: list[jax.Array], start: list[jax.Array]) -> jax.Array:
    """[2, names]: the RMS of activations, and of their change since the first ones."""
    wide = [x.astype(wider_dtype(x.dtype, jnp.dtype(jnp.float32))) for x in leaves]
    change = [y - x.astype(y.dtype) for x, y in zip(start, wide, strict=True)]
    sizes = [[root_mean_square(x).astype(jnp.float32) for x in side] for side in (wide, change)]
    return jnp.stack([jnp.stack([x.reshape(()) for x in side]) for side in sizes])
