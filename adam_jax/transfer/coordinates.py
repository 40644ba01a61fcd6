"""Measures whether the activations of a model keep their size as it grows wider.

Yang et al. 2022, Tensor Programs V, https://arxiv.org/abs/2203.03466
"""

import dataclasses
import math
import operator
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Function, Params, PyTree
from adam_jax.core.transformation import step
from adam_jax.core.trees import leaf_paths
from adam_jax.formats.dense import wider_dtype
from adam_jax.inspect.style import TEXT, VERMILION, aligned, apart, empty_figure, plain
from adam_jax.validation import check_integer, check_number, printed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Vermilion stands out from these for every kind of colour vision, and in print by its line width.
_RIGHT = ("#6b87a3", "#93a3ad", "#7d8c7c", "#a29bb5")
_HEADING: Any = {"loc": "left", "fontsize": 10, "color": "#333333"}
_LINE_HEIGHT = 11.5  # Points from one label to the next.


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
      tolerance: the largest slope that counts as none.
    """

    widths: tuple[int, ...]
    names: tuple[str, ...]
    rms: np.ndarray
    change: np.ndarray
    tolerance: float

    @property
    def slopes(self) -> dict[str, float]:
        """The slope of log RMS against log width after the last step, by least squares.

        0 where the size does not depend on the width; NaN where it is 0 or not finite at a width.
        """
        return self._slopes(self.rms[-1])

    @property
    def change_slopes(self) -> dict[str, float]:
        """The slope of the change."""
        return self._slopes(self.change[-1])

    @property
    def verdicts(self) -> dict[str, str]:
        """The fault of each activation, or "ok". The first one that applies:

        - "not finite": a size is NaN or infinite, in any step, at any width.
        - "does not move": the change after the last step is exactly 0 at one width or more. No
          trained parameter reaches the activation, or its updates are lost to rounding.
        - "grows with width": the slope of the RMS or that of its change is > tolerance.
        - "vanishes with width": the slope of the change is < -tolerance. The RMS itself may shrink:
          under muP the logits before the first step are proportional to 1/√width.
        """
        found = {}
        for i, (name, slope) in enumerate(self.slopes.items()):
            change_slope = self.change_slopes[name]
            if not np.isfinite([self.rms[:, :, i], self.change[:, :, i]]).all():
                found[name] = "not finite"
            elif not self.change[-1, :, i].all():
                found[name] = "does not move"
            elif slope > self.tolerance or change_slope > self.tolerance:
                found[name] = "grows with width"
            elif change_slope < -self.tolerance:
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

    def plot(self) -> "Figure":
        """Draws size and change against width, one line for each activation.

        Each line is labelled at its end. Lines of wrong activations are red, and thick in the panel
        that shows why. Axes are logarithmic, and sizes span at least as many decades as widths, so
        noise looks flat. A size that is 0 or not finite leaves a gap.

        Returns:
          A matplotlib figure, which a notebook shows and `figure.savefig(path)` writes.

        Raises:
          ModuleNotFoundError: matplotlib is not installed.
        """
        figure = empty_figure("CoordinateCheck.plot")
        steps = len(self.rms) - 1
        after = f"after {steps} optimizer step{'s' if steps > 1 else ''}"
        width = 9.5 + 0.13 * max(map(len, self.names))
        title = f"Coordinate check. {self.summary}"
        title = textwrap.fill(title, int(9 * width), break_long_words=False)
        inside = max(3.0, len(self.names) * _LINE_HEIGHT / 72)  # Inches of the axes' height.
        gap = _LINE_HEIGHT / (72 * inside)
        figure.set_size_inches(width, inside + 1.25 + 0.22 * title.count("\n"))
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # pyright: ignore
        color = "#333333" if self.ok else VERMILION
        style: Any = {"x": 0.012, "ha": "left", "fontsize": 11.5, "fontweight": "bold"}
        figure.suptitle(title.replace("$", r"\$"), color=color, **style)
        left, right = figure.subplots(1, 2)
        left.set_title(f"Size {after}: flat or falling is right", **_HEADING)
        left.set_ylabel("RMS of each activation", fontsize=9)
        self._draw(left, self.rms[-1], self.slopes, -math.inf, gap)
        right.set_title(f"Change {after}: flat is right", **_HEADING)
        right.set_ylabel("RMS of the difference from before the first step", fontsize=9)
        self._draw(right, self.change[-1], self.change_slopes, -self.tolerance, gap)
        return figure

    def _draw(
        self, axes: "Axes", sizes: np.ndarray, slopes: dict[str, float], least: float, gap: float
    ) -> None:
        """Draws lines of sizes [widths, names], `gap` of the height between their labels.

        Lines of wrong activations are thick if this panel shows the fault: a slope below `least`,
        or above the tolerance.
        """
        from matplotlib.ticker import LogLocator

        drawn = _usable(sizes)
        low, high = 0.1, 10.0
        if not np.isnan(drawn).all():  # At least as many decades as the widths.
            low, high = np.log10(np.nanmin(drawn)), np.log10(np.nanmax(drawn))
            missing = math.log10(self.widths[-1] / self.widths[0]) - high + low
            more = max(0.1 * (high - low), 0.05, missing / 2)
            low, high = float(10 ** (low - more)), float(10 ** (high + more))
        ends = np.log(np.where(np.isnan(drawn[-1]), low, drawn[-1]) / low) / math.log(high / low)
        places = apart(ends, gap)
        for i, (name, verdict) in enumerate(self.verdicts.items()):
            wrong, label = verdict != "ok", name
            seen = wrong and not least <= slopes[name] <= self.tolerance
            color = VERMILION if wrong else _RIGHT[i % len(_RIGHT)]
            line: Any = {"linewidth": 2.8, "markersize": 5} if seen else {"markersize": 3}
            line = {"color": color, "linewidth": 1.3, "marker": "o", "clip_on": False} | line
            axes.plot(self.widths, drawn[:, i], zorder=3 if wrong else 2, **line)
            if np.isnan(drawn[-1, i]):
                label = f"{name}: {sizes[-1, i]:g}"
            elif seen and not math.isnan(slopes[name]):
                label = f"{name} ∝ width^{slopes[name]:.2f}"
            arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.7, "relpos": (0, 0.5)}
            axes.annotate(
                label.replace("$", r"\$"),
                (1, ends[i]),
                (1.06, places[i]),
                "axes fraction",
                va="center",
                fontsize=8.5,
                fontweight="bold" if seen else "normal",
                color=VERMILION if wrong else TEXT,
                arrowprops=arrow | {"shrinkA": 2},
            )
        axes.set(xscale="log", yscale="log", xlim=(self.widths[0], self.widths[-1]))
        axes.set_ylim(low, high)
        axes.set_xticks(self.widths, list(map(str, self.widths)))
        within_decade = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=within_decade, numticks=12))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel("width", fontsize=9)
        axes.tick_params(labelsize=8)
        plain(axes)

    def _slopes(self, sizes: np.ndarray) -> dict[str, float]:
        x = np.log(self.widths)
        x = x - np.mean(x)
        slopes = x @ np.log(_usable(sizes)) / (x @ x)
        return dict(zip(self.names, slopes.tolist(), strict=True))


def _usable(sizes: np.ndarray) -> np.ndarray:
    """The sizes that have a logarithm, NaN for the others."""
    return np.where(np.isfinite(sizes) & (sizes > 0), sizes, np.nan)


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
      The sizes, with slopes, verdicts, a table (`print`) and a picture (`plot`).

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
    return CoordinateCheck(checked, tuple(names), rms, change, tolerance)


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

    def rms(x: jax.Array) -> jax.Array:
        sizes = jnp.abs(x)
        unit = jnp.max(sizes)
        unit = jnp.where(unit > 0, unit, 1)  # Squares stay in range: a change may be tiny.
        return (unit * jnp.sqrt(jnp.mean((sizes / unit) ** 2))).astype(jnp.float32)

    wide = [x.astype(wider_dtype(x.dtype, jnp.dtype(jnp.float32))) for x in leaves]
    change = [y - x.astype(y.dtype) for x, y in zip(start, wide, strict=True)]
    return jnp.stack([jnp.stack([rms(x) for x in side]) for side in (wide, change)])
