"""Reports the comparison on text: the table, the figures, the plot, and the pages' text."""

import re
from pathlib import Path

import numpy as np

from examples import strict_json, style
from examples.study import Result, Study

Results = dict[str, Result]
"""By optimizer: its best rate, bytes of state, and the runs of its grid and of its seeds."""

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "text-compare.png"
PAGES = {
    ROOT / "examples" / "README.md": "../docs/text-compare.png",
    ROOT / "docs" / "choosing.md": "text-compare.png",
}
"""Pages that show it, and the path of the picture relative to each."""
WINDOW = 25
"""Steps over which a training loss is averaged for the plot."""


def best(runs: list[Result]) -> int:
    """The index of the run with the lowest loss on the text used for choosing rates."""
    losses = np.asarray([run["chosen_by"] for run in runs], float)
    return int(np.where(np.isfinite(losses), losses, np.inf).argmin())


def losses(result: Result) -> np.ndarray:
    """The loss of each seed at the best rate."""
    return np.asarray([run["loss"] for run in result["seeds"]], float)


def ranked(results: Results) -> list[str]:
    """The optimizers, the lowest loss first."""
    return sorted(results, key=lambda name: losses(results[name]).mean())


def write(work: Study, results: Results, pages: bool) -> None:
    """Prints and writes all results; also the parts of the documentation if `pages`."""
    columns = ("optimizer", "held-out loss", "lowest", "highest", "learning rate", "state, B/p")
    text = work.table(columns, rows(results), "table")
    said = verdict(work, results)
    figures = {"settings": strict_json.loads((work.folder / "settings.json").read_text())}
    figures |= {"seconds": round(sum(work.seconds.values())), "results": results}
    (work.folder / "results.json").write_text(strict_json.dumps(figures, indent=1) + "\n")
    figure(results, work.folder / "curves.png")
    work.say(f"{text}\n{said}\n{work.folder}/table.md, table.csv, results.json, curves.png")
    if pages:
        PICTURE.write_bytes((work.folder / "curves.png").read_bytes())
        alt = "training loss, held-out loss by learning rate, and the losses of three seeds"
        for page, picture in PAGES.items():
            part = f"{text}\n{said}\n![{alt}]({picture})\n"
            page.write_text(written(page.read_text(), part))
        work.say(f"{PICTURE}, {', '.join(map(str, PAGES))}")


def rows(results: Results) -> list[tuple[str, ...]]:
    """A row for each optimizer, the best first; a rate at the edge of its grid is marked."""
    made = []
    for name in ranked(results):
        result, loss = results[name], losses(results[name])
        edge = best(result["grid"]) in (0, len(result["grid"]) - 1)
        made.append(
            (
                f"`{name}`",
                *(f"{x:.3f}" for x in (loss.mean(), loss.min(), loss.max())),
                f"{result['rate']:.2g}{' (edge)' if edge else ''}",
                f"{result['bytes_of_state']:.2f}",
            )
        )
    return made


def verdict(work: Study, results: Results) -> str:
    """The best optimizer, and those that three seeds cannot distinguish from it."""
    order = ranked(results)
    first = losses(results[order[0]])
    alike = [name for name in order[1:] if losses(results[name]).min() <= first.max()]
    runs = sum(len(result["grid"]) + len(result["seeds"]) for result in results.values())
    said = [
        f"Loss in nats per character; {runs} runs, {sum(work.seconds.values()) / 60:.0f} minutes.",
        f"`{order[0]}` has the lowest loss, {first.mean():.3f} ({first.min():.3f} to"
        f" {first.max():.3f}).",
        f"Its range overlaps those of {_listed(alike)}: three seeds cannot distinguish them."
        if alike
        else "Its range overlaps no other optimizer's range.",
    ]
    if "adamw" in order[1:]:
        behind = losses(results["adamw"]).mean() - first.mean()
        said.append(f"`adamw` has rank {order.index('adamw') + 1}, {behind:.3f} nats higher.")
    return "\n".join(said) + "\n"


def _listed(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def written(page: str, part: str) -> str:
    """A page with this text between its two marks."""
    begin, end = "<!-- comparison on text -->\n", "<!-- end of comparison on text -->"
    pattern, whole = f"{begin}.*?{end}", f"{begin}{part}{end}"
    made, found = re.subn(pattern, lambda _: whole, page, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"the page must have {begin.strip()} and {end} once, got {found}.")
    return made


def smoothed(losses: list[float]) -> np.ndarray:
    """A running mean, [steps - WINDOW + 1]."""
    return np.convolve(np.asarray(losses, float), np.ones(WINDOW) / WINDOW, mode="valid")


def figure(results: Results, path: Path) -> None:
    """Training loss by step, the loss by learning rate, and the losses of the seeds."""
    picture, (left, middle, right) = style.panels(1, 3, width=4.7, height=4.6)
    order = ranked(results)
    # By rank: neighbouring lines differ in colour, the last ones also in their dashes.
    looks = {name: style.line_style(i) for i, name in enumerate(order)}
    curves = {
        name: np.mean([smoothed(run["train_losses"]) for run in result["seeds"]], axis=0)
        for name, result in results.items()
    }
    for name, result in results.items():
        look = looks[name]
        left.plot(np.arange(WINDOW, WINDOW + len(curves[name])), curves[name], **look)
        grid = [(run["rate"], run["chosen_by"]) for run in result["grid"]]
        middle.plot(*zip(*grid, strict=True), **look)
        dot = {"color": look["color"], "marker": "o"}
        if look["linestyle"] != "-":
            dot["markerfacecolor"] = "white"
        middle.plot(*grid[best(result["grid"])], **dot)
        y, seeds = len(order) - 1 - order.index(name), losses(result)
        right.plot([seeds.min(), seeds.max()], [y, y], linewidth=2.5, **look)
        right.plot(seeds.mean(), y, **dot)
    ends = [result["grid"][best(result["grid"])]["chosen_by"] for result in results.values()]
    middle.set_ylim(min(ends) - 0.02, max(ends) + 0.3)  # Above: runs that hardly learn.
    left.set_ylim(top=max(curve[len(curve) // 8] for curve in curves.values()))
    left.margins(x=0)
    left.set(xlabel="optimizer steps", ylabel="training loss (nats per character)")
    middle.set(xscale="log", xlabel="learning rate")
    middle.set_ylabel("held-out loss (nats per character)")
    right.set_yticks(range(len(order)), reversed(order))
    for label, name in zip(right.get_yticklabels(), reversed(order), strict=True):
        label.set_color(looks[name]["color"])
    right.tick_params(axis="y", labelsize=8)
    right.set(xlabel="held-out loss (nats per character)")
    left.set_title("each at its best learning rate", fontsize=10)
    middle.set_title("first half of the held-out text; dot: lowest", fontsize=10)
    right.set_title("second half: mean and range of three seeds", fontsize=10)
    picture.suptitle("Character transformer: optimizers, each tuned over the learning rate")
    style.label_ends(
        left, {name: (float(curves[name][-1]), looks[name]["color"]) for name in order}, 8
    )
    style.save(picture, path, dpi=115)
