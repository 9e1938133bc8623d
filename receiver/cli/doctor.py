"""`receiver doctor`: is everything set up so that nothing is lost?"""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict

import click

from receiver.cli.checkup import Check, Finding, Patient, fail, machine, selftest, setup
from receiver.cli.exits import JOB_FAILED, OK
from receiver.cli.output import as_json, show
from receiver.database.engine import Database
from receiver.errors import StoreError
from receiver.instances.encryption import Vault
from receiver.settings import Settings

CHECKS: dict[str, Check] = {
    "database": machine.writable,
    "durability": machine.durable,
    "clock": machine.clocks,
    "disk": machine.disk,
    "keys": setup.keys,
    "instances": setup.instances,
    "public url": selftest.public_url,
    "proxies": selftest.proxies,
}
OFFLINE: dict[str, Check] = {"schedule": setup.schedule, "workers": setup.workers}


@click.command()
@as_json
def doctor(json_: bool) -> None:
    """Check that everything is set up so that nothing is lost; nothing is changed.

    A signed test callback is sent through RECEIVER_PUBLIC_URL. Exit code 1 if a check fails; what
    only may go wrong is a warning.
    """
    settings = Settings.from_env(os.environ)
    database = Database(settings.database_url)
    try:
        found = list(examine(Patient(settings, database, Vault(settings.encryption_keys))))
    finally:
        database.close()
    text = "\n".join(map(_line, found))
    show({"checks": [asdict(finding) for finding in found]}, text, json_)
    sys.exit(JOB_FAILED if any(finding.level == "fail" for finding in found) else OK)


def examine(patient: Patient) -> Iterator[Finding]:
    """Do every check, or without a database of this release, those that need none."""
    first = _done("schema", machine.schema, patient)
    yield first
    checks = OFFLINE if first.level == "fail" else {**CHECKS, **OFFLINE}
    for name, check in checks.items():
        yield _done(name, check, patient)


def _done(name: str, check: Check, patient: Patient) -> Finding:
    try:
        return check(patient)
    except StoreError as error:
        return fail(name, str(error), "see `The database is down` in docs/runbook.md")


def _line(finding: Finding) -> str:
    advice = f"; {finding.advice}" if finding.advice else ""
    return f"{finding.level:<5} {finding.check:<11} {finding.told}{advice}"


COMMANDS = (doctor,)
