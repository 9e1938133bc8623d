"""What clients are told, through the one queue, whoever hangs, dies or restarts."""

import json
import re
import threading
from collections.abc import Mapping
from itertools import count

import pytest
import servers
from builders import KEY, is_valid
from fakes import between, until
from sqlalchemy import select

from receiver.database.models.outbound import OutboundAttempt, OutboundDelivery
from receiver.lib import safe_http
from receiver.lib.clock import now_ms
from receiver.lib.safe_http import SafeClient
from receiver.openconnectors.shapes import read_retry_after
from receiver.openconnectors.signatures import HEADER
from receiver.outbound import queue
from receiver.outbound.mail import Mailer
from receiver.outbound.queue import LEASE_MS, PAUSES_SECONDS, Message
from receiver.outbound.sender import Outgoing, Sender, Signer
from receiver.settings import Settings

CALLBACK = "Elements-Async-Callback-Url"
ALLOWED = {"forward_allow": frozenset({"127.0.0.1", "127.0.0.2"})}
START = 1_700_000_000_000


@pytest.fixture
def client():
    with servers.client() as made:
        yield made


def deliveries(relay) -> list[tuple[int, str, bool]]:
    with relay.services.database.read() as session:
        rows = session.scalars(select(OutboundDelivery).order_by(OutboundDelivery.id))
        return [(row.tries, row.state, row.next_at is None) for row in rows]


def attempts(relay) -> list[tuple[int | None, str | None, bytes]]:
    with relay.services.database.read() as session:
        rows = session.scalars(select(OutboundAttempt).order_by(OutboundAttempt.id))
        return [(row.status, row.error, row.answer) for row in rows]


# --- clients' own callback URLs


def test_the_clients_own_url_is_called_after_us_signed(make_database, client):
    with between(make_database("sqlite"), **ALLOWED) as relay:
        relay.ended(relay.uploaded(headers={CALLBACK: client.url}))
        sent = relay.sandbox.stage.deliveries.listing({})
        assert [each["url"] for each in sent] == [f"{relay.url}/callbacks/gooddata"]
        assert client.posted == []  # us first
        assert relay.sender().drain() is True
        ((body, headers),) = client.posted
        assert body.decode() == sent[0]["body"]
        assert is_valid(body, headers[HEADER.lower()], [KEY])
        assert headers["content-type"] == "application/json"
        assert headers["elements-webhook-id"] == sent[0]["webhookId"]
        relay.sender().drain()
        assert deliveries(relay) == [(1, "delivered", True)]
        assert attempts(relay) == [(200, None, b"")]


def test_a_client_is_called_though_the_callback_overtook_the_answer(make_database, client):
    with between(make_database("sqlite"), **ALLOWED) as relay:
        relay.faults(overtake=True, duplicate_callbacks=2)
        relay.uploaded(headers={CALLBACK: client.url})
        relay.sender().drain()
        ((body, headers),) = client.posted
        assert json.loads(body)["status"] == "COMPLETED"
        assert len(headers["elements-webhook-id"]) == 32


def test_a_webhook_id_that_no_header_can_hold_is_not_sent_on(make_database, client):
    with between(make_database("sqlite"), **ALLOWED) as relay:
        relay.faults(drop_callbacks=True)
        job_id = relay.uploaded(headers={CALLBACK: client.url})
        body = json.dumps({"id": job_id, "status": "COMPLETED"}).encode()
        relay.call_back(body, "gooddata", **{"Elements-Webhook-Id": "w\xf6rd"})
        assert relay.sender().drain() is True
        ((_, headers),) = client.posted
        assert "elements-webhook-id" not in headers


def test_a_client_is_told_what_was_learnt_by_polling(make_database, client):
    with between(make_database("sqlite"), **ALLOWED) as relay:
        relay.faults(drop_callbacks=True)
        payload = {"metaData": '{"callback-payload": [1]}'}
        job_id = relay.uploaded(headers={CALLBACK: client.url}, data=payload)
        relay.ended_at_vendor(job_id)
        relay.reconciler().one_pass(everything=True)
        assert relay.sender().drain() is True
        ((body, headers),) = client.posted
        told = json.loads(body)
        assert (told["id"], told["status"], told["recordsCount"]) == (job_id, "COMPLETED", 2)
        assert is_valid(body, headers[HEADER.lower()], [KEY])


def test_a_downloads_own_notification_url_is_called_after_us(make_database, client):
    with between(make_database("sqlite"), **ALLOWED) as relay:
        wanted = {"objectName": "contact", "notificationUrl": client.url}
        relay.ended(relay.vendors("POST", "/bulk/download", json=wanted).json()["id"])
        assert relay.sender().drain() is True
        assert len(client.posted) == 1


def test_a_name_that_turned_private_ends_it(make_database, monkeypatch):
    with between(make_database("sqlite")) as relay:
        relay.ended(relay.uploaded(headers={CALLBACK: "https://hooks.example.com/"}))
        inward = [(2, 1, 6, "", ("10.0.0.1", 443))]
        with monkeypatch.context() as patched:
            patched.setattr(safe_http.socket, "getaddrinfo", lambda *_, **__: inward)
            assert relay.sender().drain() is False
        assert deliveries(relay) == [(1, "failed", True)]
        ((_, error, _),) = attempts(relay)
        assert "not public" in str(error)


