"""What the vendor says of a record that it could not load: the cause, and which row it was.

Without the database, which the command line need not load for it.
"""

import re

from receiver.openconnectors.notifications import UNSTORABLE, Number, parse_json

MAX_DIGITS = 18  # of a row's number that is written as text
MAX_MESSAGE = 500
_MAX_READ = 10 * MAX_MESSAGE  # of which so much is left after taking out what differs

_MESSAGES = ("message", "error", "errorMessage", "reason", "description", "statusMessage")
_ROWS = ("row", "rowNumber", "row_number", "line", "lineNumber", "recordNumber", "index")

# What differs between records with the same fault: addresses, quoted values, numbers. Possessive,
# and an address is looked for only where one may begin: else a long word is read again and again.
_VARIABLE = re.compile(r"(?<![^\s@\"'<>])[^\s@\"'<>]++@[^\s@\"'<>]++|\"[^\"]*+\"|'[^']*+'|\b\d++\b")


def cause(entry: str) -> str:
    """Return the message of an entry (JSON text), without what differs between records."""
    value = parse_json(entry.encode())
    words = [value.get(name) for name in _MESSAGES] if isinstance(value, dict) else [value]
    texts = (word for word in words if isinstance(word, str) and not isinstance(word, Number))
    message = next(filter(None, texts), None)
    text = _VARIABLE.sub("…", message[:_MAX_READ]) if message else "no message"
    return UNSTORABLE.sub("\ufffd", text)[:MAX_MESSAGE]


def row_of(entry: object) -> int | None:
    """Return the number of the row, 1 being the first after the header; None if there is none.

    entry -- as read by the standard library's json.
    """
    if not isinstance(entry, dict):
        return None
    for name in _ROWS:
        row = entry.get(name)
        if isinstance(row, str) and row.isascii() and row.isdigit() and len(row) <= MAX_DIGITS:
            row = int(row)
        if isinstance(row, int) and not isinstance(row, bool) and row > 0:
            return row
    return None
