"""What the pages ask of the store, within what the token reaches."""

from collections.abc import Sequence
from typing import Any

from receiver.jobs import lists, queries, watching
from receiver.jobs.queries import EventFilter, JobFilter, RejectionFilter
from receiver.jobs.watching import Place, Watch
from receiver.web import services
from receiver.web.auth import current_bearer


def jobs(wanted: JobFilter, watch: Watch | None, limit: int, after: Place | None) -> Sequence[Any]:
    """Give jobs, newest change first, from behind `after`."""
    read, visible = services().database.rows, current_bearer().instances
    if watch is None:
        return lists.jobs(read, wanted, visible, limit, after)
    return watching.watched(read, watch, wanted, visible, limit=limit, after=after)


def newer_jobs(wanted: JobFilter, watch: Watch | None, limit: int, before: Place) -> Sequence[Any]:
    """Give the jobs that changed next after `before`, newest change first."""
    with services().database.read() as session:
        return watching.newer(
            session, watch, wanted, current_bearer().instances, limit=limit, before=before
        )


def called(id_: str, instance: str | None) -> Sequence[Any]:
    """Give the jobs of that id."""
    return lists.jobs_called(services().database.rows, id_, instance, current_bearer().instances)


def events(wanted: EventFilter, limit: int, after: tuple[int, str] | None) -> Sequence[Any]:
    """Give events, newest first, from behind (received_at, id) `after`."""
    return lists.events(services().database.rows, wanted, current_bearer().instances, limit, after)


def event(id_: str) -> tuple[Any, bytes | None]:
    """Give an event and its body; None for what is not there."""
    found = lists.event(services().database.rows, id_, current_bearer().instances)
    if found is None:
        return None, None
    with services().database.read() as session:
        return found, queries.body(session, found.id)


def rejections(wanted: RejectionFilter, limit: int, after: tuple[int, int] | None) -> Sequence[Any]:
    """Give quarantined deliveries, newest first, from behind (at, id) `after`."""
    return lists.rejections(
        services().database.rows, wanted, current_bearer().instances, limit, after
    )
