"""Labels at the ends of lines, in place of a legend."""


def apart(places: list[tuple[float, float]], gap: float) -> list[float]:
    """The heights of places, moved up where two at one x are nearer than a gap."""
    heights = [y for _, y in places]
    order = sorted(range(len(places)), key=lambda i: places[i])
    for below, above in zip(order, order[1:], strict=False):
        if places[below][0] == places[above][0]:
            heights[above] = max(heights[above], heights[below] + gap)
    return heights
