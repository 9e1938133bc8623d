"""What the clients that submitted jobs are sent: the vendor's callbacks, passed on."""

from collections.abc import Iterable

from sqlalchemy import Connection, select, update

from receiver.database.models import Event, Submission
from receiver.jobs.projection import Forward, JobState
from receiver.openconnectors.shapes import WEBHOOK_ID_HEADER
from receiver.outbound.queue import Message, enqueue


def follow_up(connection: Connection, jobs: Iterable[JobState], now: int) -> None:
    """Enqueue what the clients that submitted jobs are to be sent, in the same transaction."""
    for state in jobs:
        for submission in state.submissions:
            of_instance = Submission.instance == state.instance
            taken = update(Submission).where(Submission.id == submission, of_instance)
            connection.execute(taken.values(state="taken", job=state.id))
        forwards: list[Forward] = []
        for forward in state.forwards:
            forwards += [forward] if forward else _so_far(connection, state)
        messages = [
            Message(
                *("callback", state.client_url or "", forward.body),
                headers=_headers(forward),
                instance=state.instance,
                job=state.id,
            )
            for forward in forwards
        ]
        enqueue(connection, messages, now)


def _so_far(connection: Connection, state: JobState) -> list[Forward]:
    """Return the callbacks that overtook the answer to their own submission."""
    of_job = Event.instance == state.instance, Event.job == state.id, Event.body.is_not(None)
    rows = connection.execute(select(Event.body, Event.webhook_id).where(*of_job).order_by(Event.n))
    return [Forward._make(row) for row in rows]


def _headers(forward: Forward) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    webhook_id = forward.webhook_id or ""
    # No other text can be sent as it came.
    if webhook_id and webhook_id.isascii() and webhook_id.isprintable():
        headers[WEBHOOK_ID_HEADER] = webhook_id
    return headers
