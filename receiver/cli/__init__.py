"""The command line. Exit codes: see `exits`."""

import json
import sys
from importlib import import_module

import click

from receiver import __version__
from receiver.cli.exits import INTERRUPTED, SOFTWARE, UNREACHABLE, USAGE, Failure
from receiver.errors import CredentialError, SettingsError, StoreError
from receiver.lib import logs

_ROOMS = {
    "receiver.cli.serve": ("serve", "db", "keys", "tokens"),
    "receiver.cli.instances": ("instances",),
    "receiver.cli.jobs": ("jobs", "job", "events", "rejections"),
    "receiver.cli.submit": ("objects", "submit", "download"),
    "receiver.cli.reconcile": ("reconcile",),
    "receiver.cli.maintain": ("prune", "erase"),
    "receiver.cli.verify": ("verify", "trigger"),
    "receiver.cli.audit": ("audit",),
    "receiver.cli.doctor": ("doctor",),
    "receiver.cli.watch": ("watch", "alarms"),
    "receiver.cli.demo": ("demo",),
    "receiver.openconnectors.sandbox.command": ("sandbox",),
}
_ROOM = {name: room for room, names in _ROOMS.items() for name in names}


class Rooms(click.Group):
    """Commands of which one is imported: a script that asks for a job waits for no database."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in order."""
        return sorted({*super().list_commands(ctx), *_ROOM})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name in _ROOM:
            for command in import_module(_ROOM[cmd_name]).COMMANDS:
                self.add_command(command)
        return super().get_command(ctx, cmd_name)


@click.group(cls=Rooms)
@click.version_option(__version__, package_name="bulk-callback-receiver")
def receiver() -> None:
    """Receive, verify and keep bulk-job callbacks of SAP Open Connectors."""


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
