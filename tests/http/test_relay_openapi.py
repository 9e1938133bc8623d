"""The vendor's own paths, as we answer them, keep to the document that the stand-in keeps to."""

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp

import pytest
import schemathesis
from builders import PHASES, examples
from fakes import BAD_ROWS, Between, between
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

DOCUMENT = Path(__file__).parents[1] / "samples/vendor-openapi.json"
CONFIG = SchemathesisConfig.from_dict(
    {"generation": {"allow-extra-parameters": False}, "phases": PHASES}
)
HOOK = "^https://[a-z][a-z0-9.-]{0,60}[a-z0-9](:[0-9]{2,4})?/[A-Za-z0-9/_-]*$"
LABELS = "^https://([a-z][a-z0-9]{0,9}\\\\.){1,3}[a-z]{2,9}(:[0-9]{2,4})?/[A-Za-z0-9/_-]*$"


def ours() -> dict:
    """The vendor's document, where ours may differ: what is answered by us has tokens of ours.

    A client's callback URL must be https and of a name that resolves. The queue is the vendor's.
    """
    document = json.loads(DOCUMENT.read_text())
    del document["paths"]["/notifications/subscriptions/deliveries"]
    del document["servers"]
    # Statuses have both vocabularies; what is sent to be loaded, the vendor judges.
    document["components"]["schemas"]["Status"] = {"type": "object", "required": ["id"]}
    for path in ("/bulk/jobs", "/bulk/{id}/errors"):
        headers = document["paths"][path]["get"]["responses"]["200"]["headers"]
        assert headers["elements-next-page-token"]["schema"]["pattern"] == "^[0-9]+$"
        headers["elements-next-page-token"]["schema"]["pattern"] = "^r?[0-9]+$"
    text = json.dumps(document)
    plain = json.dumps(HOOK.replace("https:", "https?:"))
    assert text.count(plain) == 2
    return json.loads(text.replace(plain, f'"{LABELS}"'))


schema = schemathesis.openapi.from_dict(copy.deepcopy(ours()), config=CONFIG)


@pytest.fixture(scope="module")
def relay() -> Iterator[Between]:
    with ExitStack() as stack:
        folder = mkdtemp()
        stack.callback(shutil.rmtree, folder)
        made = stack.enter_context(between(f"sqlite:///{folder}/receiver.db"))
        # The ids that the document's examples name, so that answers of 200 occur.
        for number in range(6):
            job_id = made.uploaded(BAD_ROWS)
            assert job_id == str(1234 + number)
            made.ended(job_id)
        made.reconciler().fetch_errors()
        yield made


@pytest.fixture(scope="module", params=["", "/hubs/marketing"])
def base(request, relay) -> str:
    return f"{relay.url}/elements/api-v2{request.param}"


@schema.parametrize()
@settings(max_examples=examples(20), derandomize=True, suppress_health_check=list(HealthCheck))
def test_our_own_vendor_shaped_paths_keep_to_the_document(case, relay, base):
    headers = {"Authorization": f"Element gooddata, User {relay.token}"}
    # Any bytes are a file to the document; those that are neither CSV nor JSON lines we refuse.
    # An object may well be called jobs, and be uploaded to.
    left_out = {
        "/bulk/{objectName}": ["positive_data_acceptance", "negative_data_rejection"],
        "/bulk/jobs": ["unsupported_method", "allow_header_conformance"],
        "/bulk/download": ["negative_data_rejection"],  # more callback URLs are fine than we list
    }.get(case.path, [])
    hook = (case.headers or {}).get("Elements-Async-Callback-Url")
    if hook is not None and "://" not in hook:  # the vendor's own clients send such
        left_out = [*left_out, "negative_data_rejection"]
    left_out = [schemathesis.checks.CHECKS.get_one(name) for name in left_out]
    case.call_and_validate(base_url=base, headers=headers, excluded_checks=left_out)
