"""What tokens of the scope `operate` may do: each page first says what it will do, then does it."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from flask import Response, request, url_for

from receiver.callbacks.quarantine import Quarantine
from receiver.callbacks.trigger import send_test
from receiver.database.engine import Session
from receiver.database.models import Rejection
from receiver.errors import CredentialError, NotFound
from receiver.instances import keys as signature_keys
from receiver.openconnectors.signatures import SHORT_KEY_BYTES
from receiver.web import services
from receiver.web.api import close_job, record_entry
from receiver.web.auth import current_bearer, require_instance, require_scope
from receiver.web.dashboard.auditing import note
from receiver.web.dashboard.instances import the_instance
from receiver.web.dashboard.job import called
from receiver.web.dashboard.pages import blueprint, page
from receiver.web.dashboard.refusals import the_refusal
from receiver.web.dashboard.sign_in import see, tell

MAX_WAIT_MS = 5_000  # for a turn to ask the vendor; it holds a thread

View = Callable[..., Response]


def acts(rule: str) -> Callable[[View], View]:
    """Make a view a page that acts: GET says what POST will do."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(**arguments: Any) -> Response:  # noqa: ANN401 - the route's
            require_scope(current_bearer(), "operate")
            try:
                return view(**arguments)
            except CredentialError as error:  # its text never holds the secret
                title = "This cannot be done now"
                return page("error.html", 409, title=title, detail=str(error))

        blueprint.add_url_rule(rule, view.__name__, guarded, methods=["GET", "POST"])
        return view

    return decorate


@acts("/jobs/<string:id>/ask")
def ask(id: str) -> Response:  # noqa: A002
    """Ask the vendor where a job stands."""
    rows = called(id)
    if len(rows) != 1:
        raise NotFound(f"No job {id} is known there.")
    row = rows[0]
    back = url_for("dashboard.job", id=row.id, instance=row.instance)
    if request.method == "GET":
        return _confirm(
            f"Ask the vendor about job {row.id}",
            "Ask now",
            back,
            f"One request goes to the vendor with the secrets of {row.instance}.",
            "The answer enters the timeline as a poll, and may change the outcome.",
        )
    told = services().reconciler.ask(row.instance, row.id, current_bearer().name, MAX_WAIT_MS)
    _done("job.ask", f"{row.instance}/{row.id}", f"the vendor says {told.status}")
    return _back(back, f"The vendor says {told.status}.")


@acts("/jobs/<string:id>/close")
def close(id: str) -> Response:  # noqa: A002
    """Give a job up."""
    rows = called(id)
    if len(rows) != 1:
        raise NotFound(f"No job {id} is known there.")
    row = rows[0]
    back = url_for("dashboard.job", id=row.id, instance=row.instance)
    if request.method == "GET":
        return _confirm(
            f"Close job {row.id}",
            "Close it",
            back,
            "Its outcome becomes `lost`, and the vendor is no longer asked for it.",
            "Any later callback opens it again.",
        )
    close_job(services(), current_bearer(), row)
    return _back(back, "The job is closed.")


@acts("/instances/<string:name>/resend")
def resend(name: str) -> Response:
    """Have the vendor send what it holds back."""
    back = url_for("dashboard.instance", name=the_instance(name).name)
    if request.method == "GET":
        return _confirm(
            f"Re-send the deliveries queued for {name}",
            "Re-send",
            back,
            "The vendor is asked which deliveries it holds back, and to send them all again.",
            "Each comes as a callback; those that are known already change nothing.",
            "The vendor's queue may be the whole organization's: other receivers get theirs too.",
        )
    held = services().reconciler.resend(name, MAX_WAIT_MS)
    _done("deliveries.resend", name, f"{held} were queued")
    told = (
        f"The vendor was told to send {held} again." if held else "The vendor holds back nothing."
    )
    return _back(back, told)


@acts("/instances/<string:name>/test")
def test(name: str) -> Response:
    """Send a signed test callback through the public URL."""
    back = url_for("dashboard.instance", name=the_instance(name).name)
    public = services().settings.public_url or "(RECEIVER_PUBLIC_URL is not set)"
    if request.method == "GET":
        return _confirm(
            f"Send a test callback to {name}",
            "Send",
            back,
            f"A callback signed with the newest key of {name} goes to {public}, proxy and all.",
            "It is kept as an event of the kind other, marked as a test, and touches no job.",
        )
    given = services()
    tested = send_test(given.settings, given.database, given.vault, name, given.clock())
    _done("instance.test", name, f"{tested.status or 'no answer'}")
    if tested.status == 200:  # noqa: PLR2004
        return _back(back, "The test callback was verified and stored.")
    detail = f"{tested.status}: {tested.told}" if tested.status else f"No answer: {tested.told}"
    return page("error.html", 502, title="The test callback did not get through", detail=detail)


