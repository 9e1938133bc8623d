"""Secrets are given as files, never as arguments, which every user of a machine can see."""

import click

from receiver.cli.exits import USAGE, Failure
from receiver.settings import secret_from_file

secret_file = click.Path(dir_okay=False, allow_dash=True)


def secret(path: str | None) -> bytes | None:
    """Read a secret's file, less one final line end; `-` is standard input.

    Raises a Failure if it cannot be read.
    """
    if path is None:
        return None
    try:
        return secret_from_file("/dev/stdin" if path == "-" else path)
    except OSError as error:
        raise Failure(USAGE, "unreadable_file", f"{path}: {error.strerror}") from None
