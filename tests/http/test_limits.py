"""Who asks too often, or with too many wrong tokens, is told to wait; callbacks never are."""

import json

import pytest
from builders import Clock, Receiver
from hypothesis import given
from hypothesis import strategies as st

from receiver.instances import tokens
from receiver.lib import ratelimit as limits
from receiver.lib.ratelimit import Limiter, client_address, network_of

pytestmark = pytest.mark.usefixtures("no_time_passes")
WRONG = "rcv_wrong"


def test_as_many_as_the_limit_pass_at_once_and_then_one_by_one():
    clock = Clock(1000.0)
    limiter = Limiter(60, clock)
    assert [limiter.wait("a") for _ in range(99)] == [0] * 99  # which counts for nothing
    assert [limiter.take("a") for _ in range(60)] == [0] * 60
    assert limiter.take("b") == 0  # one name does not use up another's
    assert limiter.wait("a") == limiter.take("a") == pytest.approx(1)
    clock.now += 1.0001
    assert limiter.take("a") == 0
    assert limiter.take("a") > 0
    clock.now += 60
    assert [limiter.take("a") for _ in range(60)] == [0] * 60


@given(st.integers(1, 100), st.lists(st.floats(0, 30), max_size=50))
def test_in_no_minute_more_than_twice_the_limit_pass(limit, pauses):
    clock = Clock(1000.0)
    limiter, taken = Limiter(limit, clock), []
    for pause in pauses:
        clock.now += pause
        while limiter.take("a") == 0:
            taken.append(clock.now)
    for start in taken:
        assert len([at for at in taken if start <= at < start + 60]) <= 2 * limit
    if pauses:
        assert len(taken) >= limit


@given(st.integers(1, 100), st.integers(1, 50))
def test_who_waits_as_long_as_it_is_told_is_taken(limit, times):
    clock = Clock(1000.0)
    limiter = Limiter(limit, clock)
    for _ in range(limit + times):
        wait = limiter.take("a")
        clock.now += wait + 1e-6
        assert not wait or limiter.take("a") == 0


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(limits, "MAX_NAMES", 100)
    clock = Clock(1000.0)
    limiter = Limiter(1, clock)
    for number in range(1000):
        limiter.take(str(number))
        assert len(limiter._paid) <= 100
    assert limiter.take("999") > 0
    clock.now += 1000
    limiter.take("x")
    for number in range(99):
        limiter.take(f"new {number}")
    assert limiter.take("x") > 0  # old ones made room, not it


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("::1", "::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::1234", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "unknown"),
        ("unix:", "unknown"),
    ],
)
def test_addresses_are_counted_by_who_owns_them(peer, network):
    assert network_of(peer) == network


@pytest.mark.parametrize(
    ("forwarded", "address"),
    {
        "203.0.113.9": "203.0.113.9",
        "203.0.113.9:51008": "203.0.113.9",
        "[2001:db8::1]:51008": "2001:db8::1",
        "[2001:db8::1]": "2001:db8::1",
        "2001:db8::1": "2001:db8::1",
        "::ffff:203.0.113.9": "203.0.113.9",
        "[::ffff:203.0.113.9]:80": "203.0.113.9",
        "198.51.100.1, 203.0.113.9 ": "203.0.113.9",
        "203.0.113.9,": "192.0.2.7",
        "unknown": "192.0.2.7",
        "_hidden": "192.0.2.7",
        "203.0.113.9:port": "192.0.2.7",
        "203.0.113.999": "192.0.2.7",
        "[": "192.0.2.7",
        "": "192.0.2.7",
        None: "192.0.2.7",
    }.items(),
)
def test_the_address_is_the_one_that_the_last_proxy_names_or_the_sockets(forwarded, address):
    assert client_address("192.0.2.7", forwarded, 1) == address
    assert client_address("::ffff:192.0.2.7", forwarded, 0) == "192.0.2.7"
    assert client_address("192.0.2.7", forwarded, 3) == "192.0.2.7"


def test_of_two_proxies_the_first_one_names_the_address():
    named = "6.6.6.6, 203.0.113.9:80, 198.51.100.1"
    assert client_address("192.0.2.7", named, 2) == "203.0.113.9"


