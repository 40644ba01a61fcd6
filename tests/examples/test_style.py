"""The style of plots: colours for every kind of vision, plain numbers, labels without overlap."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from examples.shared import style

# Machado, Oliveira & Fernandes 2009, severity 1: the linear RGB seen without one kind of cone.
VISION = {
    "usual": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}
TO_XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
WHITE = TO_XYZ.sum(axis=1)


def lab(colour, vision):
    """CIELAB of a colour as seen with this vision."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(VISION[vision]) @ linear, 0, 1) / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def least_distance(colours, vision):
    pairs = itertools.combinations([lab(colour, vision) for colour in colours], 2)
    return min(np.linalg.norm(a - b) for a, b in pairs)


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart(vision):
    """2.3 is just noticeable side by side; thin lines far apart need several times as much."""
    assert least_distance([*style.PALETTE, "#ffffff"], vision) > 15


def test_no_two_of_many_lines_look_alike():
    styles = [tuple(style.line_style(i).values()) for i in range(28)]
    assert len(style.PALETTE) <= 8 and len(set(styles)) == len(styles)


def lightness(colours):
    return [lab(colour, "usual")[0] for colour in colours]


def test_a_sequence_is_in_order_in_grey_too():
    assert (np.diff(lightness(style.sequence(6))) > 5).all()


@pytest.mark.parametrize(
    "x, text",
    [
        (0.0, "0"),
        (0.002, "0.002"),
        (0.1 + 0.2, "0.3"),
        (-0.5, "−0.5"),
        (20_000, "20,000"),
        (1e-5, "$10^{-5}$"),
        (1e-3 * 1e-3, "$10^{-6}$"),
        (5e-6, r"$5\cdot10^{-6}$"),
    ],
)
def test_numbers_are_plain(x, text):
    assert style.number(x) == text


@pytest.mark.parametrize("low, high", [(0.96, 1.04), (1e-4, 1.0), (0.2, 0.35), (0.05, 3.0)])
def test_a_logarithmic_axis_has_two_ticks_or_more_and_no_factor(tmp_path, low, high):
    figure, (axes,) = style.panels(1, 1)
    axes.semilogy([1, 2], [low, high])
    style.save(figure, tmp_path / "picture.png")
    figure.draw_without_rendering()
    inside = [y for y in axes.get_yticks() if axes.get_ylim()[0] <= y <= axes.get_ylim()[1]]
    texts = [label.get_text() for label in axes.get_yticklabels()]
    assert 2 <= len(inside) <= 12 and not any("e-" in text or "times" in text for text in texts)
    assert axes.yaxis.get_offset_text().get_text() == ""


def test_a_linear_axis_has_no_factor_or_offset(tmp_path):
    figure, (axes,) = style.panels(1, 1)
    axes.plot([1, 2], [1e-3, 1.0001e-3])
    style.save(figure, tmp_path / "picture.png")
    figure.draw_without_rendering()
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert axes.get_yticklabels()[0].get_text().startswith("0.00")
