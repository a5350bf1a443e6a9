"""What is plugged into a machine, and what is refused; asked of real QEMUs, too."""

from __future__ import annotations

from typing import Any

import pytest
from talk import Client, make

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import PROFILES, SECOND, FaultPlan

BAD_ID = "Parameter 'id' expects an identifier"


def slotted(version: str = "10.0", **options: Any) -> Client:  # noqa: ANN401
    sizes = {"memory": 512 * MiB, "slots": 2, "max_memory": 2 * GiB}
    client = make(version, **{**sizes, **options})
    for name, size in (("m1", 128 * MiB), ("m2", 64 * MiB), ("odd", 12345)):
        assert add(client, id=name, size=size) == {}
    return client


def add(client: Client, **arguments: object) -> dict[str, Any]:
    return client.execute(
        "object-add", **{"qom-type": "memory-backend-ram"}, **arguments
    )


def plug(client: Client, **arguments: object) -> dict[str, Any]:
    return client.execute("device_add", **{"driver": "pc-dimm", **arguments})


def devices(client: Client) -> list[dict[str, Any]]:
    answer: Any = client.execute("query-memory-devices")
    return list(answer)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "'memdev' property must be set"),
        ({"memdev": "nope"}, "Device 'nope' not found"),
        ({"memdev": "d", "id": "d"}, "Invalid parameter type for 'memdev', expected:"),
        ({"memdev": "/machine"}, "Invalid parameter type for 'memdev', expected:"),
        ({"memdev": "pc.ram"}, "can't use already busy memdev: pc.ram"),
        ({"memdev": "odd"}, "backend memory size must be multiple of 0x200000"),
        ({"memdev": "m1", "x": 1}, "Property 'pc-dimm.x' not found"),
        ({"memdev": "m1", "size": 1}, "Property 'pc-dimm.size' is not writable"),
        ({"memdev": "m1", "node": 1}, "'DIMM property node has value 1' which"),
        ({"memdev": "m1", "slot": 2}, "invalid slot number 2, valid range is [0-1]"),
        ({"memdev": "m1", "addr": MiB}, "address must be aligned to 0x200000 bytes"),
        ({"memdev": "m1", "addr": GiB}, "can't add memory device [0x40000000:"),
        ({"memdev": "m1", "id": "balloon0"}, "Duplicate device ID 'balloon0'"),
        ({"driver": "virtio-device"}, "Parameter 'driver' expects a non-abstract"),
        ({"driver": "virtio-balloon-pci"}, "Bus 'pcie.0' does not support hotplugging"),
        ({"bus": "nope"}, "Bus 'nope' not found"),
        ({"bus": "pcie.0"}, "Device 'pc-dimm' can't go on PCIE bus"),
    ],
)
@pytest.mark.parametrize("version", PROFILES)
def test_what_cannot_be_plugged(
    version: str, arguments: dict[str, object], why: str
) -> None:
    client = slotted(version)
    assert plug(client, **arguments)["desc"].startswith(why)
    assert devices(client) == []
    assert client.execute("query-balloon") == {"actual": 512 * MiB}


def test_old_versions_read_options_and_later_ones_values() -> None:
    old, new = slotted("7.2"), slotted("11.1")
    assert plug(old, memdev="m1", slot="0x1") == {}
    (dimm,) = old.machine.dimms.values()
    assert (dimm.slot, dimm.id) == (1, None)
    assert plug(new, memdev="m1", slot="0x1")["desc"].endswith("expected: integer")
    for value, text in ((True, "on"), (-0.0, "-0"), (1e30, "1e+30"), (7, "7")):
        assert plug(old, driver=value)["desc"].startswith(f"'{text}' is not a valid")
        assert plug(new, driver=value)["desc"] == "Parameter 'driver' is missing"
    # An id that is no text is none, and a value that no option can have is left out.
    assert plug(old, id=1, memdev={})["desc"] == "'memdev' property must be set"
    assert plug(new, id=1, memdev={})["desc"].endswith("expected: string")


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        ("7.2", BAD_ID),
        ("10.0", None),
        ("11.1", "Invalid qdev ID '3/'"),
    ],
)
def test_an_id_that_is_none(version: str, answer: str | None) -> None:
    client = slotted(version)
    assert plug(client, id="3/", memdev="m1").get("desc") == answer
    assert add(client, id="3/", size=MiB)["desc"] == BAD_ID


