"""Two thin shells around the flows: one that blocks, one for asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial, wraps
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack, overload
from urllib.parse import urlsplit

import httpx

from receiver.client import flows
from receiver.client.errors import Unreachable
from receiver.client.flows import Flow, Request
from receiver.client.stream import Event, EventChoice, EventStream
from receiver.lib.http_client import failure_reason, make_client

P = ParamSpec("P")
T = TypeVar("T")


class Method(Generic[P, T]):
    """A flow as a method: Client returns what it returns, AsyncClient an awaitable of that."""

    def __init__(self, flow: Callable[P, Flow[T]]) -> None:
        self._flow = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: "Client | AsyncClient | None", owner: type) -> object:
        """Return the method of a client."""
        if client is None:
            return self
        return wraps(self._flow)(lambda *args, **named: client.run(self._flow(*args, **named)))


class _Access:
    """Where a receiver is, the token it is asked with, and what it is asked."""

    submit = Method(flows.submit)
    wait = Method(flows.wait)
    job = Method(flows.job)
    jobs = Method(flows.jobs)
    errors = Method(flows.errors)
    result = Method(flows.result)
    close_job = Method(flows.close_job)
    objects = Method(flows.objects)
    download = Method(flows.download)
    page = Method(flows.page)
    post = Method(flows.post)
    instances = Method(flows.instances)

    def __init__(self, url: str, token: str) -> None:
        check_token(token)
        self._url, self._token = check_url(url), token

    def _options(self, request: Request) -> dict[str, Any]:
        """Return what httpx sends for a request."""
        params = {name: it for name, it in request.params.items() if it not in (None, (), [])}
        scheme = f"Element {request.instance}, User" if request.instance else "Bearer"
        return {
            "method": request.method,
            "url": request.path,
            "params": params,
            "headers": {"Authorization": f"{scheme} {self._token}"},
            "json": request.json,
            "files": request.files,
            "timeout": request.timeout,
        }


class Client(_Access):
    """A receiver's API. url -- its base. token -- as `receiver tokens create` prints it."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(url, token)
        self._http = make_client(lambda: httpx.Client(base_url=url))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def run(self, flow: Flow[T]) -> T:
        """Do what a flow says; return what it returns."""
        step: Callable[[], Request] = flow.__next__
        try:
            while True:
                step = self._send(flow, step())
        except StopIteration as end:
            result: T = end.value
            return result

    def events(self, **choice: Unpack[EventChoice]) -> Iterator[Event]:
        """Yield callbacks as they come, for ever; each once, and Missed where one is not to be had.

        instance -- whose. after -- an id of an event: begin behind it, not now. on_begin -- is
        called when a stream begins. on_trouble -- with the error when it breaks off; it goes on
        without a gap.
        Raises ClientError if it cannot begin, or the token is no longer valid.
        """
        stream = EventStream(**choice)
        while True:
            trouble: Exception = Unreachable("the receiver ended the stream", "ended")
            try:
                with self._http.stream(**self._options(stream.request())) as answer:
                    if not answer.is_success:
                        answer.read()
                    stream.begin(answer)
                    for piece in answer.iter_bytes():
                        yield from stream.feed(piece)
            except (httpx.HTTPError, Unreachable) as error:
                trouble = error
            time.sleep(stream.pause(unreachable(self._url, trouble)))

    def _send(self, flow: Flow[T], request: Request) -> Callable[[], Request]:
        time.sleep(request.after)
        try:
            with self._http.stream(**self._options(request)) as answer:
                if request.into is None or not answer.is_success:
                    answer.read()
                else:
                    for piece in answer.iter_bytes():
                        request.into.write(piece)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return partial(flow.throw, unreachable(self._url, error))
        return partial(flow.send, answer)


class AsyncClient(_Access):
    """As Client, for asyncio."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(url, token)
        self._http = make_client(lambda: httpx.AsyncClient(base_url=url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def run(self, flow: Flow[T]) -> T:
        """Do what a flow says; return what it returns."""
        step: Callable[[], Request] = flow.__next__
        try:
            while True:
                step = await self._send(flow, step())
        except StopIteration as end:
            result: T = end.value
            return result

    async def events(self, **choice: Unpack[EventChoice]) -> AsyncIterator[Event]:
        """Yield callbacks as `Client.events` does."""
        stream = EventStream(**choice)
        while True:
            trouble: Exception = Unreachable("the receiver ended the stream", "ended")
            try:
                async with self._http.stream(**self._options(stream.request())) as answer:
                    if not answer.is_success:
                        await answer.aread()
                    stream.begin(answer)
                    async for piece in answer.aiter_bytes():
                        for event in stream.feed(piece):
                            yield event
            except (httpx.HTTPError, Unreachable) as error:
                trouble = error
            await asyncio.sleep(stream.pause(unreachable(self._url, trouble)))

    async def _send(self, flow: Flow[T], request: Request) -> Callable[[], Request]:
        await asyncio.sleep(request.after)
        try:
            async with self._http.stream(**self._options(request)) as answer:
                if request.into is None or not answer.is_success:
                    await answer.aread()
                else:
                    async for piece in answer.aiter_bytes():
                        request.into.write(piece)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return partial(flow.throw, unreachable(self._url, error))
        return partial(flow.send, answer)


def check_token(token: str) -> None:
    """Raise ValueError, which does not show it, if that cannot be a token: httpx would show it."""
    if not token or not token.isascii() or not token.isprintable() or token != token.strip():
        raise ValueError("the token is empty, has a blank or line end around it, or is not ASCII")


def check_url(url: str) -> str:
    """Return a receiver's base URL. Raises ValueError if that cannot be one."""
    base, _, rest = url.partition(flows.API)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: must be http or https")
    if "@" in url:
        raise ValueError("must have no user name and no password; the token is in a file")
    if rest.strip("/") == "" and base != url:
        raise ValueError(f"{url}: leave {flows.API} out, {base} is enough")
    try:
        is_url = bool(httpx.URL(url) and urlsplit(url).hostname)
    except (httpx.InvalidURL, ValueError):
        is_url = False
    if not is_url:
        raise ValueError(f"{url}: is not a URL")
    return url


def unreachable(url: str, error: Exception) -> Unreachable:
    """Return the error for a request that got no answer: why, in the system's own words."""
    if isinstance(error, Unreachable):
        return error
    reason = failure_reason(error)
    ask = "" if reason.endswith("?") else "; is the receiver running there?"
    return Unreachable(f"no answer from {url}: {reason}{ask}", "unreachable")
