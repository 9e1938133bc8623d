"""How things are written on a page: times, spans, numbers, jobs, and whatever a stranger sent."""

import json
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from urllib.parse import quote

from markupsafe import Markup, escape

from receiver.jobs.job import Job
from receiver.jobs.queries import JobRecord
from receiver.lib.clock import iso, to_ms
from receiver.web import services
from receiver.web.dashboard.pages import blueprint

MAX_SHOWN = 300  # characters, where nobody asked for all of it
MAX_SHOWN_BODY = 64 * 1024

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1000
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", _SECOND))
# Controls, and what turns the direction of text or hides in it: shown, never obeyed.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ud800-\udfff\ufff9-\uffff\U000e0000-\U000e0fff]"
)
_FORMS = {"clock": "%H:%M:%S", "minute": "%Y-%m-%d %H:%M", "hour": "%H:%M", "date": "%d %b"}
# What a spreadsheet would take for a formula, were it not text.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")

blueprint.add_app_template_filter("{:,}".format, "number")
blueprint.add_app_template_filter(iso)  # as the API takes a time


@blueprint.app_template_filter()
def shown(value: object, limit: int = MAX_SHOWN) -> str:
    """Write a stranger's text: at most so much of it, what cannot be seen as its code point."""
    text = str(value)
    cut = text[:limit]
    seen = _UNSEEN.sub(
        lambda match: (
            f"\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}U+{ord(match[0]):04X}"
            "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
        ),
        cut,
    )
    return seen if len(text) <= limit else f"{seen}\N{HORIZONTAL ELLIPSIS}"


@blueprint.app_template_filter()
def sentence(text: str) -> str:
    """Begin a text with a capital letter; the rest stays as it is."""
    return text[:1].upper() + text[1:]


@blueprint.app_template_filter()
def code(text: str) -> Markup:
    """Write what stands between backticks in a text as code."""
    parts = (
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(text.split("`"))
    )
    return Markup("").join(parts)


@blueprint.app_template_filter()
def counted(value: int, one: str, many: str | None = None) -> str:
    """Write a number of things."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


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
@lru_cache(maxsize=1024)  # the bars of a chart begin where they did on the page before
def moment(ms: int, form: str = "full") -> Markup:
    """Write a time in UTC. form -- how much of it is seen; all of it is in the title."""
    at = _EPOCH + timedelta(milliseconds=ms)
    full = f"{at:%Y-%m-%d %H:%M:%S}"
    return _time(ms, full if form == "full" else f"{at:{_FORMS[form]}}", full)


@blueprint.app_template_filter()
def ago(ms: int) -> Markup:
    """Write how long ago something was; the script goes on counting."""
    passed = services().clock() - ms
    return _counting(ms, "ago", "just now" if passed < _SECOND else f"{span(passed)} ago")


@blueprint.app_template_filter()
def left(ms: int) -> Markup:
    """Write how much time is left; the script goes on counting."""
    remaining = ms - services().clock()
    return _counting(ms, "left", f"in {span(remaining)}" if remaining > 0 else "over")


def _counting(ms: int, way: str, text: str) -> Markup:
    full = f"{_EPOCH + timedelta(milliseconds=ms):%Y-%m-%d %H:%M:%S}"
    return _time(ms, text, full, f' data-{way}="{ms}"')


def _time(ms: int, text: str, full: str, attribute: str = "") -> Markup:
    # Numbers and words of ours alone: nothing of it is a stranger's.
    return Markup(f'<time datetime="{iso(ms)}" title="{full} UTC"{attribute}>{text}</time>')  # noqa: S704  # nosec B704


@blueprint.app_template_filter()
def day(ms: int) -> str:
    """Name a day, UTC, by which rows are grouped."""
    today = (_EPOCH + timedelta(milliseconds=services().clock())).date()
    date = (_EPOCH + timedelta(milliseconds=ms)).date()
    name = {0: "Today", 1: "Yesterday"}.get((today - date).days)
    return f"{name}, {date:%A %d %B %Y}" if name else f"{date:%A %d %B %Y}"


@blueprint.app_template_filter()
def local_input(text: str) -> str:
    """Write a time parameter for an input of the type datetime-local, which knows no zone."""
    return str(iso(to_ms(text)))[:16] if text else ""


@blueprint.app_template_filter()
def outcome_word(outcome: str) -> str:
    """Return an outcome's name for people."""
    return "in progress" if outcome == "pending" else outcome


@blueprint.app_template_filter()
def job_url(record: JobRecord) -> str:
    """Return the path of a job's page."""
    return f"/jobs/{quote(record.id, safe='')}?instance={quote(record.instance, safe='')}"


@blueprint.app_template_filter()
def overdue_by(record: JobRecord) -> int | None:
    """Return by how much a job takes longer than it should, ms; None if it does not."""
    return record.overdue_by(services().clock(), services().settings.overdue_after)


@blueprint.app_template_filter("bar")
def shares(job: Job) -> tuple[float | None, float]:
    """Return how many hundredths of a job's records were loaded and failed; None if not known."""
    loaded, failed = job.loaded or 0, job.failed or 0
    total = max(loaded + failed, job.submitted or 0)
    if not total or (job.loaded is None and job.failed is None):
        return None, 0
    good = round(100 * loaded / total, 2)
    return good, min(round(100 * failed / total, 2), 100 - good)


@blueprint.app_template_filter()
def pretty(text: str) -> str:
    """Indent JSON; return what is none as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def readable(body: bytes | None) -> tuple[str, str | None, bool] | None:
    """Return the text of bytes, the same as indented JSON if it is any, and whether it was cut."""
    if body is None:
        return None
    cut = len(body) > MAX_SHOWN_BODY
    text = body[:MAX_SHOWN_BODY].decode("utf-8", "backslashreplace")
    indented = None if cut else pretty(text)
    return text, None if indented == text else indented, cut


def cell(fact: object) -> str:
    """Write a fact into a CSV so that no spreadsheet computes it."""
    text = "" if fact is None else str(fact).replace("\0", "\N{REPLACEMENT CHARACTER}")
    return f"'{text}" if _FORMULA.match(text) else text
