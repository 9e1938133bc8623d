"""How answers are printed: JSON for scripts, columns for people."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import click

from receiver.lib.clock import iso

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


def show(content: Any, text: str, json_: bool) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Print an answer: `content` as JSON, or `text`."""
    click.echo(json.dumps(content, indent=2) if json_ else text)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Write rows under their column names; what a stranger sent cannot steer the terminal."""
    if not rows:
        return "none"
    cells = [[plain(row[column]) for column in columns] for row in rows]
    heads = [column.replace("_", " ").upper() for column in columns]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (heads, *cells)
    )
    return "\n".join(lines)


def plain(value: object) -> str:
    """Write a value on one line, without control characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(plain, value))
    return "".join(
        "\ufffd" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") else character
        for character in str(value)
    )


def timed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Show the times of rows read from the database as the API does."""
    return [
        {name: iso(value) if name.endswith("_at") else value for name, value in row.items()}
        for row in rows
    ]
