"""One page of a long list, read in the order of an index; its cost does not grow with the list.

What is asked for by value has an index of (column, time): each value's rows are a range of it that
is sorted already, and a page merges these ranges. Statements are made once for each shape of a
question and each length of a page, and their values are named: a list of them by what it filters,
the rest by `page_values`.
"""

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    any_,
    bindparam,
    func,
    literal_column,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import InstrumentedAttribute

Column: TypeAlias = ColumnElement[Any] | InstrumentedAttribute[Any]
Selection: TypeAlias = Select[*tuple[Any, ...]]

MIN_TIME, MAX_TIME = 1 - 2**63, 2**63 - 1
LOWER: Any = bindparam("lower", type_=BigInteger)
UPPER: Any = bindparam("upper", type_=BigInteger)


def page_values(
    after: Sequence[Any] | None,
    *,
    lower: int = MIN_TIME,
    upper: int = MAX_TIME,
    ascending: bool = False,
) -> dict[str, object]:
    """Return the values that each page's statement has, by the names of its parameters.

    after -- the last row before the page, as `order` has it. lower, upper -- bounds of its times.
    """
    position = {f"after_{n}": value for n, value in enumerate(after or ())}
    if after is not None:  # one bound on each side, or the wrong one might lead
        lower, upper = (max(lower, after[0]), upper) if ascending else (lower, min(upper, after[0]))
    return {"lower": lower, "upper": upper, **position}


def page(
    limit: int,
    order: Sequence[Column],
    where: Sequence[Column],
    ranges: tuple[Column, str] | None = None,
    *,
    lower: Column = LOWER,
    upper_of: Callable[[Column], Column] | None = None,
    after: bool = False,
    ascending: bool = False,
    sqlite: bool,
) -> Selection:
    """Select the keys of a page's rows, in order.

    limit -- how many at most; written into the statement, since PostgreSQL would rather sort all
    rows for a number that its planner does not see.
    order -- a time, and what identifies a row among those of that time. where -- what is asked
    besides bounds of that time. ranges -- a column that has an index with that time, and the name
    of its values. lower, upper_of -- the bounds, the latter for a value of the ranges.
    after -- whether the page follows a row.
    """
    time, *_ = order
    rows_of_page = _number(limit)
    conditions = [*where, *(_beyond(order, ascending) if after else ())]
    by = [_sorted(column, ascending) for column in order]
    if ranges is None:
        bounds = time >= lower, time <= UPPER
        return select(*order).where(*bounds, *conditions).order_by(*by).limit(rows_of_page)
    column, name = ranges
    values = _json_values(name) if sqlite else _unnested(name, column)
    of_range = column == values.c.value
    upper = upper_of(values.c.value) if upper_of else UPPER
    in_range = select(time).where(of_range, time >= lower, time <= upper, *conditions)
    depths = (1, isqrt(limit), limit)
    ends = [_end(in_range.order_by(by[0]), values, limit, depth, ascending) for depth in depths]
    if ascending:
        bounds = time >= lower, time <= least([upper, *ends], sqlite=sqlite)
    else:
        bounds = time >= greatest([lower, *ends], sqlite=sqlite), time <= upper
    rows = select(*order).where(of_range, *bounds, *conditions)
    if sqlite:
        return rows.order_by(*by).limit(rows_of_page)
    # Each range in its order and limit, or PostgreSQL would rather read the list in its order.
    first = rows.order_by(*by).limit(rows_of_page).correlate(values).lateral("of_range")
    merged = [_sorted(first.c[str(column.key)], ascending) for column in order]
    joined = select(first).select_from(values.join(first, true()))
    return joined.order_by(*merged).limit(rows_of_page)


def among(column: Column, name: str, *, sqlite: bool) -> Column:
    """Whether a column holds one of the values named `name`, however many they are."""
    if sqlite:
        return column.in_(select(_json_values(name).c.value))
    return column == any_(bindparam(name, type_=ARRAY(column.type)))


def hidden(column: Column) -> Column:
    """Write a column of numbers so that the planner takes no index of it."""
    return column + literal_column("0")


def contains(column: Column, name: str, *, sqlite: bool) -> Column:
    """Whether a column holds the text named `name` as it stands: LIKE would take `a` for `A`."""
    return (func.instr if sqlite else func.strpos)(column, bindparam(name)) > 0


def distinct_values(column: Column, *condition: Column) -> Selection:
    """Select the distinct values of an index's first column, by one index search for each.

    condition -- the index's own, if it is of some rows only.
    """
    first: Any = select(func.min(column).label("value")).where(*condition)
    values = first.cte("distinct_values", recursive=True)
    following = first.where(column > values.c.value).correlate(values).scalar_subquery()
    values = values.union_all(select(following).where(values.c.value.is_not(None)))
    return select(values.c.value).where(values.c.value.is_not(None))


def least(numbers: Sequence[Column], *, sqlite: bool) -> Column:
    """The least of some numbers, none of them null."""
    return (func.min if sqlite else func.least)(*numbers)


def greatest(numbers: Sequence[Column], *, sqlite: bool) -> Column:
    """The greatest of some numbers, none of them null."""
    return (func.max if sqlite else func.greatest)(*numbers)


def _end(
    in_range: Selection, values: FromClause, limit: int, depth: int, ascending: bool
) -> Column:
    """Select a time that a page surely does not end before.

    Of d (`depth`) rows in each range, the r-th best of the last ones: r ranges hold r times d rows
    up to there, which fill the page. If all have about as many, few rows of each are best; if one
    has most of them, as many of it as the page has.
    """
    furthest: Column = literal_column(str(MAX_TIME if ascending else MIN_TIME))
    last: Any = in_range.limit(_number(1)).offset(_number(depth - 1)).correlate(values)
    end = func.coalesce(last.scalar_subquery(), furthest).label("end")
    ends = select(end).select_from(values).order_by(_sorted(end, ascending))
    rank = -(-limit // depth)
    best = ends.limit(_number(1)).offset(_number(rank - 1)).correlate(None)
    return func.coalesce(best.scalar_subquery(), furthest)


def _number(value: int) -> Column:
    return literal_column(str(value))


def _beyond(order: Sequence[Column], ascending: bool) -> list[Column]:
    last = [bindparam(f"after_{n}", type_=column.type) for n, column in enumerate(order)]
    here, there = tuple_(*order), tuple_(*last)
    return [here > there if ascending else here < there]


def _sorted(column: Column, ascending: bool) -> ColumnElement[Any]:
    return column.asc() if ascending else column.desc()


def _json_values(name: str) -> FromClause:
    return func.json_each(bindparam(name, type_=JSON)).table_valued("value").alias(f"each_{name}")


def _unnested(name: str, column: Column) -> FromClause:
    values = func.unnest(bindparam(name, type_=ARRAY(column.type)))
    return values.table_valued("value", name=f"each_{name}").render_derived()
