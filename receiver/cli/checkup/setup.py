"""Keys, instances and settings: what an operator decided."""

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from receiver.cli.checkup import Finding, Patient, fail, warn, well
from receiver.errors import CredentialError
from receiver.instances import registry
from receiver.instances.keys import InstanceKeys, Keys
from receiver.openconnectors.signatures import SHORT_KEY_BYTES, SignatureKey

HOUR_SECONDS = 3600
LONGEST_SCHEDULE_SECONDS = 14 * 24 * HOUR_SECONDS


def keys(patient: Patient) -> Finding:
    """Whether all keys and vendor secrets open, and none is easily guessed or shared."""
    ring = _ring(patient)
    broken = [name for name, held in ring.items() if held.broken] + _sealed_secrets(patient)
    if broken:
        advice = "add the key they were sealed with to RECEIVER_ENCRYPTION_KEYS, or add them anew"
        return fail("keys", f"secrets of {_named(broken)} cannot be opened", advice)
    short = [
        f"{key.id} of {name}"
        for name, held in ring.items()
        for key in held.keys
        if len(key.secret) < SHORT_KEY_BYTES
    ]
    if short:
        told = f"shorter than {SHORT_KEY_BYTES} bytes: {', '.join(short)}"
        return warn("keys", told, "choose a longer key at the vendor, and rotate")
    shared = _shared(ring)
    if shared:
        told = f"{' and '.join(shared)} have the same key"
        return warn("keys", told, "give each a key of its own: bodies can be replayed across")
    return well(
        "keys", f"{sum(len(held.keys) for held in ring.values())} in use, all can be opened"
    )


def instances(patient: Patient) -> Finding:
    """Whether there is an instance, and none without a key."""
    ring = _ring(patient)
    without = [name for name, held in ring.items() if not held.keys and not held.broken]
    if not ring:
        advice = "run `receiver instances add NAME --signature-key-file FILE`"
        return fail("instances", "there is none, so every callback is refused", advice)
    if without:
        advice = "run `receiver keys add INSTANCE --file FILE`, or remove it"
        return fail("instances", f"all callbacks of {_named(without)} are refused: no key", advice)
    return well("instances", _named(list(ring)))


def schedule(patient: Patient) -> Finding:
    """Whether the vendor's retry schedule can be meant so."""
    waits = patient.settings.vendor_retry_seconds
    total = sum(waits)
    told = f"{len(waits)} tries again, the last {total / HOUR_SECONDS:.1f} h after the first"
    odd = any(after < before for before, after in pairwise(waits))
    if odd or not HOUR_SECONDS <= total <= LONGEST_SCHEDULE_SECONDS:
        advice = "OPEN_CONNECTORS_RETRY_SECONDS is in seconds, the shortest wait first"
        return warn("schedule", told, advice)
    return well("schedule", told)


def workers(_patient: Patient) -> Finding:
    """Whether /metrics tells of all workers; `receiver serve` sees to it by itself."""
    name, advice = "PROMETHEUS_MULTIPROC_DIR", "under plain gunicorn, set it to an empty folder"
    folder = os.environ.get(name)
    several = os.environ.get("WEB_CONCURRENCY", "1") not in ("", "0", "1")
    if folder is None and several:
        told = f"WEB_CONCURRENCY asks for several workers, but {name} is not set"
        return warn("workers", f"{told}: /metrics would tell of one", advice)
    if folder is not None and not os.access(Path(folder), os.W_OK | os.X_OK):
        return fail("workers", f"{name} is no folder that can be written to", advice)
    return well("workers", "metrics of all workers are counted")


def _ring(patient: Patient) -> Mapping[str, InstanceKeys]:
    keys = Keys(patient.vault, patient.settings.default_keys)
    return keys.fresh(patient.database).instances


def _sealed_secrets(patient: Patient) -> list[str]:
    broken = []
    with patient.database.read() as session:
        for name in registry.with_vendor_secrets(session):
            try:
                registry.vendor_secrets(session, patient.vault, name)
            except CredentialError:
                broken.append(name)
    return broken


def _shared(ring: Mapping[str, InstanceKeys]) -> list[str]:
    holders: dict[bytes, set[str]] = {}
    for name, held in ring.items():
        for key in held.keys:
            holders.setdefault(key.secret, set()).add(name)
    return sorted(next((names for names in holders.values() if len(names) > 1), set()))


def _named(names: list[str]) -> str:
    return ", ".join(sorted(set(names)))


def newest_key(patient: Patient) -> tuple[str, SignatureKey] | None:
    """Give an instance and its newest key, to test the way of a callback with."""
    usable = [(name, held.keys[0]) for name, held in _ring(patient).items() if held.keys]
    return min(usable, default=None, key=lambda each: each[0])
