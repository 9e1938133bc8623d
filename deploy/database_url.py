"""What RECEIVER_DATABASE_URL names, for the scripts beside this: a file, or PostgreSQL's database.

database_url.py                      prints the path of SQLite's file
database_url.py PROGRAM ARGUMENT...  runs a program of PostgreSQL's on the database. Its password
goes to the program by the environment, for everybody on the machine can read arguments.
"""

import os
import sys
from urllib.parse import unquote, urlsplit


def print_path() -> None:
    """Print the path, decoded as the receiver does."""
    path = unquote(os.environ["RECEIVER_DATABASE_URL"].removeprefix("sqlite:///"))
    sys.stdout.buffer.write(os.fsencode(path))


def run(program: str, *arguments: str) -> None:
    """Become the program."""
    url = urlsplit(os.environ.pop("RECEIVER_DATABASE_URL"))
    if "password=" in url.query:
        sys.exit("the password belongs before the @ of RECEIVER_DATABASE_URL")
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
        sys.exit(f"{program} is not installed")


if __name__ == "__main__":
    run(*sys.argv[1:]) if sys.argv[1:] else print_path()
