from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from builders import PHASES, examples
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from receiver.openconnectors.sandbox.faults import Options
from receiver.openconnectors.sandbox.server import running

DOCUMENT = Path(__file__).parents[2] / "samples/vendor-openapi.json"
# The vendor does not say that it refuses parameters it does not know.
CONFIG = SchemathesisConfig.from_dict(
    {"generation": {"allow-extra-parameters": False}, "phases": PHASES}
)

schema = schemathesis.openapi.from_path(DOCUMENT, config=CONFIG)


@schema.auth()
class Owner:
    def get(self, _case: schemathesis.Case, _context: schemathesis.AuthContext) -> str:
        return "Element t-1, User u-1"

    def set(self, case: schemathesis.Case, data: str, _context: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = data


@pytest.fixture(scope="module", params=["", "/hubs/marketing"])
def api(request) -> Iterator[str]:
    with running(Options(job_seconds=0)) as sandbox:
        yield sandbox.api + request.param


@schema.parametrize()
@settings(max_examples=examples(26), derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_sandbox_keeps_to_its_document(case, api):
    case.call_and_validate(base_url=api)
