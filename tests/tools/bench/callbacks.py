"""The write side: load on one contender at a time; what it acknowledged against what it keeps."""

from bench import Bench, Row
from bodies import STYLES
from contenders import Contender
from databases import Base
from machine import Unavailable, cpu_seconds, post_once
from processes import ToolError, free_port
from wrk import Load, post


class Violation(ToolError):
    """A contender acknowledged what it does not have, or has what was never sent."""


def measure(bench: Bench, contender: Contender, connections: int) -> None:
    """Load a contender with an empty database once, and add what was seen."""
    row = Row(contender.name, contender.title, contender.group, connections)
    base = _database(bench, contender)
    try:
        loads, cpu = _loaded(bench, contender, base, connections)
        if base is not None:
            check(bench, contender, base, loads)
        bench.results.add(row, loads[-1], cpu)
    except Unavailable as why:
        bench.results.missing[contender.name] = str(why)
    finally:
        if base is not None:
            bench.databases.drop(base)


def check(bench: Bench, contender: Contender, base: Base, loads: list[Load]) -> None:
    """Compare what was acknowledged with what is stored. Raises Violation."""
    sent = bench.bodies.identities(contender.style, loads[-1].position)
    stored = [_identity(found[0]) for found in base.rows(contender.stored)]
    unproven = sum(load.unanswered + load.refused for load in loads)
    faults = {
        "bodies were sent twice: make more of them": any(load.wrapped for load in loads),
        "a body is stored twice": len(stored) != len(set(stored)),
        "a body is stored that was not sent": not set(stored) <= sent,
        f"{len(sent) - len(stored)} bodies are missing, {unproven} were not acknowledged": (
            len(sent) - len(stored) > unproven
        ),
        "the job of a stored body has not ended": (
            contender.unended is not None and bool(base.rows(contender.unended))
        ),
    }
    broken = [fault for fault, found in faults.items() if found]
    if broken:
        raise Violation(f"{contender.name}: {'; '.join(broken)}")


def _database(bench: Bench, contender: Contender) -> Base | None:
    if contender.database is None:
        return None
    if contender.group == "ours":
        return bench.databases.migrated(contender.database)
    return bench.databases.empty(contender.database)


def _loaded(
    bench: Bench, contender: Contender, base: Base | None, connections: int
) -> tuple[list[Load], float]:
    """Warm a contender up and load it; with the seconds of processor time of the latter."""
    port = free_port()
    start = contender.start(port, base, connections)
    bodies = bench.bodies.file(contender.style)
    loads: list[Load] = []
    with bench.started(start, port, contender.ready, contender.ready_status) as server:
        roots = [server.pid, *bench.databases.processes(base)]
        if contender.group != "reference":
            _refuses(contender, port)
        for seconds in (bench.options.warm_up, bench.options.seconds):
            before = cpu_seconds(*roots)
            loads.append(
                post(
                    port,
                    contender.path,
                    bodies,
                    STYLES[contender.style].header,
                    connections=connections,
                    seconds=seconds,
                    start=loads[-1].position if loads else 0,
                    repeat=contender.repeat,
                )
            )
            cpu = cpu_seconds(*roots) - before
    if not loads[-1].acknowledged:
        told = f"{contender.name} acknowledged nothing of {loads[-1].answered} answered"
        raise Unavailable(told) if contender.group == "peers" else ToolError(told)
    return loads, cpu


def _refuses(contender: Contender, port: int) -> None:
    """See that a signature of another body is refused. Raises ToolError."""
    style = STYLES[contender.style]
    headers = {style.header: style.sign(style.make(0))}
    status = post_once(port, contender.path, style.make(1), headers)
    if status < 400:
        raise ToolError(f"{contender.name} takes any signature: {status}")


def _identity(found: object) -> object:
    return bytes(found) if isinstance(found, memoryview) else found