# --- the queue


class Queue:
    """A queue on a database of its own, filled and sent by the test. Its clock stands still."""

    def __init__(self, receiver) -> None:
        self.services = receiver.services
        self.now, self.numbers = START, count()

    def add(self, *messages: Message) -> None:
        with self.services.database.write() as session:
            queue.enqueue(session.connection(), messages, self.now)

    def message(self, target: str, **facts: object) -> Message:
        number = next(self.numbers)
        return Message("callback", target, b"%d" % number, **{"webhook_id": f"m{number}", **facts})

    def sender(self, signers: Mapping[str, Signer] | None = None) -> Sender:
        http = SafeClient(frozenset({"127.0.0.1", "127.0.0.2", "localhost"}))
        signers = signers or {"callback": lambda message, _: Outgoing(message.body)}
        return Sender(self.services.database, http, Mailer(Settings()), signers, lambda: self.now)

    def rows(self) -> list[OutboundDelivery]:
        with self.services.database.read() as session:
            rows = session.scalars(select(OutboundDelivery).order_by(OutboundDelivery.id)).all()
            session.expunge_all()
            return list(rows)


@pytest.fixture
def made(make_receiver, make_database):
    return Queue(make_receiver(make_database("sqlite")))


def test_a_client_that_fails_is_called_again_after_growing_pauses_by_any_process(made, client):
    client.statuses = [500, 302, 404, 503, 429, 400, 500, 500]
    made.add(made.message(client.url))
    assert made.sender().drain() is False
    for number, pause in enumerate(PAUSES_SECONDS, 1):
        (row,) = made.rows()
        assert (row.tries, row.state, len(client.posted)) == (number, "waiting", number)
        assert 1000 * pause <= row.next_at - made.now <= 1100 * pause
        made.now = row.next_at - 1
        made.sender().drain()  # a new one each time: nothing is in memory
        assert len(client.posted) == number
        made.now += 1
        made.sender().drain()
    (row,) = made.rows()
    assert (row.tries, row.state, row.next_at) == (8, "failed", None)
    made.now += 10**10
    made.sender().drain()
    assert len(client.posted) == 8
    assert len({body for body, _ in client.posted}) == 1


def test_each_attempt_is_on_record(any_receiver, client):
    made = Queue(any_receiver)
    client.statuses, client.answer = [500], b"no: " + 5_000 * b"x"
    made.add(made.message(client.url))
    made.now = 10**14  # PostgreSQL goes by its own
    with any_receiver.services.database.write() as session:
        session.execute(OutboundDelivery.__table__.update().values(next_at=1))
    made.sender().drain()
    ((status, error, answer),) = attempts(any_receiver)
    assert (status, error, answer[:4], len(answer)) == (500, None, b"no: ", 1024)


def test_a_client_that_is_gone_is_not_called_again(made, client):
    client.statuses = [410]
    made.add(made.message(client.url))
    made.sender().drain()
    assert [(row.state, row.next_at) for row in made.rows()] == [("failed", None)]


