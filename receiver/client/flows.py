"""All that the client does, without I/O: generators of requests.

`Client` and `AsyncClient` send what a flow yields and give it the answer, or throw Unreachable.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar
from urllib.parse import quote, unquote

import httpx
import msgspec

from receiver.client.answers import ErrorPage, Job, JobPage, Submission, decode
from receiver.client.errors import (
    ClientError,
    CredentialsRejected,
    NoSuchInstance,
    NoSuchJob,
    NotFound,
    RequestRejected,
    UnclearSubmission,
    Unreachable,
    VendorRejected,
)
from receiver.openconnectors.notifications import parse
from receiver.openconnectors.shapes import BASE, MEDIA_TYPES

API = "/api/v1"
TIMEOUT_SECONDS = 10
TRANSFER_SECONDS = 600
MAX_WAIT_SECONDS = 60  # the API holds an answer no longer
PAUSE_SECONDS = 1.0  # between requests that the receiver does not hold
PAGE = 1000

T = TypeVar("T")
Parameter: TypeAlias = str | int | Sequence[str] | None
JobLike: TypeAlias = Job | Submission | str
_TYPES: dict[str, str] = {f".{name}": media_type for name, media_type in MEDIA_TYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to a receiver.

    instance -- on the vendor's paths, whose credentials stand in the header. files -- as httpx
    takes them. after -- seconds to let pass before it. into -- where the answer goes if it is a
    success. timeout -- seconds; None: any.
    """

    method: str
    path: str
    params: Mapping[str, Parameter] = field(default_factory=dict)
    instance: str = ""
    json: object = None
    files: object = None
    after: float = 0
    into: IO[bytes] | None = None
    timeout: float | None = TIMEOUT_SECONDS


Flow: TypeAlias = Generator[Request, httpx.Response, T]


def submit(
    file: str | Path | IO[bytes],
    *,
    object: str,
    instance: str,
    hub: str | None = None,
    name: str | None = None,
) -> Flow[Submission]:
    """Upload a file as a bulk job. name -- its path there; its type goes by it.

    After Unreachable or UnclearSubmission the job may exist: look before you submit again.
    """
    with Path(file).open("rb") if isinstance(file, str | Path) else nullcontext(file) as content:
        name = name or Path(str(getattr(content, "name", "upload.csv"))).name
        media_type = _TYPES.get(Path(name).suffix.lower(), MEDIA_TYPES["csv"])
        order = Request(
            method="POST",
            path=_vendor_path(hub, f"/bulk/{quoted(object)}"),
            instance=instance,
            params={"path": f"/{name}"},
            files={"file": (Path(name).name, content, media_type)},
            timeout=TRANSFER_SECONDS,
        )
        return (yield from _create_job(order))


def download(
    *,
    object: str,
    instance: str,
    hub: str | None = None,
    query: str | None = None,
    where: str | None = None,
    format: str | None = None,
) -> Flow[Submission]:
    """Order a file of records; once its job has ended, `result` fetches it. format -- e.g. csv."""
    order = partial(Request, method="POST", instance=instance, timeout=60)
    if query:
        params = {"q": query, "fileFormat": format}
        return _create_job(order(path=_vendor_path(hub, "/bulk/query"), params=params))
    # The vendor's word for CSV is its own.
    words = {**_TYPES, ".csv": "txt/csv"}
    facts = {"objectName": object, "where": where, "format": words.get(f".{format}")}
    facts = {name: value for name, value in facts.items() if value is not None}
    return _create_job(order(path=_vendor_path(hub, "/bulk/download"), json=facts))


def wait(
    job: JobLike,
    *,
    instance: str | None = None,
    timeout: float = 600,
    on_change: Callable[[Job], object] | None = None,
    on_trouble: Callable[[ClientError], object] | None = None,
) -> Flow[Job]:
    """Wait until a job has ended, at most `timeout` seconds; return it as it is then.

    A receiver that cannot be reached, or does not know the job yet, is asked again while there is
    time. on_change -- called with the job at each new status. on_trouble -- called with the error
    while the job cannot be read.
    """
    deadline = time.monotonic() + timeout
    hold, pause, is_first = 0, 0.0, True  # the first answer comes at once: a wait for nothing shows
    status, reported = "", ""
    while True:
        began, trouble = time.monotonic() + pause, None
        try:
            current = yield from _job(job, instance, hold, pause)
        except (Unreachable, NoSuchJob) as error:
            trouble = error
        else:
            if on_change and current.status != status:
                on_change(current)
            if current.ended:
                return current
            status = current.status or ""
        left = deadline - time.monotonic()
        if left <= 0:
            if trouble:
                raise trouble
            return current
        if trouble and on_trouble and trouble.code != reported:
            reported = trouble.code
            on_trouble(trouble)
        if on_change or not is_first or isinstance(trouble, Unreachable):
            pause = max(0, min(PAUSE_SECONDS - (time.monotonic() - began), left))
        left = max(0, int(deadline - time.monotonic() - pause))
        hold, is_first = 0 if on_change else min(MAX_WAIT_SECONDS, left), False


