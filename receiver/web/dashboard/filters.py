"""The filter bar: the API's filters, read from the URL and written back into it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import msgspec
from flask import request
from msgspec import UNSET

from receiver.errors import BadParameter
from receiver.jobs import queries
from receiver.jobs.queries import Show
from receiver.lib.clock import iso
from receiver.web import schemas as shapes
from receiver.web import services
from receiver.web.api import job_filters
from receiver.web.auth import current_bearer, require_instance
from receiver.web.http import read_time

TIMES = {
    "updated_after": "Changed after",
    "updated_before": "Changed before",
    "expires_before": "Files expire before",
}
A_PAGE = 25
REPEATED = ("outcome", "status", "instance", "object", "direction")
# What the front page counts and the API has no filter for.
SHOWS: Mapping[Show, str] = {
    "overdue": "overdue",
    "expiring": "files expire within a day",
    "lost": "callback lost, learnt by poll",
}


@dataclass(frozen=True, slots=True)
class Chip:
    """One filter that is set: what it says, and the page without it."""

    name: str
    value: str
    without: str


@dataclass(frozen=True, slots=True)
class Filters:
    """What was asked for. query -- as in the API. show -- one of SHOWS, or None."""

    query: shapes.JobsQuery
    show: Show | None = None
    pairs: Sequence[tuple[str, str]] = field(default_factory=list)

    def wanted(self) -> queries.Filters:
        """Say it as the store is asked."""
        return msgspec.structs.replace(
            job_filters(self.query, current_bearer()),
            show=self.show,
            now=services().clock(),
            overdue_after=services().settings.overdue_after,
        )

    def values(self, name: str) -> list[str]:
        """What a filter is set to."""
        return [value for key, value in self.pairs if key == name]

    def field_of(self, name: str) -> str:
        """Write a time filter for an input of the type datetime-local, which knows no zone."""
        value = getattr(self.query, name, UNSET)
        return "" if value is UNSET else str(iso(read_time(value)))[:16]

    @property
    def is_detailed(self) -> bool:
        """Whether a filter is set that the bar shows only when asked."""
        return any(name in TIMES for name, _ in self.pairs)

    @property
    def is_set(self) -> bool:
        """Whether there is any filter."""
        return any(name != "limit" for name, _ in self.pairs)

    def chips(self) -> list[Chip]:
        """Each filter that is set, with the way to take it back."""
        return [
            Chip(name, value, self.url(drop=(name, value)))
            for name, value in self.pairs
            if name != "limit"
        ]

    def url(self, path: str = "/jobs", drop: tuple[str, str] | None = None, **more: str) -> str:
        """Give the URL of the same filters; drop -- one to leave out. more -- to be added."""
        pairs = [pair for pair in self.pairs if pair != drop] + list(more.items())
        return f"{path}?{urlencode(pairs)}" if pairs else path


def asked() -> Filters:
    """Read the filters of this request; what is left empty in a form is not set.

    Raises BadParameter.
    """
    pairs = [(name, value) for name, value in request.args.items(multi=True) if value]
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in REPEATED:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise BadParameter(f"{name} can be given once")
        else:
            given[name] = value
    show = given.pop("show", None)
    given.pop("newer", None)
    if show not in (None, *SHOWS):
        raise BadParameter(f"show is one of {', '.join(SHOWS)}")
    try:
        query = msgspec.convert({"limit": A_PAGE, **given}, shapes.JobsQuery, strict=False)
    except msgspec.ValidationError as error:
        raise BadParameter(str(error)) from None
    require_instance(current_bearer(), query.instance)
    kept = [pair for pair in pairs if pair[0] not in ("cursor", "newer")]
    return Filters(query, show, kept)
