from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from nodes import running_nodes
from recording import LIMIT, Recorder, Through

from receiver.database import migrations
from receiver.instances import registry, tokens
from receiver.instances.encryption import SecretBox


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Through]:
    folder: Path = tmp_path_factory.mktemp("through")
    key = Fernet.generate_key().decode()
    url = f"sqlite:///{folder}/receiver.db"
    database = migrations.open_database(url)
    with database.write() as session:
        token = tokens.create_token(session, "test", "operate", 1)
        secrets = {"element_token": b"the-element-token", "user_secret": b"the-user-secret"}
        registry.add_instance(session, SecretBox((key,)), "gooddata", 1, **secrets)
    database.close()
    with ExitStack() as stack:
        recorder = Recorder()
        stack.callback(recorder.close)
        [node] = stack.enter_context(
            running_nodes(
                url,
                folder,
                1,
                RECEIVER_ENCRYPTION_KEYS=key,
                RECEIVER_PUBLIC_URL="https://hooks.example.com",
                RECEIVER_MAX_UPLOAD_BYTES=str(LIMIT),
                OPEN_CONNECTORS_URL=f"http://127.0.0.1:{recorder.port}/elements/api-v2",
                OPEN_CONNECTORS_RATE="1000",
            )
        )
        yield Through(node, recorder, token)


@pytest.fixture(autouse=True)
def _usual_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "through" in request.fixturenames:
        request.getfixturevalue("through").recorder.answer = None
