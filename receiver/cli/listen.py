"""`receiver listen`: callbacks as they come, passed on to a program on one's own machine."""

import re
import time

import click
import httpx

from receiver.cli.output import plain
from receiver.cli.remote import asks_a_receiver
from receiver.client import Callback, Client, Missed
from receiver.lib.http_client import construct, why

CONNECT_SECONDS = 10
ANSWER_SECONDS = 300  # whoever debugs the program needs time
MAX_PAUSE_SECONDS = 8.0

MASKED = "[masked]"  # what the receiver stores of a header that may be a secret

# Of one connection, not of the callback.
_LEFT_OUT = re.compile(
    "(host|connection|content-length|transfer-encoding|keep-alive|expect|te|trailer|upgrade|proxy-.*)"
)


def _local_url(_context: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    if "@" in value:  # every user of a machine can see it
        raise click.BadParameter("must have no user name and no password")
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise click.BadParameter(f"{value}: must be a URL like http://localhost:3000/hook")
    return value


@click.command()
@click.option(
    "--forward-to", metavar="URL", callback=_local_url, help="POST each there, as it came."
)
@click.option("--instance", multiple=True, help="Only of this instance; repeatable.")
@click.option(
    "--types",
    multiple=True,
    type=click.Choice(["event.received"]),
    help="Only events of this type; repeatable.",
)
@click.option("--after", metavar="ID", help="Begin behind this event; else with what comes now.")
@asks_a_receiver
def listen(
    client: Client,
    forward_to: str | None,
    instance: tuple[str, ...],
    types: tuple[str, ...],
    after: str | None,
) -> None:
    """Show callbacks as they come; with --forward-to, pass them on to a program of yours.

    Headers and bytes are as they came, so that the program can verify the signature. One at a time,
    in order; while the program or the receiver is away, it is tried again, and nothing is left out.
    """
    client.instances(instance)
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    with construct(lambda: httpx.Client(timeout=timeout, trust_env=False)) as local:
        for event in client.events(
            instance=instance,
            types=types,
            after=after,
            on_begin=lambda: click.echo("listening; Ctrl-C ends it", err=True),
            on_trouble=lambda error: click.echo(f"{plain(error)}; connecting again", err=True),
        ):
            if isinstance(event, Missed):
                about = f" (event {event.event}, job {event.job})" if event.event else ""
                click.echo(f"missed: {plain(event.detail + about)}", err=True)
                continue
            facts = [event.received_at, event.id, event.instance, event.job, event.kind]
            if forward_to:
                facts.append(_forward(local, forward_to, event))
            click.echo("  ".join(map(plain, facts)))


def _forward(local: httpx.Client, url: str, event: Callback) -> str:
    """POST a callback until it is answered; return the status and how long that took."""
    headers = [
        (name.encode(), value.strip(" \t").encode("latin-1"))
        for name, value in (event.headers or {}).items()
        if not _LEFT_OUT.fullmatch(name) and value != MASKED
    ]
    pause = 0.25
    while True:
        began = time.monotonic()
        try:
            with local.stream("POST", url, content=event.body, headers=headers) as answer:
                return f"{answer.status_code} in {(time.monotonic() - began) * 1000:.0f} ms"
        except httpx.LocalProtocolError:  # another server had let it in
            return "not sent: one of its headers is not valid HTTP"
        except httpx.TransportError as error:
            if pause < 0.5:
                click.echo(f"no answer from {url}: {why(error)}; trying again", err=True)
        time.sleep(pause)
        pause = min(pause * 2, MAX_PAUSE_SECONDS)


COMMANDS = (listen,)
