"""What tokens of the scope `operate` may do: each page first says what it will do, then does it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps

from flask import Response, request, url_for

from receiver.callbacks.rejections import reverify
from receiver.callbacks.trigger import send_test
from receiver.errors import CredentialError, NotFound
from receiver.instances import keys as signature_keys
from receiver.jobs.job import UNDER_WAY
from receiver.openconnectors.signatures import SHORT_KEY_BYTES
from receiver.web import Services
from receiver.web.api.callbacks import record_entry, reverify_instances
from receiver.web.api.jobs import close_job
from receiver.web.auth import record_action, require_instance
from receiver.web.dashboard.callbacks import the_rejection
from receiver.web.dashboard.instances import InstanceView, the_instance
from receiver.web.dashboard.job import the_job
from receiver.web.dashboard.pages import Caller, blueprint, page
from receiver.web.dashboard.sign_in import flash, redirect_to, require_operator

MAX_WAIT_MS = 5_000  # for a turn to ask the vendor; it holds a thread


@dataclass(frozen=True, slots=True)
class Action:
    """What is confirmed first. effects -- what will happen. url -- of the page it belongs to.

    run -- does it; returns the notice to show there, or another response.
    """

    title: str
    button: str
    url: str
    effects: tuple[str, ...]
    run: Callable[[], str | Response]
    danger: bool = False


def action_page(rule: str) -> Callable[[Callable[..., Action]], Callable[..., Action]]:
    """Make pages of an action: GET says what POST will do."""

    def decorate(make: Callable[..., Action]) -> Callable[..., Action]:
        @wraps(make)
        def view(services: Services, caller: Caller, **names: str) -> Response:
            action = make(services, caller, **names)
            if request.method == "GET":
                return page("confirm.html", action=action)
            try:
                result = action.run()
            except CredentialError as error:  # its text never holds the secret
                return page("error.html", 409, title="Action not possible", detail=str(error))
            if isinstance(result, Response):
                return result
            flash(services, caller, result)
            return redirect_to(action.url)

        blueprint.add_url_rule(rule, make.__name__, require_operator(view), methods=["GET", "POST"])
        return make

    return decorate


@action_page("/jobs/<string:id>/ask")
def ask(services: Services, caller: Caller, id: str) -> Action:
    """Ask the vendor where a job stands."""
    job = the_job(services, caller, id)

    def run() -> str:
        answer = services.reconciler.ask(job.instance, job.id, caller.bearer.name, MAX_WAIT_MS)
        result = f"The vendor answered {answer.status}."
        _record(services, caller, "job.ask", f"{job.instance}/{job.id}", result)
        return result

    return Action(
        f"Ask the vendor about job {job.id}",
        "Ask now",
        url_for("dashboard.job", id=job.id, instance=job.instance),
        (
            f"One request is sent to the vendor with the secrets of {job.instance}.",
            "The answer is added to the timeline as a poll, and may change the outcome.",
        ),
        run,
    )


@action_page("/jobs/<string:id>/close")
def close(services: Services, caller: Caller, id: str) -> Action:
    """Give up a job of which the vendor says nothing more."""
    job = the_job(services, caller, id)
    if job.outcome not in UNDER_WAY and not job.job.conflict:
        raise NotFound(f"Job {id} is not in progress.")

    def run() -> str:
        close_job(services, caller.bearer, job)
        return f"Job {job.id} is closed as lost."

    return Action(
        f"Close job {job.id}",
        "Close this job",
        url_for("dashboard.job", id=job.id, instance=job.instance),
        (
            "Its outcome becomes lost, and the vendor is no longer asked about it.",
            "Any later callback or poll of this job opens it again.",
        ),
        run,
        danger=True,
    )


@action_page("/instances/<string:name>/resend")
def resend(services: Services, caller: Caller, name: str) -> Action:
    """Have the vendor send the deliveries that it queued."""
    instance = the_instance(services, caller, name)

    def run() -> str:
        queued = services.reconciler.resend(name, MAX_WAIT_MS)
        _record(services, caller, "deliveries.resend", name, f"{queued} were queued")
        if not queued:
            return "The vendor has no queued deliveries."
        return f"The vendor was asked to send {queued} again."

    return Action(
        f"Re-send the deliveries queued for {name}",
        "Re-send",
        _page(instance),
        (
            "The vendor is asked which deliveries it has queued, and to send them all again.",
            "Each arrives as a callback; those received before change nothing.",
            "The queue may be the whole organization's: other receivers get theirs too.",
        ),
        run,
    )


@action_page("/instances/<string:name>/test")
def test(services: Services, caller: Caller, name: str) -> Action:
    """Send a signed test callback through the public URL."""
    instance = the_instance(services, caller, name)
    public = services.settings.public_url or "the public URL (RECEIVER_PUBLIC_URL is not set)"

    def run() -> str | Response:
        tested = send_test(
            services.settings, services.database, services.secret_box, name, services.clock()
        )
        _record(services, caller, "instance.test", name, f"{tested.status or 'no answer'}")
        if tested.status == 200:
            return "The test callback was verified and stored."
        detail = f"{tested.status}: {tested.text}" if tested.status else f"No answer: {tested.text}"
        return page("error.html", 502, title="The test callback did not arrive", detail=detail)

    return Action(
        f"Send a test callback to {name}",
        "Send",
        _page(instance),
        (
            f"A callback signed with the newest key of {name} is sent to {public}.",
            "It is stored as an event of kind other, marked as a test, and changes no job.",
        ),
        run,
    )


@action_page("/instances/<string:name>/keys/<string:key>/retire")
def retire_key(services: Services, caller: Caller, name: str, key: str) -> Action:
    """Retire a signature key."""
    instance = the_instance(services, caller, name)
    active = [key["id"] for key in instance.keys if key["retired_at"] is None]
    from_environment = {key["id"] for key in instance.keys if key.get("environment")}
    if key not in active or key in from_environment:
        raise NotFound(f"{name} has no key {key} in use.")

    def run() -> str:
        with services.database.write() as session:
            signature_keys.retire_key(session, key, name, services.clock())
            record_action(services, caller.bearer, session, "key.retire", f"{name}/{key}")
        return f"{key} is retired: callbacks signed with it are rejected."

    last = " It is the last one: every callback will be rejected." if len(active) == 1 else ""
    return Action(
        f"Retire {key} of {name}",
        "Retire this key",
        _page(instance),
        (
            f"Callbacks signed with it are rejected from the next request on, on every node.{last}",
            "This cannot be undone; the same secret can be added again as a new key.",
        ),
        run,
        danger=True,
    )


@action_page("/rejections/verify")
def verify_again(services: Services, caller: Caller) -> Action:
    """Verify all quarantined deliveries again, or those of an instance."""
    instance = request.args.get("instance") or None
    require_instance(caller.bearer, [instance] if instance else [])

    def run() -> str:
        named = [instance] if instance else []
        looked, verified = reverify_instances(services, caller.bearer, named)
        return f"{verified} of {looked} were verified and stored as events."

    return Action(
        f"Verify the rejected deliveries {f'of {instance} ' if instance else ''}again",
        "Verify again",
        url_for("dashboard.rejections", instance=instance),
        (
            "Each delivery in the quarantine is verified with the current keys.",
            "Those with a right signature are stored as events, like any callback.",
            "The others stay in the quarantine.",
        ),
        run,
    )


@action_page("/rejections/<int:id>/verify")
def verify_one(services: Services, caller: Caller, id: int) -> Action:
    """Verify one quarantined delivery again."""
    rejection = the_rejection(services, caller, id)

    def run() -> str | Response:
        record = partial(record_entry, services, caller.bearer)
        receive = services.intake.receive_again
        if not reverify(services.database, receive, rejection, record):
            return "The signature is still not right; nothing was changed."
        flash(services, caller, "Verified: the delivery is stored as an event.")
        return redirect_to(url_for("dashboard.rejections"))

    return Action(
        "Verify this delivery again",
        "Verify again",
        url_for("dashboard.rejection", id=id),
        (
            f"It is verified with the current keys of {rejection.instance}.",
            "If its signature is right, it is stored as an event, like any callback.",
        ),
        run,
    )


@blueprint.route("/instances/<string:name>/keys/add", methods=["GET", "POST"])
@require_operator
def add_key(services: Services, caller: Caller, name: str) -> Response:
    """Add a signature key; those there are stay accepted."""
    instance = the_instance(services, caller, name)
    if request.method == "GET":
        return page("add_key.html", instance=instance)
    secret = request.form.get("secret", "").encode("utf-8", "replace")
    try:
        with services.database.write() as session:
            key = signature_keys.add_key(
                session, services.secret_box, name, secret, services.clock()
            )
            shared = signature_keys.shared_with(session, services.secret_box, name, secret)
            record_action(services, caller.bearer, session, "key.add", f"{name}/{key}")
    except CredentialError as error:
        return page("add_key.html", 409, instance=instance, error=str(error))
    notice = f"{key} is accepted from now on, beside the others."
    if len(secret) < SHORT_KEY_BYTES:
        notice += f" It is {len(secret)} bytes long; at least {SHORT_KEY_BYTES} are recommended."
    if seen := [other for other in shared if caller.bearer.may_see(other)]:
        verb = "has" if len(seen) == 1 else "have"
        notice += f" {', '.join(seen)} {verb} the same key: callbacks can be replayed across."
    flash(services, caller, notice)
    return redirect_to(_page(instance))


def _page(instance: InstanceView) -> str:
    return url_for("dashboard.instance", name=instance.name)


def _record(services: Services, caller: Caller, action: str, subject: str, detail: str) -> None:
    with services.database.write() as session:
        record_action(services, caller.bearer, session, action, subject, detail=detail)
