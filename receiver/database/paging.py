"""Pages of long lists, newest first, whose cost does not grow with the list.

Each facet, a column that is asked for by value, has an index that ends in the list's order. A page
follows one of them and judges the other facets row by row; which one matters a thousandfold, and
no statistics tell: the planner knows neither how often this very value came lately nor, on SQLite,
anything at all. So the page looks how far back the newest few rows of each value reach, and follows
the facet that reaches furthest: it is the rarest. Several values of it are merged in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    String,
    and_,
    bindparam,
    func,
    literal_column,
    select,
    tuple_,
    union_all,
)

from receiver.database.reading import Contains, Rows, Statement

DEPTH = 300  # rows of a value that are looked at to see how rare it is
MOST_MERGED = 20  # values of one facet; with more, another one leads
FEW = 1_000  # rows that may be sorted instead of being read in order


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """A list that is read in pages.

    columns -- what is given of each row.
    order -- what it is sorted by, newest first: a time, and the columns that identify a row.
    facets -- by name, what is asked for by value.
    leading -- the facets with an index of (facet, *order), and the value that it leaves out, if
    any: one so usual that it is met soon enough in any order.
    bounds -- by name, (column, whether the value is the lower bound).
    seldom -- the bound whose own index is followed while it lets few rows through.
    text -- the column that is searched for a text.
    """

    columns: tuple[Any, ...]
    order: tuple[Any, ...]
    facets: Mapping[str, Any]
    leading: Mapping[str, str | None]
    bounds: Mapping[str, tuple[Any, bool]]
    seldom: str | None = None
    text: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows. The values of a facet are alternatives; bounds are exclusive.

    after -- the order's columns of the last row that was seen.
    """

    facets: Mapping[str, Sequence[str]]
    bounds: Mapping[str, int]
    text: str | None = None
    after: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a statement depends on, but for the values: one is compiled for each shape."""

    facets: tuple[tuple[str, int], ...]  # each with the number of its values
    bounds: tuple[str, ...]
    text: bool
    after: bool
    limit: int
    lead: str | None = None


def page(read: Rows, listing: Listing, wanted: Wanted, limit: int) -> Sequence[Sequence[Any]]:
    """Give the first `limit` rows behind `wanted.after`."""
    facets = {name: sorted(set(found)) for name, found in wanted.facets.items()}
    if not all(facets.values()):
        return ()
    shape = _Shape(
        facets=tuple((name, len(found)) for name, found in facets.items()),
        bounds=tuple(wanted.bounds),
        text=bool(wanted.text),
        after=wanted.after is not None,
        limit=limit,
    )
    values: dict[str, Any] = {"text": wanted.text, **wanted.bounds}
    for name, found in [*facets.items(), ("after", wanted.after or ())]:
        values |= {f"{name}_{n}": value for n, value in enumerate(found)}
    lead = _lead(read, listing, shape, values)
    return read(_page(listing, replace(shape, lead=lead)), values)


def _lead(read: Rows, listing: Listing, shape: _Shape, values: Mapping[str, Any]) -> str | None:
    """Choose whose index the page follows; None is that of the order alone."""
    if listing.seldom in shape.bounds and _few(read, listing, values):
        return listing.seldom
    able = [
        (name, count)
        for name, count in shape.facets
        if name in listing.leading
        and count <= MOST_MERGED
        and listing.leading[name] not in [values[f"{name}_{n}"] for n in range(count)]
    ]
    if len(able) <= 1:
        return able[0][0] if able else None
    (found,) = read(_reaches(listing, replace(shape, facets=tuple(able), limit=0)), values)
    reaches = iter(found)
    furthest = {name: max(next(reaches) or -1 for _ in range(count)) for name, count in able}
    return min(furthest, key=lambda name: furthest[name])


def _few(read: Rows, listing: Listing, values: Mapping[str, Any]) -> bool:
    ((count,),) = read(_count(listing), values)
    return int(count) < FEW


@lru_cache(maxsize=16)
def _count(listing: Listing) -> Statement:
    """Count the rows that the seldom bound lets through, up to FEW."""
    seldom = str(listing.seldom)
    some: Any = select(literal_column("1")).where(_bound(listing, seldom, lead=seldom))
    limited = _first(some, [], FEW).subquery()
    return Statement(select(func.count()).select_from(limited))


@lru_cache(maxsize=128)
def _reaches(listing: Listing, shape: _Shape) -> Statement:
    """Tell for each value of each facet where its DEPTH-th newest row stands, or null."""
    first = listing.order[0]
    behind = [first <= bindparam("after_0", type_=first.type)] if shape.after else []
    newest = select(first).where(*behind).order_by(first.desc())
    deep = newest.limit(literal_column("1")).offset(literal_column(str(DEPTH)))
    return Statement(
        select(
            *(
                deep.where(*_is(listing, name, n)).scalar_subquery().label(f"{name}_{n}")
                for name, count in shape.facets
                for n in range(count)
            )
        )
    )


@lru_cache(maxsize=128)  # of hundreds of kilobytes each for who names hundreds of values
def _page(listing: Listing, shape: _Shape) -> Statement:
    if not shape.text:
        return Statement(_ordered(listing, shape, listing.columns), many=True)
    # A text is searched for in the index alone; rows are looked up for what was found.
    found = _ordered(listing, shape, listing.order).subquery()
    same = (found.c[column.name] == column for column in listing.order[1:])
    newest = (found.c[column.name].desc() for column in listing.order)
    whole = select(*listing.columns).join_from(found, listing.order[0].table, and_(*same))
    return Statement(whole.order_by(*newest), many=True)


def _ordered(listing: Listing, shape: _Shape, columns: tuple[Any, ...]) -> Any:  # noqa: ANN401 - a SELECT
    order: list[Any] = [literal_column(column.name).desc() for column in listing.order]
    rest = select(*columns).where(*_conditions(listing, shape))
    values = dict(shape.facets).get(str(shape.lead), 0)
    if values:
        ways = [rest.where(*_is(listing, str(shape.lead), n)) for n in range(values)]
        return _merged([_first(way, order, shape.limit) for way in ways], order, shape.limit)
    order[0] = _shown(listing, listing.order[0], shape.lead).desc()
    return _first(rest, order, shape.limit)


def _merged(ways: list[Any], order: list[Any], limit: int) -> Any:  # noqa: ANN401 - a SELECT
    if len(ways) == 1:
        return ways[0]
    # Each in its order and limit, or PostgreSQL would rather read all and sort.
    return _first(union_all(*(select(way.subquery()) for way in ways)), order, limit)


def _first(asked: Any, order: list[Any], limit: int) -> Any:  # noqa: ANN401 - a SELECT
    # A number that the planner does not see makes a bad plan.
    most: Any = literal_column(str(limit))
    none: Any = literal_column("0")
    return asked.order_by(*order).limit(most).offset(none)


def _is(listing: Listing, name: str, n: int) -> list[ColumnElement[bool]]:
    """Whether a row has a facet's n-th value, said so that the facet's index serves."""
    column, left_out = listing.facets[name], listing.leading[name]
    same = column == bindparam(f"{name}_{n}", type_=String)
    return [same] if left_out is None else [same, column != literal_column(f"'{left_out}'")]


def _conditions(listing: Listing, shape: _Shape) -> list[ColumnElement[bool]]:
    """All that is asked for but the facet that leads, said so that no other index looks useful."""
    found: list[Any] = []
    for name, count in shape.facets:
        if name != shape.lead:
            hidden = listing.facets[name].concat(literal_column("''"))
            among = [bindparam(f"{name}_{n}", type_=String) for n in range(count)]
            found.append(hidden.in_(among))
    found += [_bound(listing, name, shape.lead) for name in shape.bounds]
    if shape.text:
        found.append(Contains(listing.text, bindparam("text", type_=String)))
    if shape.after:
        seen = (bindparam(f"after_{n}", type_=c.type) for n, c in enumerate(listing.order))
        place = [_shown(listing, column, shape.lead) for column in listing.order]
        found.append(tuple_(*place) < tuple_(*seen))
    return found


def _bound(listing: Listing, name: str, lead: str | None) -> Any:  # noqa: ANN401 - an SQL expression
    column, lower = listing.bounds[name]
    value = bindparam(name, type_=BigInteger)
    shown = _shown(listing, column, lead)
    return shown > value if lower else shown < value


def _shown(listing: Listing, column: Any, lead: str | None) -> Any:  # noqa: ANN401 - an SQL expression
    """A column, or what equals it and has no index, so that the planner has no choice."""
    if listing.seldom is None:
        return column
    hidden = listing.order[0] if lead == listing.seldom else listing.bounds[listing.seldom][0]
    return column + literal_column("0") if column is hidden else column
