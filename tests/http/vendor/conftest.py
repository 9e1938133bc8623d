from collections.abc import Iterator

import pytest
from recording import Through, receivers


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Through]:
    folder = tmp_path_factory.mktemp("through")
    with receivers(f"sqlite:///{folder}/receiver.db", folder, 1) as [made]:
        yield made


@pytest.fixture(autouse=True)
def _usual_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "through" in request.fixturenames:
        request.getfixturevalue("through").recorder.answer = None