def job(job: JobLike, *, instance: str | None = None) -> Flow[Job]:
    """Return a job as it is now. instance -- needed where several have a job of that id."""
    return _job(job, instance)


def jobs(**filters: Parameter) -> Flow[JobPage]:
    """Return a page of jobs, newest change first, by the API's filters.

    Its `next` is the `cursor` of the page after. Raises NoSuchInstance.
    """
    page = yield from _list("/jobs", JobPage, filters)
    if not page.jobs:
        yield from instances(filters.get("instance"))
    return page


def errors(job: JobLike, *, instance: str | None = None, wait: float = 15) -> Flow[ErrorPage]:
    """Return all failed records of a job; of one that has some, wait until they are known.

    wait -- seconds; a receiver fetches the errors of a job that has just ended.
    """
    deadline = time.monotonic() + wait
    record = job if isinstance(job, Job) else (yield from _job(job, instance))
    pause = 0.0
    while True:
        page = yield from _all_errors(record, pause)
        if page.errors or not record.records.failed or time.monotonic() >= deadline:
            return page
        pause = PAUSE_SECONDS / 2


def result(job: JobLike, file: IO[bytes], *, instance: str | None = None) -> Flow[None]:
    """Write the file of a finished download to `file`, in its own format."""
    path, instance = _locate(job, instance)
    path, params = f"{API}{path}/result", {"instance": instance}
    timeout = MAX_WAIT_SECONDS
    require_success(
        (yield Request(method="GET", path=path, params=params, into=file, timeout=timeout))
    )


def close_job(job: JobLike, *, instance: str | None = None) -> Flow[Job]:
    """Give a job up: it is `lost` until the vendor reports it."""
    path, instance = _locate(job, instance)
    return (yield from _of_job(path, instance, post(f"{path}/close", Job, instance=instance)))


def objects(*, instance: str, hub: str | None = None) -> Flow[list[str]]:
    """Return the names of the objects that can be uploaded."""
    request = Request(method="GET", path=_vendor_path(hub, "/objects"), instance=instance)
    return _read((yield from _ask_vendor(request)), list[str])


def page(path: str, name: str, **filters: Parameter) -> Flow[dict[str, Any]]:
    """Return a page of any list of the API, as it is written. Raises NoSuchInstance."""
    page = yield from _list(path, dict[str, Any], filters)
    if name not in page:
        raise Unreachable(f"the answer to {path} has no {name}: check the URL", "not_a_receiver")
    if not page[name]:
        yield from instances(filters.get("instance"))
    return page


def post(path: str, shape: type[T], **params: Parameter) -> Flow[T]:
    """Have the API do something, however long it takes: to ask again would do it twice."""
    request = Request(method="POST", path=API + path, params=params, timeout=None)
    return _read((yield request), shape)


def instances(named: Parameter = None) -> Flow[dict[str, dict[str, Any]]]:
    """Return all instances by name, if any is named; else ask nothing, and return none.

    Raises NoSuchInstance if one of those named does not exist.
    """
    names = (named,) if isinstance(named, str) else named
    if not isinstance(names, Sequence) or not names:
        return {}
    listed = yield from _list("/instances", dict[str, list[dict[str, Any]]], {})
    existing = {instance["name"]: instance for instance in listed["instances"]}
    for name in names:
        if name not in existing:
            raise NoSuchInstance(name, existing)
    return existing


def _list(path: str, shape: type[T], filters: Mapping[str, Parameter]) -> Flow[T]:
    """Ask for a list, which every receiver has."""
    try:
        return (yield from _call(path, shape, filters))
    except NotFound:
        text = "the answer is 404 Not Found: is it a receiver? Check the URL"
        raise Unreachable(text, "not_a_receiver") from None


def _call(
    path: str, shape: type[T], params: Mapping[str, Parameter], pause: float = 0, hold: float = 0
) -> Flow[T]:
    """Ask the API, and read the answer. hold -- seconds for which it may hold its answer back."""
    path, timeout = API + path, TIMEOUT_SECONDS + hold
    answer = yield Request(method="GET", path=path, params=params, after=pause, timeout=timeout)
    return _read(answer, shape)


def _job(job: JobLike, instance: str | None, hold: int = 0, pause: float = 0) -> Flow[Job]:
    path, instance = _locate(job, instance)
    params: dict[str, Parameter] = {"instance": instance, "wait": hold}
    return (yield from _of_job(path, instance, _call(path, Job, params, pause, hold)))


