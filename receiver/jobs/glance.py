"""What the front page shows, in one statement: a page that asks eight times waits eight times.

Each part goes by the index that it has in `overview` and `history`; a word tells the parts apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, String, cast, func, literal_column, or_, select, union_all

from receiver.database.alarm_models import Alarm
from receiver.database.models import CounterRow, JobRow, Submission
from receiver.database.reading import Rows, Statement
from receiver.jobs import history, overview
from receiver.jobs.history import ENDED, Refusing
from receiver.jobs.job import FILES_KEPT_MS, OUTCOMES
from receiver.jobs.overview import limited, number, one_of, shape_of, values_of
from receiver.jobs.queries import Instances
from receiver.jobs.tally import LOST
from receiver.lib.clock import HOUR_MS, MINUTE_MS

MOST_COUNTED = 100  # of what is overdue: how many more there are nobody needs to know


@dataclass(frozen=True, slots=True)
class Glance:
    """How it stands; times are ms.

    counts -- as `overview.summary` has them, but of the overdue at most MOST_COUNTED + 1, and with
    the submissions that were forgotten. ended -- {(start of stretch, outcome): n}.
    last_callbacks, refusing, failing_since -- as in `history`, of all instances.
    alarms -- how many are open, by kind.
    """

    counts: Mapping[str, Any]
    ended: Mapping[tuple[int, str], int]
    last_callbacks: Mapping[str, int]
    refusing: Mapping[str, Refusing]
    failing_since: int | None
    alarms: Mapping[str, int]


def glance(  # noqa: PLR0917 - what the page asks
    read: Rows, visible: Instances, now: int, overdue_after: int, since: int, width: int, back: int
) -> Glance:
    """Read it. overdue_after -- ms.

    since, width -- where the picture of what ended starts, and the stretches it has, ms: an hour or
    a day, since the counters name the hour in which the files expire, whole days later;
    counters.KEPT_HOURS is how far it can be looked back. back -- ms, for refusals.
    """
    values = {
        **values_of(visible),
        **overview.moments(now, overdue_after),
        "hour": (since + FILES_KEPT_MS) // HOUR_MS,
        "hours": width // HOUR_MS,
        "since": (now - back) // MINUTE_MS,
    }
    parts: dict[str, list[tuple[str, int, int]]] = {}
    for part, name, place, n in read(_glance(shape_of(visible)), values):
        parts.setdefault(part, []).append((name, place, n))
    counted, numbers, last, alarms = (
        {name: n for name, _, n in parts.get(part, ())}
        for part in ("total", "number", "heard", "alarm")
    )
    refused = sorted(parts.get("refused", ()), key=lambda row: row[1])
    return Glance(
        counts=overview.told(counted, numbers),
        ended={
            (stretch * width - FILES_KEPT_MS, outcome): n
            for outcome, stretch, n in parts.get("ended", ())
        },
        last_callbacks=last,
        refusing=history.refusing(refused, last),
        failing_since=numbers["failing"],
        alarms=alarms,
    )


@lru_cache(maxsize=32)
def _glance(shape: int | None) -> Statement:
    counter = CounterRow
    nothing: Any = literal_column("0")
    totals = (
        select(counter.measure, nothing, func.sum(counter.n))
        .where(one_of(counter.measure, (*OUTCOMES, LOST)), counter.bucket == nothing)
        .group_by(counter.measure)
    )
    hours = select(
        counter.measure, (counter.bucket // number("hours")).label("stretch"), counter.n
    ).where(one_of(counter.measure, ENDED), counter.bucket >= number("hour"))
    hour = limited(hours, counter.instance, shape).subquery().c
    ended = select(hour.measure, hour.stretch, func.sum(hour.n)).group_by(
        hour.measure, hour.stretch
    )
    name, last = history.LAST.selected_columns
    parts = [
        _part("total", limited(totals, counter.instance, shape)),
        _part("ended", ended),
        _part("heard", history.LAST.with_only_columns(name, nothing, last)),
        _part("refused", history.REFUSED),
        _part("alarm", _alarms(shape)),
        *(
            _part("number", select(literal_column(f"'{name}'"), nothing, found.scalar_subquery()))
            for name, found in _numbers(shape).items()
        ),
    ]
    return Statement(union_all(*parts), many=True)


def _part(word: str, found: Any) -> Any:  # noqa: ANN401 - a SELECT
    """Say what rows (name, place, n) are; the same types in each part, or they cannot be one."""
    name, place, n = found.selected_columns
    return found.with_only_columns(
        literal_column(f"'{word}'").label("part"),
        cast(name, String).label("name"),
        cast(place, BigInteger).label("place"),
        cast(n, BigInteger).label("n"),
    )


def _numbers(shape: int | None) -> dict[str, Any]:
    numbers = overview.numbers()
    found = {name: limited(count, column, shape) for name, (count, column) in numbers.items()}
    some = limited(overview.overdue(literal_column("1")), JobRow.instance, shape)
    most: Any = literal_column(str(MOST_COUNTED + 1))
    none: Any = literal_column("0")  # which SQLite is given in any case
    first = some.limit(most).offset(none).subquery()
    found["overdue"] = select(func.count()).select_from(first)
    forgotten = (Submission.state == literal_column("'sending'")) & (
        Submission.at < number("now") - number("overdue_after")
    )
    unclear = or_(Submission.state == literal_column("'unclear'"), forgotten)
    fates = select(func.count()).select_from(Submission).where(unclear)
    found["unclear"] = limited(fates, Submission.instance, shape)
    return {**found, "failing": history.FAILING}


def _alarms(shape: int | None) -> Any:  # noqa: ANN401 - a SELECT
    """Count what is open by kind, as `alarms.alarms` shows it."""
    is_open = Alarm.cleared_at.is_(None)
    kinds: Any = select(Alarm.kind, literal_column("0"), func.count()).where(is_open)
    if shape is not None:
        kinds = limited(kinds, Alarm.subject, shape).where(
            Alarm.kind != literal_column("'failing'")
        )
    return kinds.group_by(Alarm.kind)
