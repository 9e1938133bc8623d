"""Run a program of PostgreSQL's on the receiver's database: libpq.py PROGRAM ARGUMENT...

RECEIVER_DATABASE_URL names the database. Its password goes to the program by the environment, for
everybody on the machine can read arguments.
"""

import os
import sys
from urllib.parse import unquote, urlsplit


def main(program: str, *arguments: str) -> None:
    """Become the program."""
    url = urlsplit(os.environ.pop("RECEIVER_DATABASE_URL"))
    if "password=" in url.query:
        sys.exit("libpq: the password belongs before the @ of RECEIVER_DATABASE_URL")
    user, at, host = url.netloc.rpartition("@")
    bare = url._replace(scheme="postgresql", netloc=user.partition(":")[0] + at + host)
    own = {"PGCONNECT_TIMEOUT": "10"}
    if url.password:
        own["PGPASSWORD"] = unquote(url.password)
    try:
        os.execvpe(  # noqa: S606 - no shell is wanted  # nosec B606
            program, [program, f"--dbname={bare.geturl()}", *arguments], {**os.environ, **own}
        )
    except FileNotFoundError:
        sys.exit(f"libpq: {program} is not installed")


if __name__ == "__main__":
    main(*sys.argv[1:])
