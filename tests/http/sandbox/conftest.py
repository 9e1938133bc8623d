from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Condition
from typing import NamedTuple

import httpx
import pytest
from answering import answering, lower_headers, read_body, reply
from nodes import DEADLINE
from nodes import eventually as until

from receiver.openconnectors import sandbox
from receiver.openconnectors.sandbox.faults import Options
from receiver.openconnectors.sandbox.server import Running, running

ENDINGS = {"COMPLETED", "CANCELLED", "ABORTED", "ERROR"}
SAMPLE = Path(sandbox.__file__).with_name("contacts.csv")


class Caught(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


class Catcher:
    """Receives callbacks; answers with `statuses` in turn, then with 200."""

    def __init__(self) -> None:
        self.url = ""
        self.statuses: list[int] = []
        self.caught: list[Caught] = []
        self._changed = Condition()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        caught = Caught(request.path, lower_headers(request), read_body(request))
        reply(request, self.take(caught), b"", {"Location": "/elsewhere"})

    def take(self, caught: Caught) -> int:
        with self._changed:
            self.caught.append(caught)
            self._changed.notify_all()
            return self.statuses.pop(0) if self.statuses else 200

    def wait(self, count: int) -> list[Caught]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.caught) >= count, DEADLINE)
            return list(self.caught)


class Client:
    """Talks to one sandbox as one element."""

    def __init__(self, sandbox: Running, token: str = "t-1") -> None:
        self.stage = sandbox.stage
        self.url = sandbox.url
        self.http = httpx.Client(
            base_url=sandbox.api,
            headers={"Authorization": f"Element {token}, User u-1"},
            trust_env=False,
        )

    def upload(self, content: bytes | None = None, **fields: str) -> httpx.Response:
        callback = {"Elements-Async-Callback-Url": fields.pop("to")} if "to" in fields else {}
        return self.http.post(
            f"/hubs/marketing/bulk/{fields.pop('object_name', 'contact')}",
            params={"path": "/sample.csv"},
            files={"file": SAMPLE.read_bytes() if content is None else content},
            data=fields,
            headers=callback,
        )

    def created(self, content: bytes | None = None, **fields: str) -> str:
        answer = self.upload(content, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def status(self, job: str) -> dict[str, object]:
        return self.http.get(f"/bulk/{job}/status").json()

    def ended(self, job: str) -> dict[str, object]:
        until(lambda: self.stage.jobs.find(job).has_ended)
        return self.status(job)

    def faults(self, **faults: object) -> httpx.Response:
        return self.http.put(f"{self.url}/sandbox/faults", json=faults)

    def deliveries(self) -> list[dict[str, object]]:
        return self.http.get(f"{self.url}/sandbox/deliveries").json()

    def states(self) -> list[object]:
        return [delivery["status"] for delivery in self.deliveries()]


@pytest.fixture(name="until")
def until_fixture() -> Callable[[Callable[[], bool]], None]:
    return until


@pytest.fixture
def catcher() -> Iterator[Catcher]:
    catcher = Catcher()
    with answering(catcher.answer) as catcher.url:
        yield catcher


@pytest.fixture
def start() -> Iterator[Callable[..., Client]]:
    """Start a sandbox with these options; jobs end at once and retries come soon."""
    with ExitStack() as stack:

        def starter(**options: object) -> Client:
            chosen = {"job_seconds": 0, "retry_seconds": 0, **options}
            client = Client(stack.enter_context(running(Options(**chosen))))
            stack.enter_context(client.http)
            return client

        yield starter


@pytest.fixture
def client(start: Callable[..., Client]) -> Client:
    return start()
