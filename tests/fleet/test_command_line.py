"""QEMU's command lines as people and managers write them."""

from __future__ import annotations

from typing import Never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.address import AbstractAddress, TcpAddress, UnixAddress
from qmpballoon.fleet.command_line import CommandLine, parse_command_line

CHARDEV = "-chardev socket,id=q,path=/r/1.qmp,server=on"


def no_config(path: str) -> Never:
    raise FileNotFoundError(2, "No such file or directory", path)


def parse(line: str) -> CommandLine:
    return parse_command_line(line.split(), no_config)


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("-qmp unix:/run/a.qmp,server=on,wait=off", UnixAddress("/run/a.qmp")),
        ("-qmp unix:a.qmp,server,nowait", UnixAddress("a.qmp")),
        ("-qmp unix:/a,server=yes,wait=no", UnixAddress("/a")),
        ("-qmp unix:/a,server=true", UnixAddress("/a")),
        ("-qmp unix:/a,server=y,wait=n", UnixAddress("/a")),
        ("-S --qmp unix:/a,server=on -S", UnixAddress("/a")),
        ("--qmp-pretty unix:/a,,b,server=on", UnixAddress("/a,b")),
        ("-qmp unix:vm,abstract=on,server=on", AbstractAddress("vm")),
        ("-qmp unix:vm,abstract=on,tight=on,server", AbstractAddress("vm")),
        ("-qmp tcp::4444,server=on", TcpAddress("localhost", 4444)),
        ("-qmp tcp:[::1]:4444,server=on", TcpAddress("::1", 4444)),
        (f"-mon chardev=q,mode=control {CHARDEV}", UnixAddress("/r/1.qmp")),
        (f"{CHARDEV} -mon q,mode=control", UnixAddress("/r/1.qmp")),
        (f"{CHARDEV} -qmp chardev:q", UnixAddress("/r/1.qmp")),
        (f"{CHARDEV} -object monitor-qmp,id=m,chardev=q", UnixAddress("/r/1.qmp")),
        (
            f'{CHARDEV} -object {{"qom-type":"monitor-qmp","id":"m","chardev":"q"}}',
            UnixAddress("/r/1.qmp"),
        ),
        (
            "-mon m,mode=control -chardev socket,host=0.0.0.0,port=1,server=on,id=m",
            TcpAddress("127.0.0.1", 1),
        ),
        (
            "-chardev socket,id=q,path=vm,abstract=yes,server=y -qmp chardev:q",
            AbstractAddress("vm"),
        ),
    ],
)
def test_monitors(line: str, address: object) -> None:
    (monitor,) = parse(line).monitors
    assert (monitor.address, monitor.problem) == (address, "")


def test_a_socket_that_qemu_was_given() -> None:
    line = "-chardev socket,id=m,fd=33,server=on -mon chardev=m,mode=control"
    (monitor,) = parse(line).monitors
    assert (monitor.address, monitor.descriptor, monitor.problem) == (None, 33, "")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("-qmp stdio", "is on stdio, and not on a socket"),
        ("-qmp unix:/run/client.sock", "connects to /run/client.sock itself"),
        ("-qmp unix:/a,server=off", "connects to /a itself"),
        ("-qmp unix:/a,noserver", "connects to /a itself"),
        ("-mon chardev=gone,mode=control", "has no -chardev of the id 'gone'"),
        ("-qmp chardev:gone", "has no -chardev of the id 'gone'"),
        ("-qmp tcp:host:port,server=on", "has an address that cannot be"),
        ("-qmp tcp::0,server=on", "has an address that cannot be"),
        ("-qmp telnet::44,server=on", "speaks telnet on tcp:localhost:44"),
        ("-qmp websocket::44,server=on", "speaks websocket on tcp:localhost:44"),
        (
            "-chardev socket,id=q,path=/a,server=on,telnet=yes -mon q,mode=control",
            "speaks telnet on /a",
        ),
        (
            "-chardev socket,id=q,path=/a,server,websocket -mon q,mode=control",
            "speaks websocket on /a",
        ),
        (
            "-chardev socket,id=q,port=4,server=on,tls-creds=t -qmp chardev:q",
            "wants TLS on tcp:localhost:4",
        ),
        ("-qmp unix:vm,abstract=on,tight=off,server", "with tight=off"),
        ("-chardev pty,id=q -qmp chardev:q", "is on pty"),
    ],
)
def test_monitors_that_no_client_can_use(line: str, problem: str) -> None:
    (monitor,) = parse(line).monitors
    assert problem in monitor.problem


@pytest.mark.parametrize(
    "line",
    [
        "-monitor unix:/run/a,server=on",
        "-chardev socket,id=m,path=/run/hmp,server=on -mon chardev=m,mode=readline",
        "-object monitor-hmp,id=m,chardev=q",
        "-object {",
        "-qmp none",
        "-qmp",
        "",
    ],
)
def test_no_monitors(line: str) -> None:
    assert parse(line) == CommandLine("", ())


def test_the_order_is_the_command_lines() -> None:
    config = '[chardev "c"]\nbackend = "socket"\npath = "/2"\nserver = "on"\n'
    config += '# Incus writes it so\n[mon]\n  chardev = "c"\nmode = "control"\n'
    config += '[name]\nguest = "web"\n'
    seen = parse_command_line(
        ["-qmp", "unix:/1,server", "-readconfig", "/conf", "-qmp", "unix:/3,server"],
        {"/conf": config}.__getitem__,
    )
    assert [str(monitor.address) for monitor in seen.monitors] == ["/1", "/2", "/3"]
    assert (seen.name, seen.problem) == ("web", "")


def test_a_configuration_that_cannot_be_read() -> None:
    seen = parse("-qmp unix:/1,server -readconfig /conf")
    assert len(seen.monitors) == 1
    assert seen.problem == (
        "its -readconfig /conf cannot be read: No such file or directory"
    )


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("-name web", "web"),
        ("-name guest=web,debug-threads=on", "web"),
        ("-name web,process=vm1", "web"),
        ("-name process=vm1", ""),
    ],
)
def test_names(line: str, name: str) -> None:
    assert parse(line).name == name


OPTIONS = ["-qmp", "-mon", "-chardev", "-object", "-name", "-readconfig"]
WORDS = st.sampled_from([*OPTIONS, "unix:", "tcp:", *",=[]{}:0"])


@given(st.lists(st.lists(WORDS | st.text(max_size=4), max_size=5).map("".join)))
def test_any_command_line_can_be_read(arguments: list[str]) -> None:
    parse_command_line(arguments, lambda _: "".join(arguments))
