"""Who did what: listing the audit and checking that nothing was changed in it."""

import sys

import click

from receiver.cli.exits import JOB_FAILED, OK
from receiver.cli.output import as_json, show, table
from receiver.cli.serve import opened
from receiver.instances import audit as chain
from receiver.lib.clock import iso

COLUMNS = ("id", "at", "actor", "action", "subject", "detail", "request")


@click.command()
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True)
@click.option(
    "--verify", is_flag=True, help="Check the chain instead; exit code 1 if it is broken."
)
@as_json
def audit(limit: int, verify: bool, json_: bool) -> None:
    """Tell who did what, newest first.

    Note the last hash elsewhere from time to time: only that shows a chain rewritten as a whole.
    """
    if verify:
        _verify(json_)
    with opened() as (_, database), database.read() as session:
        rows = [
            {
                **{name: getattr(entry, name) for name in COLUMNS},
                "at": iso(entry.at),
                "hash": entry.hash.hex(),
            }
            for entry in chain.entries(session, limit)
        ]
    show({"entries": rows}, table(rows, COLUMNS), json_)


def _verify(json_: bool) -> None:
    with opened() as (_, database), database.read() as session:
        faults = list(chain.faults(session))
        newest = [(entry.id, entry.hash.hex()) for entry in chain.entries(session, 1)]
    number, digest = newest[0] if newest else (0, None)
    right = f"{number} entries, nothing was changed; the last hash is {digest}"
    content = {"valid": not faults, "faults": faults, "entries": number, "hash": digest}
    show(content, "\n".join(faults) or right, json_)
    sys.exit(JOB_FAILED if faults else OK)


COMMANDS = (audit,)
