"""The command line. Exit codes: see `exits`."""

import json
import sys

import click

from receiver import __version__, logs
from receiver.cli import (
    audit,
    check,
    demo,
    doctor,
    forget,
    instances,
    operate,
    query,
    reconcile,
    submit,
    watch,
)
from receiver.cli.exits import INTERRUPTED, SOFTWARE, UNREACHABLE, USAGE, Failure
from receiver.errors import CredentialError, SettingsError, StoreError
from receiver.sandbox.command import command as sandbox


@click.group()
@click.version_option(__version__, package_name="bulk-callback-receiver")
def receiver() -> None:
    """Receive, verify and keep bulk-job callbacks of SAP Open Connectors."""


for command in (
    *operate.COMMANDS,
    *instances.COMMANDS,
    *query.COMMANDS,
    *submit.COMMANDS,
    *reconcile.COMMANDS,
    *forget.COMMANDS,
    *check.COMMANDS,
    *audit.COMMANDS,
    *doctor.COMMANDS,
    *watch.COMMANDS,
    demo.demo,
    sandbox,
):
    receiver.add_command(command)


def main() -> None:
    """Run a command and leave with its exit code; errors are one line, or JSON with --json."""
    logs.configure()
    try:
        sys.exit(receiver.main(standalone_mode=False))
    except Failure as error:
        _fail(error.code, error.message, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", "interrupted", INTERRUPTED)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        usage = f"\n{context.get_usage()}" if context else ""
        _fail("usage", error.format_message() + usage, USAGE)
    except (SettingsError, CredentialError) as error:
        _fail(error.reason, str(error), USAGE)
    except StoreError as error:
        _fail(error.reason, str(error), UNREACHABLE)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(SOFTWARE)
    except Exception as error:  # noqa: BLE001 - exit code 1 would say that a job failed
        _fail("internal", f"a fault of this program: {type(error).__name__}", SOFTWARE)


def _fail(code: str, message: str, exit_code: int) -> None:
    if "--json" in sys.argv:
        click.echo(json.dumps({"error": {"code": code, "detail": message}}))
    else:
        click.echo(f"receiver: {message}", err=True)
    sys.exit(exit_code)
