"""The summary: what an operator looks at first, in two statements that are compiled once.

What could be many is counted by counters, the rest by an index; so it costs the same with a million
jobs.
"""

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import BigInteger, Select, bindparam, false, func, literal_column, select, text

from receiver.database.models import (
    IS_UNDER_WAY,
    UNREADABLE,
    CounterRow,
    Event,
    JobRow,
    Pace,
    RejectionCount,
    Submission,
    UsualTime,
)
from receiver.database.reading import Rows, Statement
from receiver.jobs.job import OUTCOMES
from receiver.jobs.queries import Instances
from receiver.jobs.tally import LAST_CALLBACK, LOST
from receiver.lib.clock import DAY_MS, HOUR_MS, MINUTE_MS
from receiver.reconcile.followups import is_overdue


def summary(read: Rows, visible: Instances, now: int, overdue_after: int) -> dict[str, Any]:
    """Count what an operator looks at first. overdue_after -- in ms."""
    mine = values_of(visible)
    counted = {
        measure: int(latest if measure == LAST_CALLBACK else total)
        for measure, total, latest in read(_totals(shape_of(visible)), mine)
    }
    (found,) = read(_numbers(shape_of(visible)), {**mine, **moments(now, overdue_after)})
    return told(counted, dict(zip(numbers(), found, strict=True)))


def told(counted: Mapping[str, int], found: Mapping[str, Any]) -> dict[str, Any]:
    """Put together what is counted by measure, and what `numbers` found."""
    queued = found["queued"]
    return {
        "jobs": {outcome: counted.get(outcome, 0) for outcome in OUTCOMES},
        "overdue": int(found["overdue"]),
        "expiring_24h": int(found["whole"] or 0) + int(found["begun"]) + int(found["ending"]),
        "rejections_1h": int(found["rejections"] or 0),
        "lost_callbacks": counted.get(LOST, 0),
        "queued_at_vendor": None if queued is None else int(queued),
        "unclear_submissions": int(found["unclear"]),
        "unreadable_events": int(found["unreadable"]),
        "last_callback_at": counted.get(LAST_CALLBACK),
    }


def moments(now: int, overdue_after: int) -> dict[str, int]:
    """Give what `numbers` ask for."""
    first, last = -(-(now + 1) // HOUR_MS), (now + DAY_MS) // HOUR_MS  # whole hours
    return {
        "now": now,
        "overdue_after": overdue_after,
        "first": first,
        "last": last,
        "first_ms": first * HOUR_MS,
        "last_ms": last * HOUR_MS,
        "before": now + DAY_MS,
        "minute": (now - HOUR_MS) // MINUTE_MS,
    }


def shape_of(visible: Instances) -> int | None:
    """What a statement depends on: how many instances it is limited to, if it is."""
    return None if visible is None else len(visible)


def values_of(visible: Instances) -> Mapping[str, Any]:
    """Give what `limited` asks for."""
    return {f"instance_{n}": name for n, name in enumerate(sorted(visible or ()))}


def limited(statement: Any, column: Any, shape: int | None) -> Any:  # noqa: ANN401 - a SELECT
    """Limit a statement to instances, as many as `shape_of` told.

    Said so that no index of instances looks useful: each statement has a better one.
    """
    if shape is None:
        return statement
    column = column.concat(literal_column("''"))
    names: list[Any] = [bindparam(f"instance_{n}") for n in range(shape)]
    return statement.where(column.in_(names) if names else false())


def one_of(column: Any, words: tuple[str, ...]) -> Any:  # noqa: ANN401 - SQL expressions
    """Say that a column is one of some words of ours, in full: a parameter would be no constant."""
    return column.in_([literal_column(f"'{word}'") for word in words])


def number(name: str) -> Any:  # noqa: ANN401 - an SQL expression
    """Name a number that is given when the statement is run."""
    return bindparam(name, type_=BigInteger)


@lru_cache(maxsize=32)
def _totals(shape: int | None) -> Statement:
    plain = one_of(CounterRow.measure, (*OUTCOMES, LOST, LAST_CALLBACK))
    measures = (
        select(CounterRow.measure, func.sum(CounterRow.n), func.max(CounterRow.n))
        .where(plain, CounterRow.bucket == literal_column("0"))
        .group_by(CounterRow.measure)
    )
    return Statement(limited(measures, CounterRow.instance, shape))


@lru_cache(maxsize=32)
def _numbers(shape: int | None) -> Statement:
    return Statement(
        select(
            *(
                limited(count, column, shape).scalar_subquery().label(name)
                for name, (count, column) in numbers().items()
            )
        )
    )


@cache
def numbers() -> Mapping[str, tuple[Select[Any], Any]]:
    """Give each number by name: how it is counted, and its column of instances."""
    expires = JobRow.files_expire_at
    return {
        "overdue": (overdue(func.count()), JobRow.instance),
        "whole": (
            select(func.sum(CounterRow.n)).where(
                one_of(CounterRow.measure, OUTCOMES),
                CounterRow.bucket >= number("first"),
                CounterRow.bucket < number("last"),
            ),
            CounterRow.instance,
        ),
        "begun": (_jobs(expires > number("now"), expires < number("first_ms")), JobRow.instance),
        "ending": (
            _jobs(expires >= number("last_ms"), expires < number("before")),
            JobRow.instance,
        ),
        "rejections": (
            select(func.sum(RejectionCount.count)).where(RejectionCount.minute > number("minute")),
            RejectionCount.instance,
        ),
        "queued": (select(func.sum(Pace.queued)), Pace.instance),
        "unclear": (
            select(func.count())
            .select_from(Submission)
            .where(Submission.state == literal_column("'unclear'")),
            Submission.instance,
        ),
        "unreadable": (
            select(func.count()).select_from(Event).where(text(UNREADABLE)),
            Event.instance,
        ),
    }


def _jobs(*conditions: Any) -> Select[Any]:  # noqa: ANN401 - SQL expressions
    return select(func.count()).select_from(JobRow).where(*conditions)


def overdue(*columns: Any) -> Select[Any]:  # noqa: ANN401 - SQL expressions
    """Find jobs under way for too long, by the index of those under way for so long at least."""
    after = number("overdue_after")
    shorter = select(func.min(UsualTime.ms)).where(UsualTime.ms < after).scalar_subquery()
    return (
        select(*columns)
        .select_from(JobRow)
        .where(
            IS_UNDER_WAY,
            JobRow.first_seen_at <= number("now") - func.coalesce(shorter, after),
            is_overdue(number("now"), after),
        )
    )
