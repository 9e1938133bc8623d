"""Whether a receiver is set up so that it keeps what it promises; one Finding for each question."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from receiver.database.engine import Database
from receiver.instances.encryption import Vault
from receiver.lib.clock import now_ms
from receiver.settings import Settings

Level: TypeAlias = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. advice -- what to do about it; empty if it is well."""

    check: str
    level: Level
    told: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at. clock -- this machine's, ms since the epoch."""

    settings: Settings
    database: Database
    vault: Vault
    clock: Callable[[], int] = now_ms


Check: TypeAlias = Callable[[Patient], Finding]


def well(check: str, told: str) -> Finding:
    """Say that all is well."""
    return Finding(check, "ok", told)


def warn(check: str, told: str, advice: str) -> Finding:
    """Say what may go wrong."""
    return Finding(check, "warn", told, advice)


def fail(check: str, told: str, advice: str) -> Finding:
    """Say what does go wrong, or will."""
    return Finding(check, "fail", told, advice)
