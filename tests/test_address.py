"""Addresses: each way of writing one, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.address import (
    AbstractAddress,
    Address,
    TcpAddress,
    UnixAddress,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/vm.qmp", UnixAddress("/run/vm.qmp")),
        ("vm.qmp", UnixAddress("vm.qmp")),
        ("unix:/run/vm.qmp", UnixAddress("/run/vm.qmp")),
        ("unix:tcp:1", UnixAddress("tcp:1")),
        ("unix:libvirt:vm1", UnixAddress("libvirt:vm1")),
        ("unix:unix:a", UnixAddress("unix:a")),
        (Path("/run/vm.qmp"), UnixAddress("/run/vm.qmp")),
        ("tcp:localhost:4444", TcpAddress("localhost", 4444)),
        ("tcp:[::1]:4444", TcpAddress("::1", 4444)),
        ("tcp:::1:4444", TcpAddress("::1", 4444)),
        (("::1", 4444), TcpAddress("::1", 4444)),
        (("host", 1), TcpAddress("host", 1)),
        (("host", 65535), TcpAddress("host", 65535)),
        (UnixAddress("a"), UnixAddress("a")),
        (TcpAddress("a", 1), TcpAddress("a", 1)),
        ("é" * 2047, UnixAddress("é" * 2047)),
        ("unix-abstract:vm", AbstractAddress("vm")),
        ("unix:unix-abstract:vm", UnixAddress("unix-abstract:vm")),
        (AbstractAddress("é" * 53), AbstractAddress("é" * 53)),
    ],
)
def test_addresses(
    text: str | Path | tuple[str, int] | Address, address: Address
) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "unix:", "a\0b", "x" * 4096, "é" * 2048, "\ud800"),
        *("unix-abstract:", "unix-abstract:a\0", f"unix-abstract:{'x' * 108}"),
        *("tcp:", "tcp:host", "tcp:host:", "tcp::4444", "tcp:[]:4444"),
        *(
            "tcp:host:0",
            "tcp:host:65536",
            "tcp:host:" + "9" * 5000,
            "tcp:host:-1",
            "tcp:host:+1",
        ),
        *("tcp:[[:1", "tcp:[::1]]:1", ("[::1]", 1)),
        *("tcp:host:1_0", "tcp:host:٤", "tcp:host: 1", "tcp:host:x"),
        *("libvirt:vm1", "libvirt:"),
        *(("host", 0), ("host", 65536), ("", 1), ("a\0b", 1)),
    ],
)
def test_what_cannot_be_an_address(
    text: str | tuple[str, int],
) -> None:
    with pytest.raises(ValueError, match=":"):  # the remedy comes behind it
        parse_address(text)


def test_there_are_no_impossible_addresses() -> None:
    for path in ("", "a\0b", "x" * 4096):
        with pytest.raises(ValueError, match=":"):
            UnixAddress(path)
    for host, port in (("", 1), ("[::1]", 1), ("host", 0), ("host", 65536)):
        with pytest.raises(ValueError, match=":"):
            TcpAddress(host, port)


@pytest.mark.parametrize(
    "value", [None, 1, b"/run/vm.qmp", ("host",), ("host", "1"), (1, 1), 1.5]
)
def test_what_is_no_address_at_all(value: object) -> None:
    with pytest.raises(TypeError, match="write unix:PATH"):
        parse_address(value)  # type: ignore[arg-type]


@given(st.text() | st.text(alphabet="tcpunix:[]0123456789/.").map(lambda t: f"tcp:{t}"))
def test_any_text_is_an_address_that_reads_back_or_a_value_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    if not isinstance(address, UnixAddress):
        assert parse_address(str(address)) == address
    else:
        assert parse_address(f"unix:{address}") == address


def test_names_that_are_no_utf_8_are_shown_escaped() -> None:
    assert str(UnixAddress("/run/caf\udce9.sock")) == r"/run/caf\xe9.sock"
    assert str(AbstractAddress("\udcff")) == r"unix-abstract:\xff"
