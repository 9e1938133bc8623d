"""What a page says that is printed, as a pattern for what is."""

import re

# What differs from walk to walk: ids of keys and events, times, and what is left out.
VARYING = re.compile(
    r"(^…\n|…$)|\b(key-[0-9a-f]{8}|[0-9a-f]{16})\b|(\d{4}-\d\d-\d\dT[\d:.]+Z)", re.MULTILINE
)


def pattern(printed: str) -> str:
    """A pattern for what is printed: an id that stands twice is twice the same."""
    groups: dict[str, str] = {}
    written, at = "", 0
    for each in VARYING.finditer(printed):
        written += re.escape(printed[at : each.start()])
        at = each.end()
        left_out, id_, _ = each.groups()
        if left_out:
            written += r"(?:.*\n)*?" if left_out.endswith("\n") else ".*"
        elif id_ in groups:
            written += f"(?P={groups[id_]})"
        elif id_:
            groups[id_] = f"id{len(groups)}"
            shape = "key-[0-9a-f]{8}" if id_.startswith("key-") else "[0-9a-f]{16}"
            written += f"(?P<{groups[id_]}>{shape})"
        else:
            written += r"\d{4}-\d\d-\d\dT[\d:.]+Z"
    return written + re.escape(printed[at:])
