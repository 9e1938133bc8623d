"""The command line. A module of this package is a group of commands; `commands` lists them."""

import io
import os
import signal
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # Ctrl-C ends the process without a word until a command runs, and once it has: an exception
    # would print a traceback there, or get lost in an import.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Where who started this has closed a stream, whatever is opened next would take its place.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    from receiver.cli.commands import run
    from receiver.lib import logs

    logs.configure()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        sys.stdout.flush()
    except OSError:  # `run` has reported it; Python would write again at the end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
