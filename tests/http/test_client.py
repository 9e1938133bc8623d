"""The Python client, sync and async: the same calls, the same answers, the same errors."""

import io
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import httpx
import msgspec
import pytest
from fakes import BAD_ROWS, ROWS, between
from nodes import outcome_of
from processes import own_environment

import receiver.client
from receiver.client import AsyncClient, Callback, Client, Job, Records, flows
from receiver.client.stream import EventStream

PAGE = Path(__file__).parents[2] / "docs/client.md"


@pytest.fixture(scope="module")
def served(tmp_path_factory, migrated_file):
    """A receiver that listens, between the client and a simulator of the vendor."""
    file = tmp_path_factory.mktemp("served") / "receiver.db"
    file.write_bytes(migrated_file.read_bytes())
    with between(f"sqlite:///{file}") as receiver:
        yield receiver


@pytest.fixture(params=["sync", "async"])
def call(request, served):
    """Call a method of a client: call(name, …, url=, token=)."""

    def sync(name, /, *words, url=served.url, token=served.token, **named):
        with Client(url, token) as client:
            return getattr(client, name)(*words, **named)

    def run(name, /, *words, url=served.url, token=served.token, **named):
        async def ask():
            async with AsyncClient(url, token) as client:
                return await getattr(client, name)(*words, **named)

        return outcome_of(ask())

    return {"sync": sync, "async": run}[request.param]


def test_a_file_is_uploaded_waited_for_and_read(call, served, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_bytes(BAD_ROWS)
    contact = {"object": "contact", "instance": "gooddata"}
    seen = []
    created = call("submit", bad, **contact)
    job = call("wait", created, on_change=lambda job: seen.append(job.status))
    assert (job.id, job.ended, job.outcome, job.file) == (created.id, True, "partial", "/bad.csv")
    assert (job.records.submitted, job.records.failed, seen[-1]) == (4, 2, "COMPLETED")
    # As the API says it, whole.
    assert msgspec.to_builtins(call("job", job)) == served.job(job.id)
    served.reconciler().fetch_errors()
    failed = call("errors", job.id, instance="gooddata")
    assert [entry["row"] for entry in failed.errors] == [3, 4]
    assert sum(group.count for group in failed.groups) == 2
    with pytest.raises(receiver.client.NotSucceeded, match="2 of 4 records failed") as error:
        job.raise_for_outcome()
    assert error.value.job == job
    first = call("jobs", instance=["gooddata"], limit=1)
    assert first.jobs[0].id == job.id

    call("wait", call("submit", io.BytesIO(ROWS), name="all.csv", **contact)).raise_for_outcome()
    download = call("wait", call("download", **contact))
    file = io.BytesIO()
    call("result", download, file)
    assert b"email" in file.getvalue()


def test_each_error_says_what_to_do(call, served):
    contact = {"object": "contact", "instance": "gooddata"}
    cases = {
        "CredentialsRejected": ("jobs", (), {"token": "unknown"}, "token"),
        "Unreachable": ("jobs", (), {"url": "http://127.0.0.1:1"}, "is the receiver running"),
        "NoSuchJob": ("wait", ("no/job",), {"timeout": 0}, "no job no/job"),
        "NoSuchInstance": ("jobs", (), {"instance": "nope"}, "instances are: .*gooddata"),
        "RequestRejected": ("submit", (io.BytesIO(),), contact, "empty"),
        "NotFound": ("result", ("1", io.BytesIO()), {}, "job 1"),
    }
    for kind, (name, words, named, says) in cases.items():
        with pytest.raises(receiver.client.ClientError, match=says) as error:
            call(name, *words, **named)
        assert type(error.value).__name__ == kind
        assert error.value.code


def done(flow: flows.Flow, answer):
    """What a flow returns, without pauses."""
    step = next(flow)
    try:
        while True:
            step = flow.send(answer(step))
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize(
    ("failed", "wait", "known", "asked"),
    [(2, 60, 2, 3), (2, 0, 0, 1), (0, 60, 0, 1), (None, 60, 0, 1)],
)
def test_errors_are_waited_for_where_there_are_some_and_read_to_the_last_page(
    failed, wait, known, asked
):
    pages = iter([([], None), ([1], "2"), ([2], None)])
    job = {"id": "a:b", "instance": "i", "records": {"failed": failed}, "outcome": "partial"}
    missing = dict.fromkeys(set(Job.__struct_fields__) - set(job), None)
    flow = flows.errors(Job(**job | missing | {"records": Records(failed=failed)}), wait=wait)
    requests = []

    def answer(request: flows.Request) -> httpx.Response:
        requests.append((request.path, request.params["cursor"], request.after > 0))
        errors, following = next(pages)
        return httpx.Response(200, json={"errors": errors, "groups": [], "next": following})

    assert len(done(flow, answer).errors) == known
    path = "/api/v1/jobs/a%3Ab/errors"
    assert requests == [(path, None, False), (path, None, True), (path, "2", False)][:asked]


def test_a_wait_goes_on_while_the_receiver_is_away(call, served):
    job_id, troubles = served.uploaded(), []
    served.ended(job_id)
    app = served.app

    def come_back(error) -> None:
        troubles.append(error.code)
        served.answer_with(app)

    def away(_, start):
        start("502 Bad Gateway", [("Content-Length", "0")])
        return []

    served.answer_with(away)
    assert call("wait", job_id, instance="gooddata", on_trouble=come_back).ended
    assert troubles == ["not_a_receiver"]


def sent(number: int) -> bytes:
    """An event of the stream."""
    event = Callback(f"{number:016x}", "gooddata", "bulk_job", "1", "", None, None, b"")
    content = msgspec.json.encode(event)
    return b"id: %016x\nevent: event.received\ndata: %b\n\n" % (number, content)


def test_what_is_committed_late_is_given_though_it_has_a_number_from_before_the_start():
    stream = EventStream()
    stream.request()
    position = b":\nid: %016x\n\n" % 5
    assert [event.id[-1] for event in stream.feed(position + sent(4) + sent(6))] == ["4", "6"]
    stream.begin(httpx.Response(200))
    stream.pause(receiver.client.Unreachable("it ended", "ended"))
    stream.request()
    # What was there before the start is sent once more, and was not asked for.
    assert [event.id[-1] for event in stream.feed(sent(3) + sent(4) + sent(7))] == ["7"]


def test_an_event_to_begin_after_is_not_sent_again():
    stream = EventStream(after=f"{5:016x}")
    stream.request()
    # What is in the window before it may have become visible after it.
    assert [event.id[-1] for event in stream.feed(sent(4) + sent(5) + sent(6))] == ["4", "6"]


@pytest.mark.parametrize("id_", [".", ".."])
def test_a_job_whose_id_is_dots_is_asked_for(call, served, id_):
    body = msgspec.json.encode({"id": id_, "status": "COMPLETED"})
    assert served.call_back(body, "gooddata").status_code == 200
    assert call("job", id_).id == id_
    assert call("errors", id_).errors == []


@pytest.mark.parametrize("number", ["1e400", "9" * 5000])
def test_a_number_that_python_does_not_hold_stays_text(call, served, number):
    body = f'{{"id":"{len(number)}","status":"COMPLETED","callback-payload":[{number}, 1.5]}}'
    assert served.call_back(body.encode(), "gooddata").status_code == 200
    assert call("job", str(len(number))).callback_payload == [number, 1.5]
    assert str(len(number)) in [job.id for job in call("jobs").jobs]


def test_a_job_has_the_fields_of_the_api(served):
    document = served.client.get("/api/v1/openapi.json").json["components"]["schemas"]
    for name in ("Job", "Records", "ErrorGroup"):
        ours = getattr(receiver.client, name).__struct_fields__
        assert list(ours) == list(document[name]["properties"])


def test_the_client_loads_nothing_of_a_server():
    code = "import receiver.client, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=own_environment(), capture_output=True, check=True
    )
    loaded = done.stdout.decode().split()
    assert not {"flask", "sqlalchemy", "gunicorn", "cryptography"} & set(loaded)
    ours = {name.split(".")[1] for name in loaded if name.startswith("receiver.")}
    assert ours == {"client", "errors", "lib", "openconnectors"}


