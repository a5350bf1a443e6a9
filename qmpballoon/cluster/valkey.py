"""The bus on Valkey, or on Redis from 7.0 on.

The library coredis speaks the protocol (https://valkey.io/topics/protocol), and runs on
trio. This module decides when to connect, how long to wait for a reply, and which
errors users see. All calls share one connection, on which replies come in order.

The connection is made when it is needed, and again after it broke. While the server
cannot be reached, calls fail at once until it is time for the next attempt. So a host
that publishes each second needs no pauses of its own, and a server that comes back is
not flooded.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import ssl
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
import trio
from anyio.abc import ByteStream
from attrs import frozen
from coredis.connection import BaseConnection, TCPLocation
from coredis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    InvalidResponse,
    ProtocolError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    WrongTypeError,
)

from qmpballoon._printable import make_printable
from qmpballoon._transport.reconnection import Backoff
from qmpballoon._transport.trio_tasks import BackgroundTasks
from qmpballoon.cluster.bus import LARGEST_VALUE, MOST_HOSTS
from qmpballoon.errors import BusError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

__all__ = ["BusAddress", "ValkeyBus", "open_bus", "parse_bus_address"]

_Command: TypeAlias = "tuple[bytes, str | bytes | int, *tuple[str | bytes | int, ...]]"

_PASSWORD_VARIABLE: Final = "QMPBALLOON_CLUSTER_PASSWORD"  # noqa: S105 - its name
_PORT: Final = 6379  # registered for Redis
# Seconds. A server in the same building connects and answers within milliseconds, and
# forks for a snapshot of some GiB within a second.
_CONNECT: Final = 3.0
_ANSWER: Final = 3.0
# Seconds between two attempts to connect. A host is to be seen again within 15 seconds
# of the server's return, and may have found it gone a moment before that.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 4.0
_BATCH: Final = 500  # keys that are asked for at once
# Bytes that a reply may have besides a value; a list of keys has some 50 KiB.
_MORE: Final = 64 * 1024
_LONGEST_LIST: Final = 60.0  # seconds; a server lists a million keys within a few
_MOST_KEYS: Final = 4 * MOST_HOSTS
_SCHEMES: Final = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_FORMS: Final = (
    "write valkeys://USER@HOST[:PORT]?ca=FILE&password_file=FILE, valkey:// to go"
    " without TLS, or unix:///PATH"
)
# A script is one step, and may touch no key that its user may not. A key without a
# value has an empty one here, and so has one whose value is too large.
_COMPARE_AND_SET: Final = b"""
local value = redis.pcall('GET', KEYS[1]) or ''
if type(value) ~= 'string' or #value > tonumber(ARGV[4]) then value = '' end
if value ~= ARGV[1] then return 0 end
if ARGV[3] == '' then redis.call('SET', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""

_ENDED: Final = (anyio.BrokenResourceError, anyio.EndOfStream)
# BusError says what goes wrong; coredis logs it as well, with all of its calls. Those
# who want to see that add a handler of their own.
logging.getLogger("coredis").addHandler(logging.NullHandler())


@frozen
class BusAddress:
    """Where the server is, and as whom to connect. It holds no secret.

    Attributes:
        host: The name or the address of the server; empty for a unix socket.
        port: Its TCP port.
        path: The path of its unix socket; empty for TCP.
        is_encrypted: Whether to use TLS.
        user: The user of its access control list; empty for its default user.
        database: The number of the database.
        ca: The file of the authority that signed the server's certificate; ``None``
            for those that the system trusts.
        certificate: The file of this side's certificate, if it has one.
        key: The file of its private key; ``None`` if the certificate's has it.
        password_file: The file whose first line is the password; ``None`` for the
            environment variable ``QMPBALLOON_CLUSTER_PASSWORD``, or for no password.
    """

    host: str = ""
    port: int = _PORT
    path: str = ""
    is_encrypted: bool = False
    user: str = ""
    database: int = 0
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    password_file: Path | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"the cluster's server {self.path or f'{host}:{self.port}'}"


def parse_bus_address(text: str) -> BusAddress:
    """Read a URL, like ``valkeys://host1@bus.example:6379?ca=/etc/ssl/bus.pem``.

    The schemes are ``valkey`` or ``redis`` for TCP, ``valkeys`` or ``rediss`` for TLS,
    and ``unix``. The path of a TCP URL is the number of a database. After the question
    mark come the names of files: ``ca``, ``cert``, ``key`` and ``password_file``.

    Raises:
        ValueError: The URL is malformed, or holds a password, which others would see in
            the list of processes. The message does not repeat it.
    """
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        port = _PORT if parts.port is None else parts.port
        files = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError(f"the cluster's URL is malformed: {_FORMS}") from None
    if parts.password is not None:
        raise ValueError(
            "the cluster's URL holds a password, which the list of processes shows:"
            " write it into a file and append ?password_file=FILE, or set"
            f" {_PASSWORD_VARIABLE}"
        )
    unix = parts.scheme == "unix"
    database = "" if unix else parts.path.strip("/")
    if (
        not (unix or parts.scheme in _SCHEMES)
        or not (parts.path if unix else host)
        or not (database or "0").isdecimal()
        or not port
        or parts.fragment
    ):
        raise ValueError(f"the cluster's URL is malformed: {_FORMS}")
    known = ("ca", "cert", "key", "password_file")
    for name in files.keys() - known:
        raise ValueError(f"the cluster's URL has {name!r}: it can have {known}")
    paths = {name: Path(path) for name, path in files.items()}
    return _check(
        BusAddress(
            host="" if unix else host,
            port=port,
            path=unquote(parts.path) if unix else "",
            is_encrypted=_SCHEMES.get(parts.scheme, False),
            user=unquote(parts.username or ""),
            database=int(database or 0),
            ca=paths.get("ca"),
            certificate=paths.get("cert"),
            key=paths.get("key"),
            password_file=paths.get("password_file"),
        )
    )


def _check(address: BusAddress) -> BusAddress:
    """Refuse files that would not be used.

    Raises:
        ValueError: There are files of TLS without TLS, or a key without a certificate.
    """
    if not address.is_encrypted and (address.ca or address.certificate or address.key):
        raise ValueError(
            "the cluster's URL has files of TLS, and does not ask for TLS: begin it"
            " with valkeys://"
        )
    if address.key and not address.certificate:
        raise ValueError("the cluster's URL has a key= and no cert=: append &cert=FILE")
    return address


@asynccontextmanager
async def open_bus(address: str | BusAddress) -> AsyncGenerator[ValkeyBus]:
    """Open a bus on a server. It is connected to when it is first asked.

    Passwords and certificates are read anew for each connection, so that they can be
    changed meanwhile.

    Args:
        address: The server's, or a URL as of :func:`parse_bus_address`.

    Raises:
        ValueError: The URL is malformed.
    """
    parsed = parse_bus_address(address) if isinstance(address, str) else address
    async with BackgroundTasks(shield=False) as tasks:
        yield ValkeyBus(parsed, tasks)


class ValkeyBus:
    """A :class:`~qmpballoon.cluster.Bus` on a server; made by :func:`open_bus`.

    A call that is cancelled may have been carried out, or not; the bus stays usable.
    """

    def __init__(self, address: BusAddress, tasks: BackgroundTasks) -> None:
        self._address = address
        self._tasks = tasks
        self._connection: _Connection | None = None
        self._connecting = trio.Lock()
        # It spreads the attempts of many hosts.
        rng = random.Random()  # noqa: S311 - nothing secret
        self._backoff = Backoff(rng, _FIRST_PAUSE, _LONGEST_PAUSE)
        self._backoff.begin_attempt()  # the first is made at once
        self._failure = ""  # what the last attempt has met
        self._next_attempt = -math.inf

    def __repr__(self) -> str:
        return f"<ValkeyBus on {self._address}>"

    async def get(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """Return the values of the keys that there are; see :meth:`Bus.get`."""
        found: dict[str, bytes] = {}
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            # GET would bring the whole of what is too large.
            values = await self._request(
                *((b"GETRANGE", key, 0, LARGEST_VALUE) for key in batch)
            )
            for key, value in zip(batch, values, strict=True):
                if isinstance(value, WrongTypeError):
                    # One key that another program has written hides no other one.
                    found[key] = b""
                    continue
                if isinstance(value, ResponseError):
                    raise BusError(_explain(self._address, value)) from value
                if not isinstance(value, bytes | None):
                    raise self._refuse(value)
                if value:
                    found[key] = value if len(value) <= LARGEST_VALUE else b""
        return found

    async def list_keys(self, prefix: str, /) -> list[str]:
        """Return the keys that begin with a prefix; see :meth:`Bus.list_keys`.

        Keys that come or vanish meanwhile are in it, or not.
        """
        pattern = re.sub(r"([*?\[\]^\\])", r"\\\1", prefix) + "*"
        names: set[bytes] = set()
        cursor = 0
        give_up = trio.current_time() + _LONGEST_LIST
        while True:
            scan = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _BATCH)
            (reply,) = await self._ask(scan)
            match reply:
                case [bytes(position), [*found]] if position.isdigit() and all(
                    isinstance(name, bytes) for name in found
                ):
                    names.update(found)
                case _:
                    raise self._refuse(reply)
            if trio.current_time() > give_up:
                raise BusError(
                    f"{self._address} has not listed its keys within"
                    f" {_LONGEST_LIST:g} s: it has too many, or is no such server"
                )
            if len(names) > _MOST_KEYS:
                raise BusError(
                    f"{self._address} has more than {_MOST_KEYS} keys under {prefix}:"
                    " find the client that writes them, and remove them"
                )
            cursor = int(position)
            if cursor == 0:
                # What is not ASCII is none of ours.
                return [str(name, "ascii") for name in names if name.isascii()]

    async def publish(self, values: Mapping[str, bytes], /, *, expires: float) -> None:
        """Set values that vanish by themselves; see :meth:`Bus.publish`."""
        after = _to_milliseconds(expires)
        replies = await self._ask(
            *((b"SET", key, value, b"PX", after) for key, value in values.items())
        )
        for reply in replies:
            if reply != b"OK":
                raise self._refuse(reply)

    async def compare_and_set(
        self,
        key: str,
        expected: bytes | None,
        value: bytes,
        /,
        *,
        expires: float | None = None,
    ) -> bool:
        """Set a value if it is as expected; see :meth:`Bus.compare_and_set`."""
        after = b"" if expires is None else _to_milliseconds(expires)
        arguments = (key, expected or b"", value, after, LARGEST_VALUE)
        (is_set,) = await self._ask((b"EVAL", _COMPARE_AND_SET, 1, *arguments))
        if is_set not in (0, 1):
            raise self._refuse(is_set)
        return bool(is_set)

    async def _ask(self, *commands: _Command) -> list[Any]:
        """Send commands at once, and return the server's replies.

        Raises:
            BusError: A reply is missing, or is an error.
        """
        replies = await self._request(*commands)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise BusError(_explain(self._address, reply)) from reply
        return replies

    async def _request(self, *commands: _Command) -> list[Any]:
        """Send commands at once, and return the server's replies, errors included.

        Replies to a call that was cancelled are dropped when they come.

        Raises:
            BusError: A reply is missing.
        """
        connection = await self._connect()
        try:
            with connection.expect(len(commands)):
                requests = [
                    connection.create_request(
                        name, *arguments, decode=False, raise_exceptions=False
                    )
                    for name, *arguments in commands
                ]
                return [_check_reply(await request) for request in requests]
        except Exception as error:
            if isinstance(error, TimeoutError):
                # Replies come in order: those to others would wait for this one.
                connection.invalidate()
            # Whatever ended the task that reads is raised here.
            raise BusError(_explain(self._address, error)) from error

    def _refuse(self, reply: object) -> BusError:
        return BusError(_explain(self._address, _Nonsense(f"{reply!r:.80}")))

    async def _connect(self) -> _Connection:
        async with self._connecting:
            if self._connection is not None and self._connection.usable:
                if not self._connection.is_silent:
                    return self._connection
                # Those who asked did not wait for an answer, and nobody else will.
                self._connection.invalidate()
            if trio.current_time() < self._next_attempt:
                raise BusError(self._failure)
            try:
                await self._tasks.start(self._run)
            except (RedisError, OSError, ValueError) as error:
                self._failure = _explain(self._address, error)
                pause = self._backoff.begin_attempt()
                self._next_attempt = trio.current_time() + pause
                raise BusError(self._failure) from error
            with self._backoff.judge():  # it is made: pauses begin anew
                assert self._connection is not None  # noqa: S101 - as _run's status says
                return self._connection

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Make a connection, and run it until it ends.

        Raises:
            RedisError: It cannot be made.
            OSError: Likewise, or a file cannot be read or is not a certificate.
            ValueError: The password is not UTF-8.
        """
        password = _read_password(self._address)
        stream = _Metered(await _open_stream(self._address))
        connection = _Connection(self._address, password, stream)
        connection.register_connect_callback(self._take)
        try:
            await connection.run(task_status=task_status)
        except Exception:
            # Once it is made, its end is no error here: the calls that use it raise.
            if connection is not self._connection:
                raise

    def _take(self, connection: _Connection) -> None:
        self._connection = connection


def _check_reply(reply: object) -> object:
    """Return a reply, a refusal included.

    Raises:
        Exception: There is none, and none will come.
    """
    if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
        raise reply
    return reply


def _to_milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


# connections


class _Nonsense(Exception):
    """What the server sends is no reply to what it was asked; the text shows it."""


class _Metered(ByteStream):
    """A stream that ends if more comes than was asked for.

    The library keeps all that comes until it is a whole reply.

    Attributes:
        allowed: The bytes that may come.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.allowed = _MORE

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._stream.receive(max_bytes)
        self.allowed -= len(data)
        if self.allowed < 0:
            raise _Nonsense("more than it was asked for")
        return data

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Connection(BaseConnection):
    """Speaks the protocol over a stream that is open already."""

    def __init__(self, address: BusAddress, password: str, stream: _Metered) -> None:
        super().__init__(
            TCPLocation(address.host, address.port),
            stream_timeout=_ANSWER,
            username=address.user or None,
            password=password or None,
            db=address.database,
        )
        self._stream = stream
        self._address = address
        self._waiting = 0  # calls that wait for replies
        self._unanswered_since = math.inf

    @contextmanager
    def expect(self, replies: int) -> Generator[None]:
        """Wait for some replies within the block."""
        began = trio.current_time()
        self._waiting += 1
        self._stream.allowed += replies * (LARGEST_VALUE + _MORE)
        try:
            yield
        except trio.Cancelled:
            self._unanswered_since = min(self._unanswered_since, began)
            raise
        else:
            # Replies come in order: all that was asked before is answered, too.
            self._unanswered_since = math.inf
            if self._waiting == 1:
                self._stream.allowed = _MORE
        finally:
            self._waiting -= 1

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come for as long as anybody would have waited."""
        return trio.current_time() - self._unanswered_since >= _ANSWER

    async def _connect(self) -> ByteStream:
        return self._stream

    def describe(self) -> str:
        return str(self._address)


async def _open_stream(address: BusAddress) -> ByteStream:
    """Connect to the server, and agree on TLS.

    Raises:
        OSError: It fails, or takes too long.
    """
    with anyio.fail_after(_CONNECT):
        if address.path:
            return await anyio.connect_unix(address.path)
        tls = _make_tls(address)
        if tls is None:
            return await anyio.connect_tcp(address.host, address.port)
        # A server that is killed says no farewell; the protocol needs none.
        return await anyio.connect_tcp(
            address.host,
            address.port,
            ssl_context=tls,
            tls_standard_compatible=False,
        )


def _read_password(address: BusAddress) -> str:
    if address.password_file is None:
        return os.environ.get(_PASSWORD_VARIABLE, "")
    text = address.password_file.read_text(encoding="utf-8")
    return text.partition("\n")[0].strip()


def _make_tls(address: BusAddress) -> ssl.SSLContext | None:
    if not address.is_encrypted:
        return None
    for path in filter(None, (address.ca, address.certificate, address.key)):
        path.open("rb").close()  # the ssl module does not say which one is missing
    context = ssl.create_default_context(cafile=address.ca)
    if address.certificate:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(address.certificate, address.key, password="")
    return context


_NONSENSE: Final = (
    _Nonsense,
    InvalidResponse,
    ProtocolError,
    # What the library meets in a greeting that is none.
    LookupError,
    AssertionError,
)


def _explain(address: BusAddress, error: BaseException) -> str:
    """Say what went wrong, and what to do about it, in a line."""
    return make_printable(_explain_cause(address, error))


def _explain_cause(address: BusAddress, error: BaseException) -> str:
    user = address.user or "default"
    cause = _find_cause(error)
    match cause:
        case AuthenticationError():
            return (
                f"{address} does not let the user {user!r} in ({cause}): compare name"
                " and password with its access control list"
            )
        case AuthorizationError():
            return (
                f"{address} does not allow this to the user {user!r} ({cause}): use"
                " another role's user, or complete its access control list"
            )
        case ssl.SSLError():
            return (
                f"{address} and this side do not agree on TLS ({cause}): compare the"
                " files of the URL with the server's"
            )
        case TimeoutError():
            return (
                f"{address} does not answer: it is stopped or overloaded, or the"
                " network is cut"
            )
        case ResponseError():
            return f"{address} refuses ({cause}): {_find_remedy(cause)}"
        case _:
            return _explain_unreachable(address, cause)


def _find_remedy(refusal: ResponseError) -> str:
    match refusal:
        case ReadOnlyError():
            return "it is a replica: name the server that it copies in the URL"
        case WrongTypeError():
            return (
                "another program has written a key of ours: remove that key, and give"
                " the cluster a database of its own"
            )
        case _ if str(refusal).startswith("OOM"):
            return "it is full: raise its maxmemory, or see which keys fill it"
        case _:
            return "see its log, and whether it is Valkey, or Redis from 7.0 on"


def _explain_unreachable(address: BusAddress, cause: BaseException) -> str:
    if isinstance(cause, OSError) and cause.filename:
        return f"{cause.filename}: {cause.strerror}; the cluster's URL names this file"
    if isinstance(cause, UnicodeDecodeError):
        return f"{address.password_file}: it is no UTF-8, and so no password of ours"
    if isinstance(cause, BusyLoadingError):
        return f"{address} is being started ({cause}): wait until it has read its data"
    if isinstance(cause, _NONSENSE):
        return (
            f"{address} does not speak the protocol (it sends {cause}): is it Valkey,"
            " or Redis from 7.0 on?"
        )
    reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    if isinstance(cause, (ConnectionResetError, BrokenPipeError, *_ENDED)):
        return (
            f"{address} ended the connection ({reason}): it was restarted, or wants"
            " TLS, or does not accept the certificate that cert= names"
        )
    return f"{address} cannot be reached ({reason}): does it run, and listen there?"


def _find_cause(error: BaseException) -> BaseException:
    """Return what was raised first; of several addresses, for the last one."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", error)
            error = group.exceptions[-1]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return error
