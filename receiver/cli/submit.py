"""Commands that work with the vendor through a running receiver, and the rows that failed."""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, cast

import click
from msgspec import to_builtins

from receiver.cli.options import json_option, not_empty, pass_client, reads, wait_option
from receiver.cli.output import (
    Exit,
    Failure,
    describe,
    exit_code_of,
    exit_with_outcome,
    explain,
    plain,
    show,
)
from receiver.client import Client, ClientError, Job, Submission
from receiver.jobs.record_errors import row_of
from receiver.lib.records import UnclearDialect, WrongFile, select_records
from receiver.openconnectors.shapes import MEDIA_TYPES

_PIECE = 2**16


_object_option = partial(
    click.option, "--object", "object_name", callback=reads(not_empty), help="E.g. contact."
)
_hub_option = click.option("--hub", help="The vendor's hub; else a path without one.")


@click.command()
@click.option("--instance", required=True, help="Name of the connector instance.")
@_hub_option
@json_option
@pass_client
def objects(client: Client, instance: str, hub: str | None, json_: bool) -> None:
    """List the objects that can be uploaded for an instance."""
    names = client.objects(instance=instance, hub=hub)
    show(names, "\n".join(map(plain, names)), json_)


@click.command()
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@_object_option()
@click.option("--instance", help="Name of the connector instance.")
@_hub_option
@wait_option
@click.option(
    "--retry-failed",
    metavar="JOB",
    callback=reads(not_empty),
    help="Send only the rows that failed in this job, of --upload.",
)
@click.option(
    "--upload",
    type=click.Path(exists=True, dir_okay=False),
    help="For --retry-failed: the file that was uploaded, its values corrected or not.",
)
@click.option("--again", is_flag=True, help="For --retry-failed: though it was done before.")
@json_option
@pass_client
def submit(
    client: Client,
    file: str | None,
    object_name: str | None,
    instance: str | None,
    hub: str | None,
    wait: int,
    retry_failed: str | None,
    upload: str | None,
    again: bool,
    json_: bool,
) -> None:
    """Upload a file as a bulk job; with --wait, exit as `receiver job` does.

    FILE may be `-`, which reads standard input. With --retry-failed, object and instance are those
    of the job.
    """
    if (file, retry_failed) == (None, None) or (file and retry_failed):
        raise click.UsageError("name FILE, or --retry-failed with --upload")
    if (upload is None) != (retry_failed is None):
        raise click.UsageError("--retry-failed and --upload go together")
    if again and not retry_failed:
        raise click.UsageError("--again goes with --retry-failed")
    source = Path("/dev/stdin" if file == "-" else upload or file or "")
    name = os.fsencode(source.name).decode("utf-8", "replace")
    opened: AbstractContextManager[IO[bytes]]
    with ExitStack() as stack:
        if retry_failed is not None:
            failed = client.job(retry_failed, instance=instance)
            object_name, instance = object_name or failed.object, failed.instance
            if not again:
                _raise_if_retried(client, failed)
            name = f"{_retry_folder(failed)}/{name}"
            opened = _failed_rows(client, failed, str(source))
        elif source.is_file():
            opened = source.open("rb")
        else:
            opened = _copied(_pieces(source))
        if not object_name or not instance:
            missing = "--instance" if object_name else "--object"
            raise click.UsageError(f"missing option {missing}")
        content = stack.enter_context(opened)
        watched = stack.enter_context(_progress(f"uploading {name}", content))
        created = client.submit(watched, object=object_name, instance=instance, hub=hub, name=name)
    _announce(created)
    if not wait:
        resume = ["receiver", "job", created.id, "--instance", instance, "--wait", "600"]
        show(created.answer, f"wait for it with: {shlex.join(resume)}", json_)
        return
    job = client.wait(created, timeout=wait, on_change=_report)
    show(to_builtins(job), describe(job), json_)
    exit_with_outcome(job, wait)


