"""The command line. A module of this package is a group of commands, which `commands` lists."""

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    code = 130  # as of a program that SIGINT ended
    try:
        # Not above: Ctrl-C may come while these are imported, and would print a traceback.
        from receiver.cli.commands import run
        from receiver.lib import logs

        logs.configure()
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("receiver: interrupted\n")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nor while threads end
    try:
        sys.stdout.flush()
    except OSError:  # `run` has reported it; Python would write again at the end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