def _of_job(path: str, instance: str | None, flow: Flow[Job]) -> Flow[Job]:
    """Say what is missing where there is no such job: the job, or its instance."""
    try:
        return (yield from flow)
    except NotFound:
        yield from instances(instance)
        raise NoSuchJob(unquote(path.rpartition("/")[2]), instance) from None


def _all_errors(job: Job, pause: float) -> Flow[ErrorPage]:
    path, instance = _locate(job, None)
    entries: list[Any] = []
    cursor = None
    while True:
        params: dict[str, Parameter] = {"instance": instance, "limit": PAGE, "cursor": cursor}
        page = yield from _call(f"{path}/errors", ErrorPage, params, pause)
        entries += page.errors
        cursor, pause = page.next, 0
        if cursor is None:
            return ErrorPage(entries, page.groups)


def _create_job(order: Request) -> Flow[Submission]:
    """Have the vendor create a job; read its id in whatever shape the vendor says it."""
    answer = yield from _ask_vendor(order)
    notification = parse(answer.content)
    if notification.kind != "bulk_job" or notification.job is None:
        raise UnclearSubmission(
            "the vendor's answer names no job; it may have been created: look at its job list"
            f" before you send again ({answer.text[:200]})",
            "no_job",
        )
    return Submission(
        notification.job, order.instance, notification.status, decode(answer.content, object)
    )


def _ask_vendor(request: Request) -> Flow[httpx.Response]:
    """Ask on one of the vendor's own paths, as a client of the vendor would."""
    answer = yield request
    if answer.status_code in (401, 403):
        raise (yield from _vendor_rejected(request.instance, answer))
    if answer.status_code == 429 and "X-Receiver-Source" not in answer.headers:
        code, text = _problem(answer)
        seconds = answer.headers.get("Retry-After")
        later = f"; try again in {seconds} s" if seconds else ""
        raise VendorRejected(f"the vendor answered 429: {text}{later}", code)
    require_success(answer)
    return answer


def _vendor_rejected(instance: str, answer: httpx.Response) -> Flow[ClientError]:
    """Say whose credentials are at fault: the token's, or those the vendor is asked with."""
    code, text = _problem(answer)
    if "X-Receiver-Source" not in answer.headers:
        return VendorRejected(f"the vendor answered {answer.status_code}: {text}", code)
    existing = yield from instances(instance)
    if answer.status_code == 401 and not existing[instance]["vendor_secrets"]:
        remedy = f"`receiver instances set {instance}` with --element-token-file and"
        text = f"{instance} has no vendor secrets: {remedy} --user-secret-file adds them"
        return RequestRejected(text, "no_vendor_secrets")
    return CredentialsRejected(text, code)


def _locate(job: JobLike, instance: str | None) -> tuple[str, str | None]:
    """Return a job's path and instance. Raises ValueError if the id is empty."""
    id_, instance = (job, instance) if isinstance(job, str) else (job.id, job.instance)
    if not id_:
        raise ValueError("the job's id is empty")
    return f"/jobs/{quoted(id_)}", instance


def quoted(name: str) -> str:
    """Write a name as one segment of a path."""
    # Dots alone would be taken for a way through the path, and be left out of it.
    return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe="")


def _vendor_path(hub: str | None, path: str) -> str:
    return f"{BASE}/hubs/{quoted(hub)}{path}" if hub else f"{BASE}{path}"


def _read(answer: httpx.Response, shape: type[T]) -> T:
    require_success(answer)
    try:
        return decode(answer.content, shape)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Unreachable(_not_a_receiver(answer), "not_a_receiver") from None


def require_success(answer: httpx.Response) -> None:
    """Raise the ClientError that an answer's status stands for, with what the receiver says."""
    if answer.is_success:
        return
    code, text = _problem(answer)
    if answer.status_code == 401:
        raise CredentialsRejected(f"{text}; `receiver tokens create` makes a token", code)
    if answer.status_code == 403:
        raise CredentialsRejected(text, code)
    if answer.status_code == 404 and code != "not_a_receiver":
        raise NotFound(text, code)
    if answer.is_client_error and answer.status_code != 404:
        raise RequestRejected(text, code)
    raise Unreachable(text, code)


def _problem(answer: httpx.Response) -> tuple[str, str]:
    """Return code and text of an error, in the API's shape or in the vendor's."""
    try:
        problem = answer.json()
        if "message" in problem:
            return f"http_{answer.status_code}", str(problem["message"])
        return str(problem["code"]), f"{problem['title']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return "not_a_receiver", _not_a_receiver(answer)


def _not_a_receiver(answer: httpx.Response) -> str:
    return f"{answer.url.host} answered {answer.status_code}, not as a receiver: check the URL"