def _retry_folder(job: Job) -> str:
    # In the path of the upload: so both jobs show it, and nothing more is stored.
    return f"retry-of-{job.id}"


def list_retries(client: Client, job: Job) -> list[Job]:
    """Return the jobs by which the failed rows of a job were sent again, newest change first."""
    path, since = f"/{_retry_folder(job)}/", job.submitted_at
    return client.jobs(instance=job.instance, file=path, updated_after=since).jobs


def _raise_if_retried(client: Client, job: Job) -> None:
    """Raise Failure if records of a job may be loaded already by another that sent them again."""
    for retry in list_retries(client, job):
        if retry.outcome != "failed" or retry.records.loaded != 0:
            done = f"were sent again already, as job {plain(retry.id)} ({retry.outcome})"
            message = f"the failed rows of job {plain(job.id)} {done}; --again sends them once more"
            raise Failure(Exit.USAGE, "already_retried", message)


@contextmanager
def _failed_rows(client: Client, job: Job, source: str) -> Iterator[IO[bytes]]:
    """Open a copy of the rows of a file that failed in a job."""
    rows = _select_failed_rows(client.errors(job).errors, source, job.records.submitted)
    with rows as (count, pieces), _copied(pieces) as copy:
        more = f" of {job.records.failed}" if job.records.failed not in {None, count} else ""
        click.echo(f"{count}{more} failed rows of job {plain(job.id)}", err=True)
        yield copy


@click.command()
@_object_option(required=True)
@click.option("--instance", required=True, help="Name of the connector instance.")
@_hub_option
@click.option(
    "--query",
    callback=reads(not_empty),
    help="What to fetch, as `select … from …`; else all records.",
)
@click.option(
    "--where",
    callback=reads(not_empty),
    help="Which records, in the vendor's words; not with --query.",
)
@click.option(
    "--format", "format_", type=click.Choice(list(MEDIA_TYPES)), help="Format of the file."
)
@click.option("--wait", type=click.IntRange(0), default=600, show_default=True, help="Seconds.")
@click.option(
    "--job",
    "job_id",
    callback=reads(not_empty),
    help="Resume: fetch the file of this job instead of a new one.",
)
@click.option(
    "--output",
    required=True,
    callback=reads(not_empty),
    type=click.Path(dir_okay=False),
    help="Replaced if it is there, once the new file is whole; `-`: to stdout.",
)
@json_option
@pass_client
def download(
    client: Client,
    object_name: str,
    instance: str,
    hub: str | None,
    query: str | None,
    where: str | None,
    format_: str | None,
    wait: int,
    job_id: str | None,
    output: str,
    json_: bool,
) -> None:
    """Have a bulk download made, wait for it, and save its file; exit as `receiver job` does."""
    if query and where:
        raise click.UsageError("--where goes without --query, which has one of its own")
    if output != "-" and not (folder := Path(output).absolute().parent).is_dir():
        raise click.UsageError(f"--output {output}: there is no folder {folder}")
    if job_id is None:
        created = client.download(
            object=object_name, instance=instance, hub=hub, query=query, where=where, format=format_
        )
        job_id = created.id
        _announce(created)
    resume = ["receiver", "download", "--job", job_id, "--object", object_name]
    resume += ["--instance", instance, "--output", output]
    job = client.wait(client.job(job_id, instance=instance), timeout=wait, on_change=_report)
    code = exit_code_of(job.outcome)
    if code == Exit.STILL_RUNNING:
        click.echo(f"still in progress; resume with: {shlex.join(resume)}", err=True)
    elif job.outcome in ("succeeded", "partial"):
        try:
            _fetch(client, job, output)
        except ClientError as error:
            reason = explain(error)
            advice = f"{reason.message}; resume with: {shlex.join(resume)}"
            raise Failure(reason.exit_code, reason.code, advice) from None
    if output != "-":
        show(to_builtins(job), describe(job), json_)
    sys.exit(code)


