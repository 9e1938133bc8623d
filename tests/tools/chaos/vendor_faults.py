"""What the vendor does to a run: whatever it is, callbacks and probes go on."""

import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from http_client import Answer, Lost
from processes import ToolError, until
from sender import TIMEOUT
from stage import BOUNDARY, Stage

ASKED, UPLOADS = 24, 40  # at once
RETRY_AFTER = 5  # seconds
FILE = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
UPLOAD = f"{FILE}id\r\n1\r\n\r\n--{BOUNDARY}--\r\n".encode()


@contextmanager
def vendor_slow(stage: Stage) -> Iterator[None]:
    """Have the vendor answer nobody, while clients ask where jobs stand."""
    with stage.vendor.silent():
        asked = _ask_statuses(stage, _jobs_in_progress(stage))
        yield
    _judge(stage, "a status while the vendor is slow", asked, {200, 503})


@contextmanager
def vendor_limits(stage: Stage) -> Iterator[None]:
    """Have the vendor answer 429: one client is told, and no node asks until that is over."""
    instance = f"limited-{time.monotonic_ns()}"
    stage.add_vendor_secrets("add", instance)
    vendor = stage.vendor
    vendor.limits = RETRY_AFTER

    def is_passed_on() -> bool:  # perhaps after a 503 of ours
        [first] = _ask_statuses(stage, ["first"], instance)
        answer = first.result(TIMEOUT + 5)
        return (answer.status, answer.retry_after) == (429, str(RETRY_AFTER))

    until(is_passed_on, "the vendor's 429 and its Retry-After passed on")
    before = len(vendor.asked)
    later = _ask_statuses(stage, [f"later-{n}" for n in range(ASKED)], instance)
    _judge(stage, "a status while the vendor limits", later, {429, 503})
    yield
    if more := [path for path in vendor.asked[before:] if "later-" in path]:
        stage.violations.append(f"the vendor was asked {len(more)} times within its Retry-After")
    vendor.limits = 0


@contextmanager
def one_job_fails(stage: Stage) -> Iterator[None]:
    """Have the vendor answer 500 for the oldest job, and ask for all of them."""
    # A fault of the vendor's just before may have opened the instance's circuit, for 20 s and more.
    until(lambda: _is_asked(stage), "the vendor asked again after another fault", 120)
    vendor, jobs = stage.vendor, _jobs_in_progress(stage)
    vendor.broken_job, before = jobs[-1], len(vendor.asked)
    report = json.loads(stage.command("reconcile", "--all", "--json"))
    failed = {one["job"] for one in report["failed"]}
    asked = {path.split("/")[-2] for path in vendor.asked[before:] if path.endswith("/status")}
    # The job may have ended meanwhile, by a callback.
    if failed - {vendor.broken_job} or report["unfinished"] or len(asked) < len(jobs) // 2:
        stage.violations.append(f"500 for one job: {failed} failed, {len(asked)} were asked for")
    yield
    vendor.broken_job = ""


@contextmanager
def uploads_hang(stage: Stage) -> Iterator[None]:
    """Have uploads wait for a vendor that does not answer."""
    with stage.vendor.silent():
        path = "/bulk/contact?path=/a.csv"
        uploads = [
            stage.ask_vendor(_node(stage, number), "turning", "POST", path, UPLOAD)
            for number in range(UPLOADS)
        ]
        yield
    _judge(stage, "an upload", uploads, {400, 503})


def _is_asked(stage: Stage) -> bool:
    try:
        stage.command("reconcile", "--all")
    except ToolError:
        return False
    return True


def _jobs_in_progress(stage: Stage) -> list[str]:
    path = f"/api/v1/jobs?instance=turning&outcome=pending&limit={ASKED}"
    jobs: list[str] = []

    def look() -> bool:
        stage.sender.try_once(stage.plan.fresh())
        answer = stage.ask(stage.nodes[0].name, path)
        jobs[:] = [str(job["id"]) for job in json.loads(answer.body)["jobs"]]
        return len(jobs) > 1

    until(look, "jobs in progress to ask for")
    return jobs


def _ask_statuses(
    stage: Stage, jobs: list[str], instance: str = "turning"
) -> list["Future[Answer]"]:
    return [
        stage.ask_vendor(_node(stage, number), instance, "GET", f"/bulk/{job}/status")
        for number, job in enumerate(jobs)
    ]


def _node(stage: Stage, number: int) -> str:
    return stage.nodes[number % len(stage.nodes)].name


def _judge(stage: Stage, what: str, answers: Iterable["Future[Answer]"], right: set[int]) -> None:
    for future in answers:
        try:
            status = future.result(TIMEOUT + 5).status
        except Lost:
            status = 0
        if status not in right:
            stage.violations.append(f"{what} got {status or 'no answer'}")