def test_a_client_that_asks_for_time_gets_it(made, client):
    client.statuses, client.headers = [503, 503], {"Retry-After": "600"}
    made.add(made.message(client.url))
    made.sender().drain()
    (row,) = made.rows()
    assert 600_000 <= row.next_at - made.now <= 660_000
    client.headers = {"Retry-After": "99999999999999"}
    made.now = row.next_at
    made.sender().drain()
    (row,) = made.rows()
    assert row.next_at - made.now <= 1100 * PAUSES_SECONDS[-1]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", None),
        ("120", 120),
        ("-1", None),
        ("1e3", None),
        ("soon", None),
        ("\u0661\u0662", None),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 61),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0),
        ("Tue, 14 Nov 99999 22:00:00 GMT", None),
        (18 * "9", 3600),
        (1_000_000 * "9", None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date(header, seconds):
    assert read_retry_after(header, START / 1000) == seconds


def test_a_process_that_died_while_sending_leaves_it_to_another(made, client, monkeypatch):
    made.add(made.message(client.url))
    with monkeypatch.context() as dying:
        dying.setattr(Sender, "_run", lambda *_: None)
        made.sender().step()
    assert [(row.tries, row.state) for row in made.rows()] == [(1, "waiting")]
    made.sender().drain()
    assert client.posted == []
    made.now += LEASE_MS
    made.sender().drain()
    assert [(row.tries, row.state) for row in made.rows()] == [(2, "delivered")]
    assert len(client.posted) == 1


def test_what_was_sent_and_is_not_recorded_is_sent_again_after_its_lease(made, client):
    made.add(made.message(client.url))
    slow = made.sender()
    slow.step()
    until(lambda: client.posted)
    made.sender().drain()
    assert len(client.posted) == 1
    made.now += LEASE_MS
    made.sender().drain()
    assert [body for body, _ in client.posted] == [b"0", b"0"]
    slow.drain()  # too late: another has recorded it
    assert [(row.tries, row.state) for row in made.rows()] == [(2, "delivered")]
    assert attempts(made) == [(200, None, b"")]


def test_what_ended_is_recorded_at_the_next_step_and_as_the_process_ends(made, client):
    of_job = {"subscription": "crm", "instance": "a", "job": "1"}
    made.add(*(made.message(client.url, **of_job) for _ in range(2)), made.message(client.url))
    sender = made.sender()
    sender.step()
    until(lambda: len(client.posted) == 2)
    assert attempts(made) == []
    until(lambda: sender.step(begin=False) or len(attempts(made)) == 2)
    assert sorted(body for body, _ in client.posted) == [b"0", b"2"]
    sender.step()
    until(lambda: len(client.posted) == 3)
    assert len(attempts(made)) == 2
    until(lambda: sender.step(begin=False) or len(attempts(made)) == 3)
    assert [row.state for row in made.rows()] == 3 * ["delivered"]


def test_of_many_processes_one_sends_each(make_receiver, database_url, client):
    made = Queue(make_receiver(database_url))
    made.now = 1
    made.add(*(made.message(client.url) for _ in range(40)))
    at_once = threading.Barrier(4)
    senders = [made.sender() for _ in range(4)]

    def work(sender: Sender) -> None:
        at_once.wait(60)
        sender.drain()

    threads = [threading.Thread(target=work, args=(sender,)) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    until(lambda: all(row.state == "delivered" for row in made.rows()))
    assert sorted(int(body) for body, _ in client.posted) == list(range(40))


def test_a_message_that_is_there_already_is_the_same(made, client):
    for _ in range(2):
        made.add(made.message(client.url, webhook_id="msg_1"))
    made.sender().drain()
    assert len(client.posted) == 1


def test_one_that_hangs_holds_up_nobody_else(made, client, monkeypatch):
    """And of those that wait for it, few hold a connection at a time."""
    monkeypatch.setattr(safe_http, "ATTEMPT_SECONDS", 600.0)
    with servers.odd(servers.hang) as dead:
        made.add(*(made.message(dead.url) for _ in range(1_000)))
        made.now += 1
        made.add(*(made.message(client.url.replace("127.0.0.1", "localhost")) for _ in range(30)))
        sender = made.sender()

        def sent() -> bool:
            sender.step()
            return len(client.posted) == 30

        until(sent)
        assert dead.begun == queue.MAX_PER_HOST
    until(lambda: sender.step(begin=False) or not sender._busy)


@pytest.mark.parametrize("behave", [servers.drip_head, servers.reset, servers.endless_body])
def test_what_a_bad_target_does_is_on_record(make_receiver, make_database, monkeypatch, behave):
    if behave is servers.drip_head:
        monkeypatch.setattr(safe_http, "ATTEMPT_SECONDS", 1.0)
    receiver = make_receiver(make_database("sqlite"))
    made = Queue(receiver)
    with servers.odd(behave) as server:
        made.add(made.message(server.url))
        made.sender().drain()
    ((status, error, answer),) = attempts(receiver)
    if behave is servers.endless_body:
        assert (status, error, len(answer)) == (200, None, 1024)
    else:
        assert status is None
        assert re.match("no answer within 1 s|the connection failed|.* not HTTP", error)


def test_messages_of_one_job_to_one_subscription_are_sent_one_after_the_other(made, client):
    client.statuses = [500]
    of_job = {"subscription": "crm", "instance": "a", "job": "1"}
    made.add(*(made.message(client.url, **of_job) for _ in range(3)))
    made.sender().drain()
    for other in ("subscription", "instance", "job"):
        made.add(made.message(client.url, **{**of_job, other: "another"}))
    made.add(made.message(client.url))
    made.sender().drain()
    assert sorted(int(body) for body, _ in client.posted) == [0, 3, 4, 5, 6]
    made.now += 6_000
    made.sender().drain()
    assert [int(body) for body, _ in client.posted][5:] == [0, 1, 2]


def test_a_node_whose_clock_is_wrong_signs_by_the_databases(make_receiver, make_database, client):
    made, signed = Queue(make_receiver(make_database("postgresql18"))), []
    made.add(made.message(client.url))

    def sign(message: Message, now: int) -> Outgoing:
        signed.append(now)
        return Outgoing(message.body)

    made.now = now_ms() + 3_600_000
    sender = made.sender({"callback": sign})
    sender.drain()
    assert len(client.posted) == 1
    assert abs(signed[0] - now_ms()) < 1_800_000


def test_a_clock_that_was_ahead_for_a_moment_holds_nothing_up(made, client):
    client.statuses = [500]
    made.now += 401 * 86_400_000
    made.add(made.message(client.url))
    made.sender().drain()
    made.now = START
    made.sender().drain()
    assert len(client.posted) == 2


def test_other_kinds_are_left_to_those_who_send_them(made, client):
    made.add(Message("subscription", client.url, b"", "m"))
    made.sender().drain()
    assert [(row.tries, client.posted) for row in made.rows()] == [(0, [])]
