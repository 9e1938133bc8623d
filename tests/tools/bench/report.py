"""What was measured, as text, JSON and a picture."""

import json
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench import Options, Results, Row
from goals import Goal
from machine import say

COLOURS = {"reference": "#8c8c8c", "ours": "#1b7837", "peers": "#4575b4"}
_WRITES = ("reference", "ours", "peers", "prune")  # groups of rows that are about callbacks
_LEFT = 430  # of the bars
_UNITS = {"memory": "MB", "startup": "s", "lookup": "ms"}
_VERDICTS = {True: "met", False: "NOT MET", None: "not measured"}


def show(results: Results, goals: list[Goal], *, complete: bool) -> None:
    """Print the tables. complete -- whether everything was to be measured, so that gaps count."""
    reference = results.row("reference")
    say(f"\n{'callbacks':64} conn      req/s (min-max)        p50 ms   p99 ms  ratio  CPU us")
    for row in _of(results, *_WRITES):
        say(_line(row, reference))
    for name, why in results.missing.items():
        say(f"{name:64} not available: {why}")
    asked = results.row("read-reference")
    say(f"\n{'reads':64} conn      req/s (min-max)        p50 ms   p99 ms  ratio  CPU us")
    for row in _of(results, "reads"):
        say(_line(row, asked))
    say("\nfigures (medians)")
    for name in results.figures:
        unit = next((unit for prefix, unit in _UNITS.items() if name.startswith(prefix)), "")
        say(f"{name:64} {results.figure(name):8.2f} {unit}")
    say(f"\n{'goals':78} wanted   measured")
    for goal in goals:
        if goal.met is None and not complete:
            continue
        measured = "-" if goal.measured is None else f"{goal.measured:.2f}"
        say(f"{goal.title:78} {goal.wanted:7} {measured:>9}  {_VERDICTS[goal.met]}")
    for note in results.notes:
        say(f"note: {note}")


def write(
    folder: Path, results: Results, goals: list[Goal], options: Options, machine: dict[str, Any]
) -> None:
    """Write results.json, results.md and results.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine,
        "options": asdict(options),
        "rows": [_facts(row, results) for row in results.rows.values()],
        "not_available": results.missing,
        "figures": results.figures,
        "goals": [{**asdict(goal), "measured": _finite(goal.measured)} for goal in goals],
        "notes": results.notes,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    (folder / "results.md").write_text(tables(content), encoding="utf-8")
    (folder / "results.svg").write_text(picture(results, machine), encoding="utf-8")


def tables(content: dict[str, Any]) -> str:
    """Give what results.json has as tables in Markdown."""
    lines = [
        "# What `make bench` measured",
        "",
        "See [scaling.md](../scaling.md) for what it means.",
    ]
    for title, groups in (("callbacks", _WRITES), ("reads", ("reads",))):
        lines += [
            "",
            f"| {title} | connections | req/s (min-max) | p50 ms | p99 ms | ratio | CPU µs |",
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        for row in content["rows"]:
            if row["group"] in groups:
                spread = f"{row['rate']:,.0f} ({row['rate_min']:,.0f}-{row['rate_max']:,.0f})"
                ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
                cpu = "-" if row["cpu_us"] is None else f"{row['cpu_us']:.0f}"
                times = f"{row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {ratio} | {cpu}"
                lines.append(f"| {row['title']} | {row['connections']} | {spread} | {times} |")
    lines += ["", "| goal | wanted | measured | |", "|---|---|---|---|"]
    for goal in content["goals"]:
        measured = "-" if goal["measured"] is None else f"{goal['measured']:.2f}"
        verdict = _VERDICTS[goal["met"]].lower()
        lines.append(f"| {goal['title']} | {goal['wanted']} | {measured} | {verdict} |")
    lines += [f"\nNote: {note}" for note in content["notes"]]
    return "\n".join(lines) + "\n"


def picture(results: Results, machine: dict[str, Any]) -> str:
    """Draw the rates at 32 connections: bars, and lines from the least to the greatest round."""
    rows = [row for row in _of(results, "reference", "ours", "peers") if row.connections == 32]
    widest = max((row.spread[1] for row in rows), default=1.0)
    height = 24 * len(rows) + 70
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}">',
        '<g font-family="sans-serif" font-size="12">',
        f'<rect width="900" height="{height}" fill="#ffffff"/>',
        '<text x="10" y="22" font-size="15">Callbacks a second at 32 connections</text>',
    ]
    for place, row in enumerate(rows):
        lines += _bar(row, 40 + 24 * place, 390 / widest)
    cores = len(machine["cores"])
    told = (
        f"Medians; lines from the least to the greatest round. {cores} cores, load generator too."
    )
    lines += [f'<text x="10" y="{height - 12}" fill="#555555">{escape(told)}</text>', "</g></svg>"]
    return "\n".join(lines) + "\n"


def _bar(row: Row, y: int, scale: float) -> list[str]:
    least, greatest = (_LEFT + rate * scale for rate in row.spread)
    colour = COLOURS[row.group]
    middle = y + 9
    return [
        f'<text x="{_LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(row.title)}</text>',
        f'<rect x="{_LEFT}" y="{y}" width="{row.rate * scale:.1f}" height="18" fill="{colour}"/>',
        f'<path d="M{least:.1f} {middle}H{greatest:.1f}" stroke="#000000"/>',
        f'<text x="{greatest + 6:.1f}" y="{y + 13}">{row.rate:,.0f}</text>',
    ]


def _of(results: Results, *groups: str) -> list[Row]:
    rows = [row for row in results.rows.values() if row.group in groups]
    return sorted(rows, key=lambda row: groups.index(row.group))


def _line(row: Row, against: Row | None) -> str:
    least, greatest = row.spread
    ratio = f"{row.rate / against.rate:6.2f}" if against and against.rate else "     -"
    rates = f"{row.rate:10,.0f} ({least:,.0f}-{greatest:,.0f})"
    cpu = "" if row.cpu is None else f"{row.cpu:7.0f}"
    times = f"{row.p50:8.1f} {row.p99:8.1f}"
    return f"{row.title:64} {row.connections:4} {rates:30} {times} {ratio} {cpu}"


def _facts(row: Row, results: Results) -> dict[str, Any]:
    least, greatest = row.spread
    against = results.row("read-reference" if row.group == "reads" else "reference")
    return {
        "name": row.name,
        "title": row.title,
        "group": row.group,
        "connections": row.connections,
        "rate": round(row.rate, 1),
        "rate_min": round(least, 1),
        "rate_max": round(greatest, 1),
        "p50_ms": _finite(row.p50),
        "p99_ms": _finite(row.p99),
        "cpu_us": None if row.cpu is None else round(row.cpu, 1),
        "ratio": round(row.rate / against.rate, 3) if against and against.rate else None,
        "rounds": [asdict(load) for load in row.loads],
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinity; null says that nothing was answered."""
    return value if value is not None and isfinite(value) else None