def test_a_fault_plugs_what_can_be_plugged() -> None:
    with pytest.raises(ValueError, match="plug_size is 4096: it must be whole 2 MiB"):
        FaultPlan(plug_size=4096)


def test_dimms_stand_in_a_row() -> None:
    client = slotted()
    for name in ("m1", "m2"):
        assert plug(client, memdev=name) == {}
    places = [each["data"]["addr"] for each in devices(client)]
    assert places == [4 * GiB, 4 * GiB + 128 * MiB]


def test_dimms_share_slots_and_addresses() -> None:
    client = slotted()
    assert plug(client, id="far", memdev="m1", addr=5 * GiB) == {}
    close = plug(client, memdev="m2", addr=5 * GiB + 64 * MiB)
    assert close["desc"] == "address range conflicts with memory device id='far'"
    assert plug(client, memdev="m2", slot=0)["desc"] == "slot 0 is busy"
    assert plug(client, memdev="m2") == {}
    anonymous, far = devices(client)
    assert (far["data"]["id"], far["data"]["addr"]) == ("far", 5 * GiB)
    assert ("id" in anonymous["data"], anonymous["data"]["addr"]) == (False, 4 * GiB)
    assert plug(client, memdev="m2")["desc"] == "no free slots available"
    assert client.execute("query-balloon") == {"actual": (512 + 128 + 64) * MiB}
    client.execute("device_del", id="/machine/peripheral-anon/device[2]")
    client.advance(SECOND)
    ((_, gone),) = client.events
    assert gone["data"] == {"path": "/machine/peripheral-anon/device[2]"}
    assert client.execute("object-del", id="m2") == {}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"size": 0}, "property 'size' of memory-backend-ram doesn't take value '0'"),
        ({"size": 1 << 50}, "cannot set up guest memory 'm': Cannot allocate memory"),
        ({"x": 1}, "Parameter 'x' is unexpected"),
        ({"share": 1}, "Invalid parameter type for 'share', expected: boolean"),
        ({"policy": "nope"}, "Parameter 'policy' does not accept value 'nope'"),
        ({"policy": "bind"}, "host-nodes must be set for policy bind"),
        ({"host-nodes": [0]}, "host-nodes must be empty for policy default, or you"),
        ({"host-nodes": ["a"]}, "Parameter 'host-nodes[0]' expects uint64"),
        ({"host-nodes": [1 << 16]}, "Parameter 'null' expects uint16_t"),
        (
            {"prealloc-threads": 1 << 32},
            "Parameter 'prealloc-threads' expects uint32_t",
        ),
        ({"prealloc-context": "m"}, "Device 'm' not found"),
    ],
)
def test_what_is_no_memory(arguments: dict[str, object], why: str) -> None:
    client = make()
    answer = add(client, **{"id": "m", "size": MiB, **arguments})
    assert answer["desc"].startswith(why)
    assert client.execute("object-del", id="m")["desc"] == "object 'm' not found"


def test_a_size_that_qemu_dies_of() -> None:
    client = make()
    request = b'{"execute": "object-add", "arguments": {"qom-type":'
    client.session.receive(request + b' "memory-backend-ram", "id": "m", "size": -1}}')
    assert client.read() == []
    assert client.session.closed


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nope", "Device 'nope' not found"),
        ("", " is not a device"),
        ("/machine", "/machine is not a device"),
        ("/machine/unattached/device[0]", "Boot CPU is unpluggable"),
        ("balloon0/virtio-backend", "Bus 'virtio-bus' does not support hotplugging"),
    ],
)
def test_what_cannot_be_unplugged(name: str, why: str) -> None:
    assert slotted().execute("device_del", id=name)["desc"] == why
