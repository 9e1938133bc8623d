"""The whole way of a callback, from the public URL to the database, proxies and all."""

import secrets
from urllib.parse import urlsplit

import httpx

from receiver.callbacks.events import get_event
from receiver.callbacks.trigger import TIMEOUT_SECONDS, send_signed
from receiver.cli.checkup import Finding, Patient, fail, warn, well
from receiver.cli.checkup.setup import newest_key
from receiver.database import durability
from receiver.lib.clock import now_ms

MOST_PROXIES = 16


def public_url(patient: Patient) -> Finding:
    """Whether a signed callback gets through the public URL into this very database."""
    name, base, signer = "public url", patient.settings.public_url, newest_key(patient)
    if base is None:
        told = "RECEIVER_PUBLIC_URL is not set: uploads through us are refused, this is not tested"
        return warn(name, told, "set it to the URL under which the vendor reaches us")
    if signer is None:
        return warn(name, "not tested: there is no usable key", "see the checks of keys")
    instance, key = signer
    try:
        sent = send_signed(f"{base}/callbacks/{instance}", instance, key, now_ms())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        told = f"{base} does not answer: {type(error).__name__}"
        return fail(name, told, "look at DNS, firewall, the proxy and `receiver serve`")
    if sent.event is None:
        advice = {
            401: "the receiver there has another key, or a proxy changes bodies or headers",
            503: "the receiver there cannot reach its database",
        }.get(sent.status, "something else than the receiver answers: look at the proxy")
        return fail(name, f"a signed callback got {sent.status} from {base}", advice)
    if get_event(patient.database, sent.event) is None:
        told = f"{base} stored a signed callback, but not in this database"
        return fail(name, told, "doctor and receiver must have the same RECEIVER_DATABASE_URL")
    return well(name, f"a signed callback through {base} was stored as event {sent.event}")


def proxies(patient: Patient) -> Finding:
    """Whether who sends is known by address: a sender must not be able to choose it.

    A delivery to an instance that does not exist claims to come from elsewhere, by as many proxies
    as may be trusted; it is counted under the address that the receiver believes.
    """
    name, base, hops = "proxies", patient.settings.public_url, patient.settings.trusted_proxies
    if base is None:
        return warn(name, "not tested", "set RECEIVER_PUBLIC_URL")
    forged = f"198.18.{secrets.randbelow(256)}.{secrets.randbelow(256)}"  # nobody's, by RFC 2544
    before = durability.refusals_of(patient.database, forged)
    headers = {"X-Forwarded-For": ", ".join([forged] * MOST_PROXIES)}
    try:
        httpx.post(f"{base}/callbacks/.doctor", headers=headers, timeout=TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL):
        return warn(name, "not tested: there was no answer", "see the check of the public URL")
    if durability.refusals_of(patient.database, forged) > before:
        told = f"a sender can choose its address: {hops} proxies are trusted, but fewer are there"
        return fail(name, told, "set RECEIVER_TRUSTED_PROXIES to how many proxies there are")
    if not hops and urlsplit(base).scheme == "https":
        told = "none is trusted, but one must be there to end TLS: all senders look like it"
        return warn(name, told, "set RECEIVER_TRUSTED_PROXIES to how many proxies there are")
    return well(name, f"{hops} trusted, and a forged X-Forwarded-For was not believed")
