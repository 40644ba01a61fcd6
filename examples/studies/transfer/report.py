"""The results of the study: tables, sentences and plots."""

from typing import Any

import numpy as np

from examples.shared import style
from examples.shared.study import Study
from examples.studies.transfer.plan import SCALES, Batches, Sweep

Found = dict[str, dict[str, Any]]
MODELS = {"mlp": "MLP on digits", "text": "transformer on text", "residual": "residual MLP"}
NAMES = {"mlp": "muP", "text": "muP", "residual": "CompleteP"}


def name(part: Sweep | Batches, size: int, scale: Any) -> str:
    """The name of a piece."""
    if isinstance(part, Batches):
        return f"batches of {size}, {'scaled' if scale else 'same numbers'}"
    return f"{part.model} {size}, {scale}"


def curve(part: Sweep, size: int, scale: str, found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Learning rates, and the mean held-out loss over the seeds; infinite where one is NaN."""
    result = found[name(part, size, scale)]
    loss = np.asarray(result["held_out"], float).mean(axis=1)
    return np.asarray(result["rates"]), np.where(np.isnan(loss), np.inf, loss)


def row(part: Sweep, size: int, scale: str, found: Found) -> dict[str, float]:
    """The best rate, how far it moved, and the loss with the base model's rate instead."""
    rates, loss = curve(part, size, scale, found)
    base_rates, base_loss = curve(part, part.sizes[0], scale, found)
    best, rate = int(loss.argmin()), base_rates[base_loss.argmin()]
    with_base = float(loss[np.abs(np.log(rates / rate)).argmin()])
    return {
        "rate": float(rates[best]),
        "moved": round(float(np.log2(rates[best] / rate) * 2)),
        "loss": float(loss[best]),
        "excess": with_base / float(loss[best]) - 1,
    }


def write(work: Study, parts: tuple[Any, ...], found: Found) -> None:
    """Prints and writes all results."""
    sweeps = [part for part in parts if isinstance(part, Sweep)]
    rows = []
    for part in sweeps:
        for scale in SCALES:
            for size in part.sizes:
                r = row(part, size, scale, found)
                kind = NAMES[part.model] if scale == "scaled" else "standard"
                rows.append(
                    (
                        MODELS[part.model],
                        kind,
                        size,
                        f"{r['rate']:.2g}",
                        f"{r['moved']:+d}",
                        f"{r['loss']:.4f}",
                        f"{r['excess']:+.1%}",
                    )
                )
    columns = (
        "model",
        "parametrization",
        "size",
        "best learning rate",
        "grid points from the smallest's",
        "held-out loss",
        "with the smallest's rate",
    )
    print(work.table(columns, rows, "table"))
    [batches] = [part for part in parts if isinstance(part, Batches)]
    columns = ("windows in a batch", "steps", "scaled", "same numbers")
    print(work.table(columns, batch_rows(batches, found), "batches"))
    widths = [part for part in sweeps if part.model != "residual"]
    sweep_picture(widths, found, "width", work.folder / "widths.png")
    sweep_picture(
        [part for part in sweeps if part.model == "residual"],
        found,
        "depth",
        work.folder / "depths.png",
    )
    batch_picture(batches, found, work.folder / "batches.png")
    print(f"{work.folder}/widths.png, depths.png, batches.png")


def batch_rows(part: Batches, found: Found) -> list[tuple[str, ...]]:
    """Loss by batch size after the same number of windows, and relative to the smallest batch."""
    by_rule = [batch_losses(part, rule, found) for rule in part.scales]
    first = by_rule[0][0]
    return [
        (
            str(size),
            str(part.windows // size),
            *(f"{loss:.4f} ({loss / first - 1:+.1%})" for loss in losses),
        )
        for size, *losses in zip(part.sizes, *by_rule, strict=True)
    ]


def batch_losses(part: Batches, rule: bool, found: Found) -> list[float]:
    """The mean held-out loss over the seeds, for each batch size."""
    return [float(np.mean(found[name(part, size, rule)]["held_out"])) for size in part.sizes]


def sweep_picture(sweeps: list[Sweep], found: Found, what: str, path: Any) -> None:
    """Loss by learning rate, a line per size: standard on the left, scaled on the right."""
    figure, axes = style.panels(len(sweeps), 2, width=5.5, height=4.3)
    for part, *panels in zip(sweeps, axes[::2], axes[1::2], strict=True):
        every = [curve(part, size, scale, found) for size in part.sizes for scale in SCALES]
        lowest = min(loss.min() for _, loss in every)
        best_of_base = curve(part, part.sizes[0], "scaled", found)[1].min()
        highest = best_of_base + 1.2 * (best_of_base - lowest) + 0.1 * lowest
        low, high = min(r[0] for r, _ in every), max(r[-1] for r, _ in every)
        top, bottom = highest, lowest - 0.05 * (highest - lowest)
        for scale, axis in zip(SCALES, panels, strict=True):
            colours = style.sequence(len(part.sizes))
            starts = []
            for size, colour in zip(part.sizes, colours, strict=True):
                rates, loss = curve(part, size, scale, found)
                best = int(loss.argmin())
                shown = np.where(loss <= highest, loss, np.nan)
                axis.plot(rates, shown, color=colour, lw=1.8)
                axis.plot(rates[best], loss[best], "o", color=colour, ms=9, mec="white", zorder=3)
                first = int(np.flatnonzero(loss <= highest)[0])
                starts.append((rates[first], (loss[first] - bottom) / (top - bottom)))
                if size == part.sizes[0]:
                    axis.axvline(rates[best], color=style.GREY, lw=1, ls="--", zorder=0)
            xs, places = np.array(starts).T
            for x in set(xs):  # Labels at one learning rate must not overlap.
                places[xs == x] = style.apart(places[xs == x], 0.05)
            for size, colour, x, y in zip(part.sizes, colours, xs, places, strict=True):
                axis.annotate(
                    f"{size} ",
                    (x, bottom + y * (top - bottom)),
                    ha="right",
                    va="center",
                    color=colour,
                    fontweight="bold",
                )
            moved = int(row(part, part.sizes[-1], scale, found)["moved"])
            axis.set_title(_title(part, scale, moved, what))
            axis.set(xscale="log", xlabel="learning rate")
            axis.set(xlim=(low / 1.7, high * 1.1), ylim=(bottom, top))
            round_rates = [m * 10.0**k for k in range(-5, 1) for m in (1, 2, 5)]
            ticks = [x for x in round_rates if low <= x <= high]
            axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axis.minorticks_off()
        panels[0].set_ylabel(f"held-out loss of the {MODELS[part.model]} (nats)")
    figure.suptitle(
        f"A line for each {what}; dots: the best learning rates; dashed: the best one of the"
        f" smallest {what}",
        fontsize=10,
    )
    style.save(figure, path)


def _title(part: Sweep, scale: str, moved: int, what: str) -> str:
    kind = NAMES[part.model] if scale == "scaled" else "Standard"
    ends = f"from {what} {part.sizes[0]} to {part.sizes[-1]}"
    factor = 2 ** (abs(moved) / 2)
    if abs(moved) <= 1:
        return f"{kind}: the best rate stays, {ends}"
    direction = "falls" if moved < 0 else "grows"
    return f"{kind}: the best rate {direction} {factor:.1f}-fold, {ends}"


def batch_picture(part: Batches, found: Found, path: Any) -> None:
    """Loss by batch size, with and without the scaling rule."""
    figure, (axis,) = style.panels(1, 1, height=4.6)
    scaled, same = (
        "learning rate, b1, b2 and ε\nscaled with the batch size",
        "hyperparameters unchanged",
    )
    for rule, colour, text in ((True, style.BLUE, scaled), (False, style.VERMILION, same)):
        mean = batch_losses(part, rule, found)
        axis.plot(part.sizes, mean, "o-", color=colour, lw=1.8)
        middle = len(part.sizes) // 2
        axis.annotate(
            text,
            (part.sizes[middle], mean[middle]),
            xytext=(14, -2) if rule else (-12, 8),
            textcoords="offset points",
            ha="left" if rule else "right",
            va="top" if rule else "bottom",
            color=colour,
        )
        if rule:
            axis.axhspan(mean[0] * 0.98, mean[0] * 1.02, color=colour, alpha=0.12, lw=0)
            axis.annotate("±2 %", (part.sizes[0], mean[0] * 0.98), va="top", color=colour)
    axis.set(xscale="log", xlabel="batch size (windows of text)", ylabel="held-out loss (nats)")
    axis.set_xticks(part.sizes, [str(size) for size in part.sizes])
    axis.minorticks_off()
    axis.set_title(f"Training on {part.windows:,} windows at each batch size")
    style.save(figure, path)
