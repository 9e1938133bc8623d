"""Probes: answered within a second, whatever the database does."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from receiver.errors import StoreUnavailable
from receiver.web import Services
from receiver.web.http import Response
from receiver.web.ops import HEALTHZ, PROBES, READY, READYZ

ANSWER_SECONDS = 0.8
LOOK_SECONDS = 4.0  # that a look at the database may take, if it is slow and not away
MAX_AGE_SECONDS = 30.0  # of a look that is answered with once more; probes come more often


class Probes:
    """Answers probes; those that come while one looks share what it sees."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._threads = ThreadPoolExecutor(len(PROBES), "probes")
        self._looks: dict[str, asyncio.Future[Response]] = {}
        self._began: dict[str, float] = {}
        self._ready_at = -MAX_AGE_SECONDS  # as the last look ended, if it saw that

    async def answer(self, path: str) -> Response:
        """Answer one of PROBES. Raises StoreUnavailable.

        A look at readiness that takes longer goes on, and is answered for by the one before it: a
        database that answers in a second or two would else be away for the half of all probes.
        """
        probe, loop = partial(PROBES[path], self._services), asyncio.get_running_loop()
        if path == HEALTHZ:
            return probe()
        if path not in self._looks:
            self._looks[path] = loop.run_in_executor(self._threads, probe)
            self._began[path] = loop.time()
            self._looks[path].add_done_callback(partial(self._note, path))
        try:
            async with asyncio.timeout(ANSWER_SECONDS if path == READYZ else LOOK_SECONDS):
                return await asyncio.shield(self._looks[path])
        except TimeoutError:
            now = loop.time()
            is_slow = now - self._began[path] < LOOK_SECONDS
            if path == READYZ and is_slow and now - self._ready_at < MAX_AGE_SECONDS:
                return READY
            raise StoreUnavailable("the database does not answer") from None

    def _note(self, path: str, look: asyncio.Future[Response]) -> None:
        del self._looks[path]
        failed = look.cancelled() or look.exception() is not None
        if path == READYZ:
            now = asyncio.get_running_loop().time()
            self._ready_at = -MAX_AGE_SECONDS if failed else now
