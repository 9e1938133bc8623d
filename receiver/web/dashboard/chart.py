"""The picture of outcomes over time: bars, drawn as SVG without any inline style."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import svg
from markupsafe import Markup

from receiver.jobs.queries import ENDED
from receiver.web.dashboard.pages import joined, kept

HEIGHT = 100
GAP = 0.22  # of a bar's place
_STEPS = (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class Bar:
    """What ended in one stretch of time. start -- ms."""

    start: int
    counts: Mapping[str, int]

    @property
    def key(self) -> tuple[int, ...]:
        """The counts in the order of ENDED."""
        return tuple(self.counts.values())

    @property
    def total(self) -> int:
        """How many ended."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars, the height of the scale, the drawing, and the same as rows of a table.

    totals -- by outcome, of all bars.
    """

    bars: Sequence[Bar]
    top: int
    drawing: str
    table: Markup
    totals: Mapping[str, int]


def chart(counts: Mapping[tuple[int, str], int], first: int, width: int, places: int) -> Chart:
    """Draw counts.

    first -- where the first stretch starts, ms. width -- of each. places -- how many.
    """
    bars = [
        Bar(start, {name: counts.get((start, name), 0) for name in ENDED})
        for start in range(first, first + places * width, width)
    ]
    top = _scale(max(bar.total for bar in bars))
    piles = "".join(_pile(place, bar.key, top) for place, bar in enumerate(bars))
    view = f'viewBox="0 0 {places} {HEIGHT}" preserveAspectRatio="none"'
    drawing = f'<svg class="chart" {view} aria-hidden="true">{_lines(places)}{piles}</svg>'
    newest = (kept("stretch", bar.start, width, bar.key) for bar in reversed(bars))
    totals: dict[str, int] = {name: sum(bar.counts[name] for bar in bars) for name in ENDED}
    return Chart(bars, top, drawing, joined(newest), totals)


@lru_cache(maxsize=8)
def _lines(places: int) -> str:
    ys = (0, HEIGHT / 2, HEIGHT)
    return "".join(svg.Line(x1=0, x2=places, y1=y, y2=y).as_str() for y in ys)


@lru_cache(maxsize=2048)
def _pile(place: int, counts: tuple[int, ...], top: int) -> str:
    """Draw one bar; most of them are the same as a moment ago."""
    pieces, floor = [], float(HEIGHT)
    for name, count in zip(ENDED, counts, strict=True):
        tall = HEIGHT * count / top
        floor -= tall
        piece = svg.Rect(
            x=round(place + GAP / 2, 3),
            y=round(floor, 2),
            width=1 - GAP,
            height=round(tall, 2),
            class_=[f"is-{name}"],
        )
        pieces.append(piece.as_str() if count else "")
    return "".join(pieces)


def _scale(most: int) -> int:
    """Give a round number that is not below the tallest bar, and even, to be halved."""
    size = 1
    while True:
        for step in _STEPS:
            if step * size * 2 >= most:
                return step * size * 2
        size *= 10
