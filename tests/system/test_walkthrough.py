"""The seeds' walk-through on real servers: uploads, lost callbacks, kill -9, the command line."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import commands
import httpx
import pytest
from cryptography.fernet import Fernet
from nodes import DEADLINE, add_instance, eventually, running_sandbox
from processes import free_port, own_environment

import receiver

COMMAND = (sys.executable, "-m", "receiver")
INSTANCES = ("gooddata", "freshbooks")
KEY = b"a signature key of both instances"
PATIENCE = 180  # seconds; work that a killed node had claimed comes back after sixty
OBJECTS = ["activities", "contact", "campaign", "list", "account"]
SAMPLE = Path(receiver.__file__).with_name("openconnectors") / "sandbox/contacts.csv"
ROWS = b"email,name\na@example.com,A\nb@example.com,B\n"
BAD_ROWS = ROWS + b"not-an-address,C\n,D\n"
MIB = 2**20


@dataclass
class World:
    """The vendor's stand-in, a database, and a receiver that may be killed and started again."""

    folder: Path
    database_url: str
    run: Callable[..., Any]
    stack: ExitStack
    token: str = ""
    served: Any = None
    sandbox: str = ""
    port: int = field(default_factory=free_port)
    secrets: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "RECEIVER_ENCRYPTION_KEYS": self.secrets[0],
            "RECEIVER_PUBLIC_URL": self.url,
            "OPEN_CONNECTORS_URL": f"{self.sandbox}/elements/api-v2",
            "OPEN_CONNECTORS_RATE": "1000",
        }

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def start_sandbox(self) -> None:
        key = str(self.file("signature-key", KEY))
        pace = ("--job-seconds", "0.1", "--retry-seconds", "0.2")
        running = running_sandbox(self.folder, "--signature-key-file", key, *pace)
        self.sandbox = self.stack.enter_context(running)

    def add_instances(self) -> None:
        for name in INSTANCES:
            self.secrets += add_instance(
                self.database_url, self.secrets[0], name, KEY, hub="marketing"
            )

    def start(self) -> None:
        serve = (*COMMAND, "serve", "--bind", f"127.0.0.1:{self.port}", "--workers", "2")
        running = self.run(self.database_url, serve, **self.environment)
        self.served = self.stack.enter_context(running)
        self.token = self.served.token
        self.file("token", self.token.encode())

    def kill(self) -> None:
        """End the receiver as a power cut would: master and workers, at once."""
        for pid in (self.served.master, *self.served.workers):
            os.kill(pid, signal.SIGKILL)
        self.served.process.wait(DEADLINE)

    def receiver(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command, with all settings and with a token for those that ask the receiver."""
        settings = {
            "HOME": str(self.folder),
            **self.environment,
            "RECEIVER_DATABASE_URL": self.database_url,
            "RECEIVER_URL": self.url,
            "RECEIVER_TOKEN_FILE": str(self.folder / "token"),
        }
        environment = own_environment(**settings)
        done = commands.run(words, self.folder, environment)
        assert "Traceback" not in done.stderr, done.stderr
        shown = done.stdout + done.stderr
        assert [secret for secret in (*self.secrets, KEY.decode()) if secret in shown] == []
        return done

    def told(self, *words: str) -> Any:
        """Run a command with --json; give its exit code and what it printed."""
        done = self.receiver(*words, "--json")
        return done.returncode, json.loads(done.stdout)

    def client(self, instance: str = "gooddata", token: str | None = None) -> httpx.Client:
        """A client of the vendor that had its base URL and its secrets replaced."""
        headers = {"Authorization": f"Element {instance}, User {token or self.token}"}
        base = f"{self.url}/elements/api-v2"
        return httpx.Client(base_url=base, headers=headers, trust_env=False, timeout=DEADLINE)

    def upload(self, content: bytes = ROWS, instance: str = "gooddata") -> str:
        with self.client(instance) as client:
            answer = client.post("/bulk/contact?path=/sample.csv", files={"file": content})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id"])

    def job(self, job_id: str, instance: str = "gooddata") -> Any:
        return self.served.get(f"/jobs/{job_id}?instance={instance}")

    def ended(self, job_id: str, instance: str = "gooddata") -> Any:
        def look() -> Any:
            job = self.job(job_id, instance)
            return job if job["learnt_by"] else None

        return eventually(look, f"the end of job {job_id}", within=PATIENCE)

    def faults(self, **faults: Any) -> None:
        answer = httpx.put(f"{self.sandbox}/sandbox/faults", json=faults, trust_env=False)
        assert answer.status_code == 200, answer.text

    def asked(self) -> Any:
        return httpx.get(f"{self.sandbox}/sandbox/requests", trust_env=False).json()

    def deliveries(self) -> Counter[str]:
        listed = httpx.get(f"{self.sandbox}/sandbox/deliveries", trust_env=False).json()
        return Counter(each["status"] for each in listed)


@pytest.fixture
def alone(tmp_path: Path, make_database: Any, run: Any) -> Iterator[World]:
    """A world for one test, on SQLite."""
    with ExitStack() as stack:
        keys = [Fernet.generate_key().decode()]
        made = World(tmp_path, make_database("sqlite"), run, stack, secrets=keys)
        made.start_sandbox()
        made.add_instances()
        made.start()
        yield made


@pytest.mark.slow
def test_killed_between_upload_and_callback_nothing_is_missing(alone):
    alone.faults(delay_callbacks=1.0)
    ids: list[str] = []

    def killed_before_the_last_callback() -> bool:
        ids.extend(alone.upload() for _ in range(10))
        alone.kill()
        eventually(lambda: alone.deliveries().total() == len(ids), "the end of all jobs")
        pending = alone.deliveries()["pending"]
        alone.start()
        return pending > 0

    eventually(killed_before_the_last_callback, "a kill less than a second after an upload")
    jobs = [alone.ended(job_id) for job_id in ids]
    assert Counter((job["outcome"], job["learnt_by"]) for job in jobs) == {
        ("succeeded", "callback"): len(ids)
    }
    assert {job["records"]["submitted"] for job in jobs} == {2}
    assert len(alone.served.all_of("jobs")) == len(ids)


@pytest.mark.slow
def test_killed_between_callback_and_errors_nothing_is_missing(alone):
    job_id = alone.upload(BAD_ROWS)
    alone.ended(job_id)
    alone.kill()
    alone.start()

    def errors() -> Any:
        return alone.served.get(f"/jobs/{job_id}/errors?instance=gooddata")["errors"]

    assert [entry["row"] for entry in eventually(errors, "the errors", within=PATIENCE)] == [3, 4]
    assert alone.job(job_id)["outcome"] == "partial"


@pytest.mark.slow
def test_killed_while_the_vendor_takes_an_upload_its_fate_is_told(alone):
    sent, lost = 0, []

    def send() -> None:
        try:
            alone.upload()
        except httpx.HTTPError as error:
            lost.append(error)

    def uploads() -> int:
        return alone.asked().get("POST /bulk/contact", 0)

    def killed_before_the_answer() -> bool:
        nonlocal sent
        sent += 1
        lost.clear()
        alone.faults(slow=1.0)
        sending = threading.Thread(target=send)
        sending.start()
        eventually(lambda: uploads() == sent, "the upload at the vendor")
        alone.kill()
        sending.join(DEADLINE)
        alone.faults()
        alone.start()
        return bool(lost)

    def at_vendor() -> set[str]:
        url = f"{alone.sandbox}/elements/api-v2/bulk/jobs"
        secrets = {"Authorization": "Element gooddata-element-token, User gooddata-user-secret"}
        return {str(job["id"]) for job in httpx.get(url, headers=secrets, trust_env=False).json()}

    def fate_is_known() -> bool:
        assert alone.told("reconcile")[0] == 0
        known = {job["id"] for job in alone.served.all_of("jobs")}
        return bool(known) and known == at_vendor()

    eventually(killed_before_the_answer, "a kill less than a second after an upload")
    # Nobody sent it again; what became of it, the vendor's job list tells.
    eventually(fate_is_known, "the job")
    assert uploads() == sent


def memory(pid: int, what: str) -> int:
    """Give a figure of /proc/PID/status, in bytes: VmRSS is now, VmHWM the most it ever was."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{what}:\s+([0-9]+) kB$", status, re.MULTILINE)[1]) * 1024


