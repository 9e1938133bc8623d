"""The commands, grouped by what they talk to.

Of their modules only the one that runs is imported: a script that asks for a job waits for no
database.
"""

import os
import signal
import sys
from importlib import import_module

import click
from click.shell_completion import shell_complete

from receiver.cli.output import Exit, explain, report

# What each command talks to, which the help is ordered by, and the module that has its function.
_GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "Ask a running receiver (RECEIVER_URL, RECEIVER_TOKEN_FILE)": {
        "jobs": ("jobs", "job", "events", "rejections", "submissions", "listen"),
        "submit": ("objects", "submit", "download"),
    },
    "Work on the database (RECEIVER_DATABASE_URL)": {
        "serve": ("serve", "db"),
        "instances": ("instances", "keys", "tokens", "trigger"),
        "maintain": ("reconcile", "schedules", "prune", "erase", "reread", "audit"),
        "subscriptions": ("watch", "alarms", "subscriptions", "deliveries", "replay"),
        "doctor": ("doctor",),
    },
    "Need neither": {"instances": ("verify",), "demo": ("demo", "sandbox")},
}
_COMPLETE = "_RECEIVER_COMPLETE"  # as the README tells shells
MODULES = {
    name: f"receiver.cli.{module}"
    for modules in _GROUPS.values()
    for module, names in modules.items()
    for name in names
}


class Commands(click.Group):
    """Commands, of which one is imported; in the help, grouped by what they talk to."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Return all names, in the order of the help."""
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, or None."""
        if cmd_name in MODULES:
            self.add_command(getattr(import_module(MODULES[cmd_name]), cmd_name))
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of one that is misspelled, suggest what was meant."""
        try:
            resolved = super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            names = self.list_commands(ctx)
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=names, ctx=ctx
            ) from None
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # all is imported, see `main`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return resolved

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group, with whole sentences."""
        for title, modules in _GROUPS.items():
            names = [name for names in modules.values() for name in names]
            commands = filter(None, (self.get_command(ctx, name) for name in names))
            rows = [(str(command.name), command.get_short_help_str(200)) for command in commands]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bulk-callback-receiver")
def receiver() -> None:
    """Receive, verify and store bulk-job callbacks of SAP Open Connectors.

    Exit codes: 0 ok; 1 the job failed, was cancelled or is lost; 2 usage; 3 ended with failed
    records; 4 still running when the wait was over; 5 credentials or signature; 6 the other side
    cannot be reached.
    """


def run(words: list[str]) -> int:
    """Run a command and return its exit code; errors are one line, or JSON with --json."""
    try:
        # Not click's main(), to which a closed pipe is exit code 1, as of a failed job.
        if instruction := os.environ.get(_COMPLETE):
            return shell_complete(receiver, {}, "receiver", _COMPLETE, instruction)
        with receiver.make_context("receiver", words) as context:
            receiver.invoke(context)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Exit.SOFTWARE * bool(ended.code)
    except BaseException as error:  # noqa: BLE001 - exit code 1 would say that a job failed
        failure = explain(error)
        try:
            report(failure, json_="--json" in words)
        except OSError as unwritable:
            failure = explain(unwritable)
            report(failure, json_=False)
        return failure.exit_code
    return 0