def decorator(*words, **_):
    """What Airflow's and Prefect's decorators are to a test: nothing."""
    return words[0] if words else lambda function: function


def test_the_examples_of_the_page_run(served, tmp_path, monkeypatch, capsys):
    for name in ("contacts.csv", "more.csv"):
        (tmp_path / name).write_bytes(ROWS)
    (tmp_path / "token").write_text(served.token)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECEIVER_URL", served.url)
    monkeypatch.setenv("RECEIVER_TOKEN_FILE", "token")
    for name in ("airflow", "airflow.sdk", "prefect"):
        module = ModuleType(name)
        vars(module).update(dag=decorator, task=decorator, flow=decorator)
        monkeypatch.setitem(sys.modules, name, module)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    with ThreadPoolExecutor(1) as thread:  # one without a loop that runs, as `outcome_of` says
        for block in blocks:
            thread.submit(exec, compile(block, PAGE.name, "exec"), names).result()
    assert capsys.readouterr().out == "succeeded 2 of 2\n['succeeded', 'succeeded']\n"


@pytest.mark.parametrize("made", [Client, AsyncClient])
@pytest.mark.parametrize("token", ["", "canary\n", " canary", "canary\r\nX: y", "canary\u00e4"])
def test_what_cannot_be_a_token_is_rejected_and_not_shown(made, token):
    with pytest.raises(ValueError, match="the token is empty, has a blank") as failure:
        made("http://127.0.0.1:1", token)
    assert "anary" not in str(failure.value)
