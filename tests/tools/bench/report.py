"""What was measured, as tables in Markdown."""

from bench import Options, Results, Row
from goals import Goal

_WRITES = ("reference", "ours", "peers", "prune")  # groups of rows that are about callbacks
_UNITS = {"memory": "MB", "startup": "s", "lookup": "ms", "fdatasync": "ms"}
_VERDICTS = {True: "met", False: "not met", None: "not measured"}


def tables(results: Results, goals: list[Goal], options: Options, machine: str) -> str:
    """Give all that was measured; goals that were not are told where everything was to be."""
    told = [goal for goal in goals if goal.met is not None or options.only == ("*",)]
    how = f"{options.rounds} rounds, {options.seconds} s of load for each row; {machine}."
    lines = [
        *("# What `make bench` measured", ""),
        *("See [scaling.md](../scaling.md) for what it means.", "", how, ""),
        *_rows("callbacks", results.of(*_WRITES), results.row("reference")),
        *_rows("reads", results.of("reads"), results.row("read-reference")),
        *_table("median|", [f"{name}|{_figure(results, name)}" for name in results.figures]),
        *_table("goal|wanted|measured|", map(_goal, told)),
        *(f"Not available: {name}: {why}" for name, why in results.missing.items()),
        *(f"Note: {note}" for note in results.notes),
    ]
    return "\n".join(lines) + "\n"


def _table(head: str, rows) -> list[str]:
    lines = [head, "|".join("---" for _ in head.split("|")), *rows]
    return [f"| {line.replace('|', ' | ').rstrip()} |".replace("  ", " ") for line in lines] + [""]


def _rows(title: str, rows: list[Row], against: Row | None) -> list[str]:
    head = f"{title}|connections|req/s (min-max)|p50 ms|p99 ms|ratio|CPU µs"
    return _table(head, [_row(row, against) for row in rows])


def _row(row: Row, against: Row | None) -> str:
    least, greatest = row.spread
    ratio = f"{row.rate / against.rate:.2f}" if against and against.rate else "-"
    cpu = "-" if row.cpu is None else f"{row.cpu:.0f}"
    rates = f"{row.rate:,.0f} ({least:,.0f}-{greatest:,.0f})"
    return f"{row.title}|{row.connections}|{rates}|{row.p50:.1f}|{row.p99:.1f}|{ratio}|{cpu}"


def _figure(results: Results, name: str) -> str:
    return f"{results.figure(name):.2f} {_UNITS[name.partition('-')[0]]}"


def _goal(goal: Goal) -> str:
    measured = "-" if goal.measured is None else f"{goal.measured:.2f}"
    return f"{goal.title}|{goal.wanted}|{measured}|{_VERDICTS[goal.met]}"
