"""Lists: pages give each row once and in order, whatever is asked, and follow an index."""

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, text

from receiver.database import migrations
from receiver.database.engine import Database
from receiver.database.models import Facet, JobRow, UsualTime
from receiver.jobs import job as law
from receiver.jobs.queries import MAX_FACET_TEXT, Filters, list_jobs, place_of
from receiver.lib.clock import DAY_MS
from receiver.openconnectors.notifications import Notification

EXAMPLES = int(os.environ.get("PAGES", "60"))
NOW = 1_000_000_000
OVERDUE_AFTER = 20
LONG = "x" * 300
WORDS: Mapping[str, Sequence[str | None]] = {
    "instance": ["a", "b", "c", "rare"],
    "status": [None, "COMPLETED", "ERROR", LONG],
    "outcome": ["succeeded", "failed", "unknown", "pending"],
    "object": [None, "contact", "lead"],
    "direction": [None, "UPLOAD", "DOWNLOAD"],
}
NAMES = {name: f"{name}s" if name != "status" else "statuses" for name in WORDS}
ROWS = 1_000


def uneven(chance: random.Random, number: int) -> dict[str, Any]:
    return {name: chance.choice(words) for name, words in WORDS.items()}


def skewed(chance: random.Random, number: int) -> dict[str, Any]:
    """Nine tenths of one instance, and one outcome of all but one in a thousand."""
    usual = {"instance": "a", "status": "COMPLETED", "object": "contact", "direction": "UPLOAD"}
    instance = "a" if number % 10 else chance.choice(["b", "c", "rare"])
    outcome = "failed" if number == ROWS - 7 else "succeeded"
    return {**usual, "instance": instance, "outcome": outcome}


def rows_of(mixture: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """Several changes in each millisecond; ids that other instances have too."""
    chance = random.Random(7)
    rows = []
    for number in range(ROWS):
        rows.append(
            {
                **mixture(chance, number),
                "id": f"{number * 7919 % 900:03}" + "-z" * (number > 900),
                "callback_lost": chance.random() < 0.2,
                "other": chance.random() < 0.1,
                "updated_at": chance.randrange(200),
                "first_seen_at": NOW - chance.randrange(40),
                "files_expire_at": chance.choice(
                    [None, chance.randrange(300), NOW + chance.randrange(-5, 30)]
                ),
            }
        )
    return rows


def usual(row: Mapping[str, Any]) -> int:
    known = None if row["other"] else row["object"]
    return 30 if (row["instance"], known) == ("a", "contact") else OVERDUE_AFTER


def fill(database: Database, rows: Sequence[dict[str, Any]]) -> None:
    """Write jobs as the store does, with facets that stand for one tuple or for all others."""
    facets: dict[tuple[Any, ...], int] = {}
    jobs = []
    for row in rows:
        words = ["status", "object", "direction"]
        tuple_ = [row[name] and row[name][:MAX_FACET_TEXT] for name in words]
        if row["other"]:
            tuple_ = [None] * 3
        place = (row["instance"], row["outcome"], row["callback_lost"], row["other"], *tuple_)
        facet = facets.setdefault(place, (len(facets) + 1) * 7919 - 2**63)
        told = Notification(
            "bulk_job", row["id"], row["status"], object=row["object"], direction=row["direction"]
        )
        registers = law.registers(told, 1)
        if row["status"] is None:
            del registers["status"]
        own = ("id", "instance", "updated_at", "first_seen_at", "files_expire_at")
        jobs.append(
            {name: row[name] for name in own}
            | {"facet": facet, "revision": 1, "events": 1, "callback_due": True}
            | {"under_way": row["outcome"] in ("pending", "unknown")}
            | {"registers": json.dumps(registers)}
        )
    names = ("instance", "outcome", "callback_lost", "other", "status", "object", "direction")
    with database.write() as session:
        numbered = [
            dict(zip(names, place, strict=True)) | {"facet": n} for place, n in facets.items()
        ]
        session.execute(insert(Facet), numbered)
        session.execute(insert(JobRow), jobs)
        session.add(UsualTime(instance="a", object="contact", ms=30))


@pytest.fixture(scope="module", params=["uneven", "skewed"])
def rows(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rows_of({"uneven": uneven, "skewed": skewed}[request.param])


@pytest.fixture
def filled(rows, database_url) -> Iterator[Database]:
    database = Database(database_url)
    fill(database, rows)
    yield database
    database.close()


def some(name: str) -> st.SearchStrategy[list[str]]:
    words = [word for word in WORDS[name] if word is not None]
    return st.just([]) | st.lists(st.sampled_from([*words, "none such"]), max_size=4)


filters = st.builds(
    Filters,
    **{plural: some(name) for name, plural in NAMES.items()},
    updated_after=st.none() | st.integers(0, 200),
    updated_before=st.none() | st.integers(0, 200),
    expires_before=st.none() | st.integers(0, 300) | st.integers(NOW - 9, NOW + 40),
    text=st.none() | st.sampled_from(["1", "00", "119", "x", "-"]),
    show=st.sampled_from([None, None, None, "overdue", "expiring", "lost"]),
    now=st.just(NOW),
    overdue_after=st.just(OVERDUE_AFTER),
    visible=st.none() | st.frozensets(st.sampled_from(["a", "b", "rare", "z"])),
)


def fits(row: Mapping[str, Any], wanted: Filters) -> bool:
    after, before, expiry = wanted.updated_after, wanted.updated_before, wanted.expires_before
    expires = row["files_expire_at"]
    under_way = row["outcome"] in ("pending", "unknown")
    return (
        all(
            not getattr(wanted, plural) or row[name] in getattr(wanted, plural)
            for name, plural in NAMES.items()
        )
        and (wanted.visible is None or row["instance"] in wanted.visible)
        and (after is None or row["updated_at"] > after)
        and (before is None or row["updated_at"] < before)
        and (expiry is None or (expires is not None and expires < expiry))
        and (wanted.text or "") in row["id"]
        and {
            None: True,
            "lost": row["callback_lost"],
            "expiring": expires is not None and NOW < expires < NOW + DAY_MS,
            "overdue": under_way and row["first_seen_at"] + usual(row) <= NOW,
        }[wanted.show]
    )


def in_order(rows: Sequence[dict[str, Any]], wanted: Filters) -> list[tuple[int, str, str]]:
    time = {"overdue": "first_seen_at", "expiring": "files_expire_at"}.get(
        wanted.show or "", "updated_at"
    )
    places = [(row[time], row["instance"], row["id"]) for row in rows if fits(row, wanted)]
    return sorted(places, reverse=time == "updated_at")


@given(wanted=filters, limit=st.integers(1, 70), few=st.sampled_from([5, 1_000]))
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_pages_give_each_job_that_fits_once_and_in_order_both_ways(
    filled, rows, wanted, limit, few
):
    expected = in_order(rows, wanted)
    limit = max(limit, len(expected) // 15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("receiver.jobs.queries.FEW", few)
        seen: list[tuple[int, str, str]] = []
        while True:
            page = list_jobs(filled, wanted, limit, seen[-1] if seen else None)
            assert (
                all(record.is_overdue(NOW, OVERDUE_AFTER) for record in page)
                or wanted.show != "overdue"
            )
            seen += [place_of(record, wanted.show) for record in page]
            if len(page) < limit:
                break
        assert seen == expected
        back: list[tuple[int, str, str]] = []
        last = seen[-1:]
        while last:
            page = list_jobs(filled, wanted, limit, before=last[0])
            back = [place_of(record, wanted.show) for record in page] + back
            last = back[:1] if len(page) == limit else []
        assert back == expected[:-1]