def _fetch(client: Client, job: Job, output: str) -> None:
    if output == "-":
        client.result(job, sys.stdout.buffer)
        return
    target = Path(output)
    # A device, a pipe or a link is never replaced.
    is_special = target.is_symlink() or (target.exists() and not target.is_file())
    unfinished = target if is_special else Path(f"{output}.part")
    try:
        with unfinished.open("wb") as file:
            client.result(job, file)
        unfinished.replace(target)
    except OSError as error:
        raise Failure(Exit.USAGE, "cannot_write", f"{output}: {error.strerror}") from None
    finally:
        if not is_special:
            unfinished.unlink(missing_ok=True)


def _announce(created: Submission) -> None:
    line = f"job {created.id} of {created.instance}: {plain(created.status)}"
    click.echo(line, err=True)


def _report(job: Job) -> None:
    click.echo(f"{job.updated_at}  {plain(job.status)}", err=True)


@contextmanager
def _copied(pieces: Iterable[bytes]) -> Iterator[IO[bytes]]:
    """Write a temporary file: of what is uploaded, the size has to be known."""
    with TemporaryFile() as copy:
        copy.writelines(pieces)
        copy.seek(0)
        yield copy


@contextmanager
def _progress(label: str, file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Show how much of a file was read, on a terminal."""
    size = os.fstat(file.fileno()).st_size
    bar: Any = click.progressbar(length=size, label=plain(label), file=sys.stderr)
    with bar as shown:
        yield cast("IO[bytes]", _Watched(file, shown.update))


class _Watched:
    """A file that reports how far it was read; the rest is the file's own."""

    def __init__(self, file: IO[bytes], on_progress: Callable[[int], None]) -> None:
        self._file, self._on_progress = file, on_progress

    def read(self, size: int = -1) -> bytes:
        try:
            piece = self._file.read(size)
        except OSError as error:
            error.filename = str(self._file.name)  # or it would pass for our output's
            raise
        self._on_progress(len(piece))
        return piece

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def write_failed_rows(
    errors: list[Any], source: str, target: str, submitted: int | None = None
) -> int:
    """Write the records of the file `source` that failed to `target`; return how many."""
    if source and Path(source).exists() and Path(target).exists() and Path(target).samefile(source):
        raise Failure(Exit.USAGE, "same_file", "the failed rows would overwrite the uploaded file")
    with _select_failed_rows(errors, source, submitted) as (count, pieces):
        try:
            with Path(target).open("wb") as file:
                file.writelines(pieces)
        except OSError as error:
            error.filename = error.filename or target  # a full disk names none
            raise explain(error) from None
    return count


@contextmanager
def _select_failed_rows(
    errors: list[Any], source: str, submitted: int | None
) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield how many records of a job failed, and the file `source` with those alone.

    submitted -- how many records the job had. CSV keeps its header. Raises Failure if the errors
    do not name the rows, if the file is missing or another than was uploaded, or if its records
    cannot be separated for certain.
    """
    numbers = {row for row in map(row_of, errors) if row is not None}
    if not numbers:
        raise Failure(Exit.USAGE, "no_rows", "the errors do not tell which rows they were")
    if not source or not Path(source).is_file():
        raise Failure(
            Exit.USAGE, "no_upload", "the uploaded file is not at hand: name it with --upload"
        )
    try:
        yield (
            len(numbers),
            select_records(lambda: _pieces(Path(source)), numbers, submitted),
        )
    except WrongFile as error:
        first = shlex.join(["--failed-rows", "retried.csv", "--upload", source])
        message = (
            f"{source}: {error}; name the file that was uploaded. If the job was itself a retry, of"
            f" a job FIRST: `receiver job FIRST {first}` writes it, then --upload retried.csv"
        )
        raise Failure(Exit.USAGE, "other_upload", message) from None
    except UnclearDialect as error:
        message = f"{source}: which rows failed cannot be said for certain: {error}"
        raise Failure(Exit.USAGE, "unclear_dialect", message) from None


def _pieces(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