# --- over HTTP


def refused(answer) -> None:
    assert answer.status_code == 429
    assert answer.mimetype == "application/problem+json"
    assert answer.json["code"] == "rate_limited"
    assert 1 <= int(answer.headers["Retry-After"]) <= 61


def test_a_token_that_asks_too_often_is_told_to_wait_and_others_are_not(
    make_receiver, make_database
):
    receiver: Receiver = make_receiver(make_database("sqlite"), api_rate=5)
    with receiver.services.database.write() as session:
        other = tokens.create_token(session, "other", "read", 1)
    answers = [receiver.get("/jobs") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    refused(answers[5])
    assert receiver.get("/jobs", token=other).status_code == 200
    relayed = receiver.client.get(
        "/elements/api-v2/objects",
        headers={"Authorization": f"Element default, User {receiver.token}"},
    )
    assert (relayed.status_code, set(relayed.json)) == (429, {"requestId", "message"})
    assert int(relayed.headers["Retry-After"]) >= 1


def test_callbacks_health_and_metrics_go_on_while_the_api_is_refused(make_receiver, make_database):
    receiver: Receiver = make_receiver(
        make_database("sqlite"), api_rate=1, failed_tokens_a_minute=1
    )
    receiver.get("/jobs")
    receiver.get("/jobs", token=WRONG)
    refused(receiver.get("/jobs"))
    for number in range(20):
        body = json.dumps({"id": number, "status": "COMPLETED"}).encode()
        assert receiver.call_back(body).status_code == 200
    for path in ("/healthz", "/readyz", "/metrics", "/api/v1/openapi.json"):
        assert receiver.client.get(path).status_code == 200
    assert b'receiver_throttled_total{what="address"}' in receiver.client.get("/metrics").data


def test_an_address_with_too_many_wrong_tokens_is_not_listened_to(make_receiver, make_database):
    receiver: Receiver = make_receiver(make_database("sqlite"), failed_tokens_a_minute=3)
    assert [receiver.get("/jobs", token=WRONG).status_code for _ in range(4)] == [401] * 3 + [429]
    # Nor with a right one: or guessing would go on.
    refused(receiver.get("/jobs"))
    elsewhere = receiver.client.get(
        "/api/v1/jobs",
        headers={"Authorization": f"Bearer {receiver.token}"},
        environ_base={"REMOTE_ADDR": "192.0.2.9"},
    )
    assert elsewhere.status_code == 200


def test_wrong_tokens_at_the_vendors_paths_count_too(make_receiver, make_database):
    receiver: Receiver = make_receiver(make_database("sqlite"), failed_tokens_a_minute=2)
    wrong = {"Authorization": f"Element default, User {WRONG}"}
    answers = [receiver.client.get("/elements/api-v2/objects", headers=wrong) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [401, 401, 429]
    refused(receiver.get("/jobs"))


def test_requests_without_any_token_are_not_taken_for_guesses(make_receiver, make_database):
    receiver: Receiver = make_receiver(make_database("sqlite"), failed_tokens_a_minute=1)
    assert {receiver.client.get("/api/v1/jobs").status_code for _ in range(5)} == {401}
    assert receiver.get("/jobs").status_code == 200


@pytest.mark.parametrize("mine", ["203.0.113.9:51008", "::ffff:203.0.113.9", "[2001:db8::1]:9"])
def test_wrong_tokens_behind_a_proxy_cost_nobody_else_theirs(make_receiver, make_database, mine):
    settings = {"failed_tokens_a_minute": 1, "trusted_proxies": 1}
    receiver: Receiver = make_receiver(make_database("sqlite"), **settings)
    for _ in range(3):
        receiver.get("/jobs", token=WRONG, **{"X-Forwarded-For": mine})
    refused(receiver.get("/jobs", **{"X-Forwarded-For": mine}))
    for other in ("203.0.113.10:51008", "::ffff:203.0.113.10", "[2001:db8:0:1::1]", "odd"):
        assert receiver.get("/jobs", **{"X-Forwarded-For": other}).status_code == 200
