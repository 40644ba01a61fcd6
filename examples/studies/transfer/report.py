"""The results of the study: tables, sentences and plots."""

from typing import Any

import numpy as np

from examples.shared import style
from examples.shared.study import Study
from examples.studies.transfer.plan import SCALES, Batches, Sweep

Found = dict[str, dict[str, Any]]
MODELS = {
    "mlp": "MLP on digits",
    "text": "transformer on text",
    "sphere": "transformer, adamh",
    "residual": "residual MLP",
}
NAMES = dict.fromkeys(MODELS, "muP") | {"residual": "CompleteP"}


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
        "best learning rate or angle",
        "grid points from the smallest's",
        "held-out loss",
        "with the smallest's rate",
    )
    print(work.table(columns, rows, "table"))
    for name, what, models in (
        ("widths", "width", ("mlp", "text")),
        ("angles", "width", ("sphere",)),
        ("depths", "depth", "residual"),
    ):
        if drawn := [part for part in sweeps if part.model in models]:
            sweep_picture(drawn, found, what, work.folder / f"{name}.png")
    for part in parts:
        if isinstance(part, Batches):
            columns = ("windows in a batch", "steps", "scaled", "same numbers")
            print(work.table(columns, batch_rows(part, found), "batches"))
            batch_picture(part, found, work.folder / "batches.png")
    print(f"{work.folder}/*.png")


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
    angles = sweeps[0].model == "sphere"
    number, unit = ("angle", " (radians)") if angles else ("learning rate", "")
    figure, axes = style.panels(len(sweeps), 2, height=3.1, sharey="row")
    for part, *panels in zip(sweeps, axes[::2], axes[1::2], strict=True):
        every = {
            scale: [curve(part, size, scale, found) for size in part.sizes] for scale in SCALES
        }
        lowest = min(loss.min() for curves in every.values() for _, loss in curves)
        best_of_base = every["scaled"][0][1].min()
        highest = best_of_base + 1.2 * (best_of_base - lowest) + 0.1 * lowest
        for (scale, curves), axis in zip(every.items(), panels, strict=True):
            bests = [rates[loss.argmin()] for rates, loss in curves]
            for size, colour, best, (rates, loss) in zip(
                part.sizes, style.sequence(len(part.sizes)), bests, curves, strict=True
            ):
                shown = np.where(loss <= highest, loss, np.nan)
                axis.plot(rates, shown, color=colour, lw=1.6, label=str(size))
                axis.plot(best, loss.min(), "o", color=colour, ms=7, mec="white", zorder=3)
            axis.axvline(bests[0], color=style.GREY, lw=1, ls="--", zorder=0)
            kind = NAMES[part.model] if scale == "scaled" else "standard"
            axis.set(xscale="log", xlabel=number + unit)
            axis.set_title(f"{kind}: best rates from {min(bests):.2g} to {max(bests):.2g}")
        panels[0].set_ylabel(f"held-out loss of the {MODELS[part.model]}")
        panels[1].legend(title=what)
    title = f"A line for each {what}; dots: the best {number}s; dashed: that of the smallest"
    style.save(figure, path, title)


def batch_picture(part: Batches, found: Found, path: Any) -> None:
    """Loss by batch size, with and without the scaling rule."""
    figure, (axis,) = style.panels(1, 1, height=3.6)
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
