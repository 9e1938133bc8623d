"""Looking after jobs from the database's side: reconcile."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from receiver.cli.exits import UNREACHABLE
from receiver.cli.output import as_json, show
from receiver.cli.serve import actor, opened
from receiver.errors import StoreError
from receiver.instances.credentials import KeyRing
from receiver.instances.encryption import Vault
from receiver.lib.clock import now_ms

if TYPE_CHECKING:
    from receiver.reconcile.reconciler import Report


@click.command()
@click.option("--all", "everything", is_flag=True, help="Ask for every job under way.")
@click.option("--every", type=click.IntRange(1), metavar="SECONDS", help="Go on, at this pace.")
@click.option("--redeliver", is_flag=True, help="Have the vendor send what it holds back for us.")
@click.option(
    "--fetch-results",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    metavar="DIR",
    help="Save the files of ended downloads before the vendor drops them.",
)
@as_json
def reconcile(
    everything: bool,
    every: int | None,
    redeliver: bool,
    fetch_results: Path | None,
    json_: bool,
) -> None:
    """Ask the vendor for jobs whose callback is overdue, and fetch the errors of ended ones.

    May run on every node at once. Exit code 6 if the vendor failed for an instance.
    """
    # Not above: these import the metrics, which `serve` must do in its workers, after the fork.
    from receiver.callbacks.intake import Intake
    from receiver.openconnectors.client import Upstream
    from receiver.reconcile.reconciler import Reconciler

    with opened() as (settings, database):
        ring = KeyRing(database, Vault(settings.encryption_keys), settings.default_keys)
        intake = Intake(settings, database, ring, now_ms)
        vendor = Upstream(settings.vendor_url)
        reconciler = Reconciler(settings, database, intake, vendor, actor=actor())
        try:
            while True:
                try:
                    report = reconciler.one_pass(
                        everything=everything, redeliver=redeliver, results=fetch_results
                    )
                    show(asdict(report), _told(report), json_)
                except StoreError as error:
                    if every is None:
                        raise
                    click.echo(f"receiver: {error}", err=True)
                if every is None:
                    break
                time.sleep(every)
        finally:
            vendor.close()
            intake.writer.close()
    sys.exit(UNREACHABLE if report.blocked else 0)


def _told(report: "Report") -> str:
    asked = f"asked for {report.asked} jobs, {report.ended} of them had ended"
    lines = [f"{asked}; {report.found} found in job lists; {report.errors} failed records fetched"]
    if report.queued:
        sent = f", {report.redelivered} sent again" if report.redelivered else ""
        lines.append(f"the vendor holds back {report.queued} deliveries{sent}")
    if report.results:
        lines.append(f"{report.results} result files saved")
    lines += [
        f"not saved: job {one['job']} of {one['instance']}: {one['why']}" for one in report.unsaved
    ]
    lines += [f"the vendor failed for {name}: tried again later" for name in report.blocked]
    lines += [
        f"fate unknown: {one['file']} sent for {one['instance']} at {one['at']};"
        " look at the vendor's job list before sending it again"
        for one in report.unclear
    ]
    return "\n".join(lines)


COMMANDS = (reconcile,)