@pytest.mark.slow
def test_an_upload_of_200_mb_stays_below_100_mb_of_memory(alone):
    line = b"someone-%08d@example.com," + b"x" * 60_000 + b"\n"
    big = alone.folder / "big.csv"
    with big.open("wb") as file:
        file.write(b"email,note\n")
        for number in range(200 * MIB // len(line) + 1):
            file.write(line % number)
    assert big.stat().st_size >= 200 * MIB
    rows = 200 * MIB // len(line) + 1
    for _ in range(8):
        alone.upload()  # idle is a worker that has worked before
    idle = {pid: memory(pid, "VmRSS") for pid in alone.served.workers}
    with alone.client() as client, big.open("rb") as file:
        answer = client.post("/bulk/contact?path=/big.csv", files={"file": file})
    assert answer.status_code == 200, answer.text
    most = {pid: memory(pid, "VmHWM") for pid in idle}
    above = {pid: (most[pid] - idle[pid]) / MIB for pid in idle}
    print(f"idle {[size // MIB for size in idle.values()]} MiB, above {above} MiB")  # noqa: T201
    assert max(above.values()) < 100
    job = alone.ended(str(answer.json()["id"]))
    assert job["records"] == {"submitted": rows, "loaded": rows, "failed": 0, "reported": rows}


# --- the command line


def test_the_command_line_walks_all_the_way(alone):
    sample, bad = alone.file("sample.csv", SAMPLE.read_bytes()), alone.file("bad.csv", BAD_ROWS)
    gooddata = ("--object", "contact", "--instance", "gooddata")

    objects = alone.receiver("objects", "--instance", "freshbooks", "--hub", "marketing")
    assert (objects.returncode, objects.stdout.split()) == (0, OBJECTS)
    assert alone.told("objects", "--instance", "gooddata") == (0, OBJECTS)

    good = alone.receiver("submit", str(sample), *gooddata, "--wait", "60")
    assert (good.returncode, "succeeded (COMPLETED)" in good.stdout) == (0, True)
    assert re.search(r"job [0-9]+ of gooddata: CREATED", good.stderr)
    assert "COMPLETED" in good.stderr

    code, job = alone.told("submit", str(bad), *gooddata, "--wait", "60")
    assert (code, job["outcome"], job["records"]["failed"]) == (3, "partial", 2)
    waited = alone.receiver("job", job["id"], "--instance", "gooddata", "--wait", "60")
    assert waited.returncode == 3

    alone.faults(final_status="ERROR")
    assert alone.told("submit", str(sample), *gooddata, "--wait", "60")[0] == 1

    alone.faults(drop_callbacks=True)
    over = alone.receiver("submit", str(sample), *gooddata, "--wait", "1")
    assert over.returncode == 4
    resume = re.search(r"go on waiting with: receiver (.*)", over.stderr)[1].split()
    assert resume[:3] == ["job", resume[1], "--instance"]
    report = alone.told("reconcile", "--all")
    assert (report[0], report[1]["asked"], report[1]["ended"]) == (0, 1, 1)
    assert alone.receiver(*resume).returncode == 0

    created = alone.told("submit", str(sample), *gooddata)
    assert (created[0], set(created[1])) == (0, {"id", "status", "instanceId"})


@pytest.mark.slow
def test_the_command_line_fails_in_json_too(alone, tmp_path):
    sample, empty = alone.file("sample.csv", ROWS), alone.file("empty.csv", b"")
    gooddata = ("--object", "contact", "--instance", "gooddata")

    def failure(*words: str) -> tuple[int, str]:
        code, told = alone.told(*words)
        assert set(told) == {"error"}
        assert told["error"]["detail"]
        return code, told["error"]["code"]

    nosuch = ("--object", "nosuch", "--instance", "gooddata")
    assert failure("submit", str(sample), *nosuch) == (2, "http_400")
    assert failure("submit", str(empty), *gooddata) == (2, "http_400")
    assert failure("submit", str(tmp_path / "absent.csv"), *gooddata) == (2, "usage")
    unknown = ("--object", "contact", "--instance", "unknown")
    assert failure("submit", str(sample), *unknown) == (2, "no_instance")
    assert failure("objects", "--instance", "unknown") == (2, "no_instance")
    assert failure("job", "never-seen", "--instance", "gooddata") == (2, "not_found")
    assert failure("prune", "--older-than", "soon") == (2, "usage")

    reader = alone.receiver("tokens", "create", "reader", "--scope", "read").stdout.strip()
    token = alone.file("reader", reader.encode())
    as_reader = ("--token-file", str(token))
    assert failure("submit", str(sample), *gooddata, *as_reader) == (5, "http_403")

    alone.faults(die_after_upload=1)
    code, told = alone.told("submit", str(sample), *gooddata)
    assert (code, told["error"]["code"]) == (6, "http_502")
    assert "before you send again" in told["error"]["detail"]
    # The vendor had taken it: the job is there, and the upload is linked to it.
    assert alone.told("reconcile")[1]["unclear"] == []
    (job,) = alone.served.get("/jobs?instance=gooddata")["jobs"]
    assert (job["file"], job["records"]["submitted"]) == ("/sample.csv", 2)

    alone.kill()
    assert failure("submit", str(sample), *gooddata) == (6, "unreachable")


@pytest.mark.slow
def test_prune_and_results_from_the_command_line(alone):
    job_id = alone.upload()
    alone.ended(job_id)
    with alone.client() as client:
        download = client.post("/bulk/download", json={"objectName": "contact"}).json()["id"]
    alone.ended(download)
    folder = alone.folder / "results"
    folder.mkdir()
    code, report = alone.told("reconcile", "--fetch-results", str(folder))
    assert (code, report["results"]) == (0, 1)
    assert [each.name for each in folder.iterdir()] == [f"gooddata.{download}.csv"]

    (event,) = alone.served.get(f"/events?job={job_id}")["events"]
    code, gone = alone.told("prune", "--older-than", "90d", "--yes")
    assert (code, gone["bodies"]) == (0, 0)
    assert alone.told("prune", "--older-than", "90d", "--dry-run") == (code, gone)
    gone = [0]

    def pruned() -> bool:
        gone[0] += alone.told("prune", "--older-than", "1s", "--yes")[1]["bodies"]
        return gone[0] == 2

    eventually(pruned, "the bodies to be a second old")
    assert alone.job(job_id)["outcome"] == "succeeded"
    status, _ = alone.served.get_bytes(f"/events/{event['id']}/body")
    assert status == 410

    code, gone = alone.told("erase", "--yes", "--job", job_id)
    assert (code, gone["instance"], gone["submissions"]) == (0, "gooddata", 0)
    assert alone.job(job_id)["file"] is None
    assert alone.job(job_id)["outcome"] == "succeeded"


@pytest.mark.slow
def test_failed_records_are_told_and_their_rows_written_to_be_mended(alone):
    bad = alone.file("bad.csv", BAD_ROWS)
    submitted = ("submit", str(bad), "--object", "contact", "--instance", "gooddata")
    job_id = alone.told(*submitted, "--wait", "60")[1]["id"]
    named = ("job", job_id, "--instance", "gooddata")

    def fetched() -> Any:
        return alone.told(*named, "--errors")[1].get("errors")

    assert [entry["row"] for entry in eventually(fetched, "the errors")] == [3, 4]
    shown = alone.receiver(*named, "--errors")
    assert (shown.returncode, "The e-mail address is malformed." in shown.stdout) == (3, True)
    mended = alone.folder / "mended.csv"
    done = alone.receiver(*named, "--failed-rows", str(mended), "--upload", str(bad))
    assert done.returncode == 3
    assert mended.read_bytes() == b"email,name\nnot-an-address,C\n,D\n"

    retry = ("submit", "--retry-failed", job_id, "--upload", str(bad), "--wait", "60")
    assert alone.receiver(*retry, "--instance", "gooddata").returncode == 1  # none is corrected
    bad.write_bytes(
        BAD_ROWS.replace(b"not-an-address", b"c@example.com").replace(b"\n,D", b"\nd@x.de,D")
    )
    code, again = alone.told(*retry)
    assert (code, again["records"]["submitted"], again["records"]["loaded"]) == (0, 2, 2)
    assert (again["object"], again["file"]) == ("contact", f"/retry-of-{job_id}/bad.csv")
    bad.write_bytes(ROWS)
    code, told = alone.told(*retry)
    assert (code, told["error"]["code"]) == (2, "already_retried")
    code, told = alone.told(*retry, "--again")
    assert (code, told["error"]["code"]) == (2, "other_upload")
