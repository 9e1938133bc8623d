"""The picture of outcomes over time: bars, drawn as SVG without any inline style."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import svg

from receiver.storage.history import ENDED

HEIGHT = 100
GAP = 0.22  # of a bar's place
_STEPS = (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class Bar:
    """What ended in one stretch of time. start -- ms."""

    start: int
    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """How many ended."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars, the height of the scale, and the drawing."""

    bars: Sequence[Bar]
    top: int
    drawing: str


def chart(counts: Mapping[tuple[int, str], int], first: int, width: int, places: int) -> Chart:
    """Draw counts.

    first -- where the first stretch starts, ms. width -- of each. places -- how many.
    """
    bars = [
        Bar(start, {name: counts.get((start, name), 0) for name in ENDED})
        for start in range(first, first + places * width, width)
    ]
    top = _scale(max(bar.total for bar in bars))
    drawing = svg.SVG(
        viewBox=svg.ViewBoxSpec(0, 0, places, HEIGHT),
        preserveAspectRatio=svg.PreserveAspectRatio("none"),
        class_=["chart"],
        elements=[*_lines(places), *(each for bar in enumerate(bars) for each in _pile(*bar, top))],
        extra={"aria-hidden": "true", "focusable": "false"},
    )
    return Chart(bars, top, drawing.as_str())


def _lines(places: int) -> list[svg.Element]:
    return [svg.Line(x1=0, x2=places, y1=y, y2=y) for y in (0, HEIGHT / 2, HEIGHT)]


def _pile(place: int, bar: Bar, top: int) -> list[svg.Element]:
    pieces: list[svg.Element] = []
    floor = float(HEIGHT)
    for name in ENDED:
        tall = HEIGHT * bar.counts[name] / top
        if tall:
            floor -= tall
            pieces.append(
                svg.Rect(
                    x=round(place + GAP / 2, 3),
                    y=round(floor, 2),
                    width=1 - GAP,
                    height=round(tall, 2),
                    class_=[f"is-{name}"],
                )
            )
    return pieces


def _scale(most: int) -> int:
    """Give a round number that is not below the tallest bar, and even, to be halved."""
    size = 1
    while True:
        for step in _STEPS:
            if step * size * 2 >= most:
                return step * size * 2
        size *= 10
