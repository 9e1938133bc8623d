"""How things are written on a page: times, spans, numbers, and whatever a stranger sent."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from receiver.lib.clock import iso
from receiver.web import services
from receiver.web.dashboard.pages import blueprint

LONGEST_SHOWN = 300  # characters, where nobody asked for all of it

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1000
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", _SECOND))
_KIB = 1024
# Controls, and what turns the direction of text or hides in it: shown, never obeyed.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ud800-\udfff\ufff9-\uffff\U000e0000-\U000e0fff]"
)

_FORMS = {"clock": "%H:%M:%S", "minute": "%Y-%m-%d %H:%M", "hour": "%H:%M", "date": "%d %b"}

OUTCOMES = {
    "pending": "under way",
    "succeeded": "succeeded",
    "partial": "partial",
    "failed": "failed",
    "cancelled": "cancelled",
    "unknown": "unknown",
    "lost": "lost",
}


@blueprint.app_template_filter()
def shown(text: Any, most: int = LONGEST_SHOWN) -> str:  # noqa: ANN401 - whatever was sent
    """Write a stranger's text: at most so much of it, what cannot be seen as its code point."""
    text = str(text)
    cut = text[:most]
    seen = _UNSEEN.sub(
        lambda found: (
            f"\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}U+{ord(found[0]):04X}"
            "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
        ),
        cut,
    )
    return seen if len(text) <= most else f"{seen}\N{HORIZONTAL ELLIPSIS}"


@blueprint.app_template_filter()
def number(value: int) -> str:
    """Write a number with commas."""
    return f"{value:,}"


@blueprint.app_template_filter()
def counted(value: int, one: str, many: str | None = None) -> str:
    """Write a number of things."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


@blueprint.app_template_filter()
def size(value: int) -> str:
    """Write a number of bytes."""
    if value < _KIB:
        return f"{value} B"
    return f"{value / _KIB:.1f} KiB" if value < _KIB * _KIB else f"{value / _KIB / _KIB:.1f} MiB"


@blueprint.app_template_filter()
def span(ms: int) -> str:
    """Write how long something takes: `2 d 4 h`, `3 h 5 min`, `12 min`, `8 s`."""
    ms = max(0, ms)
    for (unit, length), (smaller, smaller_length) in pairwise(_UNITS):
        if ms >= length:
            rest = ms % length // smaller_length if smaller != "s" else 0
            return f"{ms // length} {unit} {rest} {smaller}" if rest else f"{ms // length} {unit}"
    return f"{ms // _SECOND} s"


@blueprint.app_template_filter()
def moment(ms: int, form: str = "full") -> Markup:
    """Write a time in UTC. form -- how much of it is seen; all of it is behind that."""
    at = _EPOCH + timedelta(milliseconds=ms)
    full = f"{at:%Y-%m-%d %H:%M:%S}"  # numbers alone: nothing of it is a stranger's
    seen = full if form == "full" else f"{at:{_FORMS[form]}}"
    return Markup(f'<time datetime="{iso(ms)}" title="{full} UTC">{seen}</time>')  # noqa: S704  # nosec B704


@blueprint.app_template_filter()
def ago(ms: int) -> Markup:
    """Write how long ago something was; the script goes on counting."""
    passed = services().clock() - ms
    text = "just now" if passed < _SECOND else f"{span(passed)} ago"
    return _counting(ms, "ago", text)


@blueprint.app_template_filter()
def left(ms: int) -> Markup:
    """Write how much time is left; the script goes on counting."""
    return _counting(ms, "left", until(ms - services().clock()))


def until(remaining: int) -> str:
    """Say how much time is left, ms."""
    return f"in {span(remaining)}" if remaining > 0 else "over"


def _counting(ms: int, way: str, text: str) -> Markup:
    return Markup(f'<time {_attributes(ms)} data-{way}="{ms}">{text}</time>')  # noqa: S704  # nosec B704


@lru_cache(maxsize=1024)
def _attributes(ms: int) -> str:
    at = _EPOCH + timedelta(milliseconds=ms)
    return f'datetime="{iso(ms)}" title="{at:%Y-%m-%d %H:%M:%S} UTC"'


@blueprint.app_template_filter()
def day(ms: int) -> str:
    """Name a day, UTC, by which rows are grouped."""
    today = (_EPOCH + timedelta(milliseconds=services().clock())).date()
    date = (_EPOCH + timedelta(milliseconds=ms)).date()
    name = {0: "Today", 1: "Yesterday"}.get((today - date).days)
    return f"{name}, {date:%A %d %B %Y}" if name else f"{date:%A %d %B %Y}"


@blueprint.app_template_filter("iso")
def as_parameter(ms: int) -> str:
    """Write a time as the API takes it."""
    return str(iso(ms))


@blueprint.app_template_filter()
def outcome_word(outcome: str) -> str:
    """Say an outcome to a person."""
    return OUTCOMES.get(outcome, outcome)