@acts("/instances/<string:name>/keys/add")
def add_key(name: str) -> Response:
    """Add a signature key; the ones there are stay accepted."""
    shown = the_instance(name)
    if request.method == "GET":
        return page("add_key.html", instance=shown)
    secret = request.form.get("secret", "").encode("utf-8", "replace")
    vault = services().vault
    try:
        with services().database.write() as session:
            key = signature_keys.add_key(session, vault, name, secret, services().clock())
            shared = signature_keys.shared_with(session, vault, name, secret)
            note(session, "key.add", f"{name}/{key}")
    except CredentialError as error:
        return page("add_key.html", 409, instance=shown, told=str(error))
    told = f"{key} is accepted from now on, beside the others."
    if len(secret) < SHORT_KEY_BYTES:
        told += f" It is short: use {SHORT_KEY_BYTES} bytes or more."
    if seen := [other for other in shared if current_bearer().may_see(other)]:
        told += f" {', '.join(seen)} has the same key: bodies can be replayed across."
    return _back(url_for("dashboard.instance", name=name), told)


@acts("/instances/<string:name>/keys/<string:key>/retire")
def retire_key(name: str, key: str) -> Response:
    """Accept a signature key no longer."""
    shown = the_instance(name)
    known = [each for each in shown.keys if each["id"] == key and not each.get("environment")]
    if not known or known[0]["retired_at"] is not None:
        raise NotFound(f"{name} has no key {key} in use.")
    back = url_for("dashboard.instance", name=name)
    if request.method == "GET":
        left = sum(each["retired_at"] is None for each in shown.keys) - 1
        last = "" if left else " It is the last one: every callback will be refused."
        return _confirm(
            f"Retire {key} of {name}",
            "Retire this key",
            back,
            f"Callbacks signed with it are refused from the next request on, on every node.{last}",
            "This cannot be taken back; the same secret can be added again as a new key.",
            danger=True,
        )
    with services().database.write() as session:
        signature_keys.retire_key(session, key, name, services().clock())
        note(session, "key.retire", f"{name}/{key}")
    return _back(back, f"{key} is accepted no longer.")


@acts("/refusals/verify")
def verify_again() -> Response:
    """Verify all quarantined deliveries again, or those of an instance."""
    instance = request.args.get("instance") or None
    require_instance(current_bearer(), [instance] if instance else [])
    only = frozenset([instance]) if instance else current_bearer().instances
    back = url_for("dashboard.refusals", instance=instance)
    if request.method == "GET":
        return _confirm(
            f"Verify the refused deliveries {f'of {instance} ' if instance else ''}again",
            "Verify again",
            back,
            "Each delivery in the quarantine is verified with the keys there are now.",
            "Those whose signature is right enter as events, like any callback, and leave the"
            " quarantine. The others stay.",
        )
    again = _quarantine().verify_again(only, _record_entry())
    return _back(back, f"{again.taken} of {again.looked} are verified and entered as events.")


@acts("/refusals/<int:id>/verify")
def verify_one(id: int) -> Response:  # noqa: A002
    """Verify one quarantined delivery again."""
    refused = the_refusal(id)
    back = url_for("dashboard.refusal", id=id)
    if request.method == "GET":
        return _confirm(
            "Verify this delivery again",
            "Verify again",
            back,
            f"It is verified with the keys that {refused.instance} has now.",
            "If its signature is right, it enters as an event, like any callback, and leaves the"
            " quarantine.",
        )
    if _quarantine().verify_one(refused, _record_entry()):
        told = "Verified: the delivery entered as an event."
        return _back(url_for("dashboard.refusals"), told)
    return _back(back, "The signature is still not right; nothing was changed.")


def _confirm(title: str, button: str, back: str, *says: str, danger: bool = False) -> Response:
    return page("confirm.html", title=title, button=button, back=back, says=says, danger=danger)


def _back(path: str, told: str) -> Response:
    tell(told)
    return see(path)


def _done(action: str, subject: str, detail: str) -> None:
    with services().database.write() as session:
        note(session, action, subject, detail)


def _record_entry() -> Callable[[Session, Rejection, str], None]:
    return partial(record_entry, services(), current_bearer())


def _quarantine() -> Quarantine:
    return Quarantine(services().database, services().intake)
