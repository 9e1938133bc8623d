"""FastAPI and async SQLAlchemy: verify, insert, commit, answer; a transaction each."""

import hashlib
import hmac
import os
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from sqlalchemy import DateTime, UniqueConstraint, event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

KEY = os.environ["SIGNATURE_KEY"].encode()
URL = os.environ["DATABASE_URL"]

engine = create_async_engine(URL, connect_args={"timeout": 30} if "sqlite" in URL else {})
async_session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """Base of the models."""


class Callback(Base):
    """A verified callback."""

    __tablename__ = "callbacks"
    id: Mapped[int] = mapped_column(primary_key=True)
    instance: Mapped[str]
    sha256: Mapped[bytes]
    body: Mapped[bytes]
    received_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    __table_args__ = (UniqueConstraint("instance", "sha256"),)


if engine.dialect.name == "sqlite":

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection, _record):
        """As SQLAlchemy's documentation of SQLite has it."""
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Leave the pool behind at the end; `python app.py` makes the table."""
    yield
    await engine.dispose()


async def create_table() -> None:
    """Make the table."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


async def get_session() -> AsyncIterator[AsyncSession]:
    """A session for a request."""
    async with async_session() as session:
        yield session


app = FastAPI(lifespan=lifespan)


@app.post("/callbacks/{instance}")
async def receive(
    instance: str,
    request: Request,
    session: Annotated[AsyncSession, Depends(get_session)],
    elements_webhook_signature: Annotated[str, Header()] = "",
):
    """Take a callback."""
    body = await request.body()
    made = b"sha256=" + b64encode(hmac.digest(KEY, body, "sha256"))
    if not hmac.compare_digest(made, elements_webhook_signature.encode()):
        raise HTTPException(401, "invalid signature")
    sha256 = hashlib.sha256(body).digest()
    session.add(
        Callback(instance=instance, sha256=sha256, body=body, received_at=datetime.now(UTC))
    )
    try:
        await session.commit()
    except IntegrityError:
        return {"duplicate": True}
    return {"duplicate": False}


if __name__ == "__main__":
    import asyncio

    asyncio.run(create_table())
