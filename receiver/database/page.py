"""One page of a long list, read in the order of an index; its cost does not grow with the list.

What is asked for by value has an index of (column, time): each value's rows are a range of it that
is sorted already, and a page merges these ranges. Statements are made once for each shape of a
question, and their values are named: a list of them by what it filters, the last row of the page
before by `after_0` and so on, the number of rows by `limit`.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    FromClause,
    Integer,
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

# Seen by the planner of PostgreSQL, which would rather sort all rows for a number that it is not.
LIMIT: Any = bindparam("limit", type_=Integer, literal_execute=True)
_DEPTH: Any = bindparam("depth", type_=Integer, literal_execute=True)


def numbers_of(limit: int, after: Sequence[object] | None) -> dict[str, object]:
    """Name the values that each page has: how many rows, and the last one before."""
    places = {f"after_{place}": value for place, value in enumerate(after or ())}
    return {"limit": limit, "depth": limit - 1, **places}


def among(column: Column, name: str, *, sqlite: bool) -> Column:
    """Whether a column holds one of the values named `name`, however many they are."""
    if sqlite:
        return column.in_(select(_each(name).c.value))
    return column == any_(bindparam(name, type_=ARRAY(column.type)))


def hidden(column: Column) -> Column:
    """A column, said so that no index of it looks useful."""
    return column + literal_column("0")


def contains(column: Column, name: str, *, sqlite: bool) -> Column:
    """Whether a column holds the text named `name` as it stands: LIKE would take `a` for `A`."""
    return (func.instr if sqlite else func.strpos)(column, bindparam(name)) > 0


def page(
    columns: Sequence[Column],
    order: Sequence[Column],
    where: Sequence[Column],
    ranges: tuple[Column, str] | None,
    *,
    after: bool,
    ascending: bool = False,
    sqlite: bool,
) -> Selection:
    """Make a page of rows.

    order -- a time, and what identifies a row among those of that time, all of them in `columns`.
    ranges -- a column that has an index with that time, and the name of its values.
    after -- whether the page stands behind a row.
    """
    where = [*where, *_behind(order, ascending)] if after else list(where)
    by = [_sorted(column, ascending) for column in order]
    if ranges is None:
        return select(*columns).where(*where).order_by(*by).limit(LIMIT)
    column, name = ranges
    values = _each(name) if sqlite else _unnested(name, column)
    of_range = column == values.c.value
    # The last row of a page that one range alone would fill: the merged page ends no later.
    time = order[0]
    deepest = select(time).where(of_range, *where).order_by(by[0]).limit(1).offset(_DEPTH)
    ends = deepest.correlate(values).scalar_subquery()
    end = select((func.min if ascending else func.max)(ends)).select_from(values)
    last: Any = end.correlate(None).scalar_subquery()
    bound = func.coalesce(last, literal_column(str(2**63 - 1 if ascending else 1 - 2**63)))
    rows = select(*columns).where(of_range, *where, time <= bound if ascending else time >= bound)
    if sqlite:
        return rows.order_by(*by).limit(LIMIT)
    # Each range in its order and limit, or PostgreSQL would rather read the list in its order.
    each = rows.order_by(*by).limit(LIMIT).correlate(values).lateral("of_range")
    merged = [_sorted(each.c[str(column.key)], ascending) for column in order]
    return select(each).select_from(values.join(each, true())).order_by(*merged).limit(LIMIT)


def _behind(order: Sequence[Column], ascending: bool) -> list[Column]:
    last = [bindparam(f"after_{n}", type_=column.type) for n, column in enumerate(order)]
    here, there = tuple_(*order), tuple_(*last)
    if ascending:
        return [order[0] >= last[0], here > there]
    return [order[0] <= last[0], here < there]


def _sorted(column: Column, ascending: bool) -> ColumnElement[Any]:
    return column.asc() if ascending else column.desc()


def _each(name: str) -> FromClause:
    return func.json_each(bindparam(name, type_=JSON)).table_valued("value").alias(f"each_{name}")


def _unnested(name: str, column: Column) -> FromClause:
    values = func.unnest(bindparam(name, type_=ARRAY(column.type)))
    return values.table_valued("value", name=f"each_{name}").render_derived()
