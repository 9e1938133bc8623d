"""Exit codes, the same for every command."""

OK = 0
JOB_FAILED = 1
USAGE = 2
RECORDS_FAILED = 3
STILL_RUNNING = 4
CREDENTIALS = 5
UNREACHABLE = 6
SOFTWARE = 70  # as in sysexits.h: a fault of this program
INTERRUPTED = 130  # as of a program that SIGINT ended

_BY_OUTCOME = {
    "succeeded": OK,
    "failed": JOB_FAILED,
    "cancelled": JOB_FAILED,
    "lost": JOB_FAILED,
    "partial": RECORDS_FAILED,
    "pending": STILL_RUNNING,
    "unknown": STILL_RUNNING,
}


class Failure(Exception):
    """A command cannot do what it was asked; `code` is for scripts, `message` for people."""

    def __init__(self, exit_code: int, code: str, message: str) -> None:
        super().__init__(message)
        self.exit_code, self.code, self.message = exit_code, code, message


def of_outcome(outcome: str) -> int:
    """Give the exit code that tells a script of an outcome."""
    return _BY_OUTCOME.get(outcome, STILL_RUNNING)
