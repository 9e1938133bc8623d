"""A job's id alone names no job: each statement of every test that goes by one names the instance.

Installed by conftest.py for all engines; what the hot path sends past them is read by
test_plans.py.
"""

import functools
import re

from sqlalchemy import Engine, event

# Of each table that has a job's id: comparing it, by whatever name the statement gives the table.
BY_ID = re.compile(r"\b(?:jobs\.id|job|[a-z_0-9]+\.job)\s*(?:=|IN\b)", re.IGNORECASE)
WITHOUT_VALUES = re.compile(r"^UPDATE .*?( WHERE |$)", re.IGNORECASE | re.DOTALL)


@functools.lru_cache(10_000)
def names_the_instance(statement: str) -> bool:
    """Whether a statement that goes by a job's id says of which instance.

    In the condition of a change; a question may instead give the instance with each row.
    """
    conditions = WITHOUT_VALUES.sub("WHERE ", statement)
    return not BY_ID.search(conditions) or "instance" in conditions


def install() -> None:
    """Have every statement of this process looked at."""

    @event.listens_for(Engine, "before_cursor_execute")
    def look(_connection, _cursor, statement, *_more) -> None:
        assert names_the_instance(statement), statement
