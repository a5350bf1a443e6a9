"""Ask a real QEMU for what the fake's profile of its version is made of.

Not a test: run it by hand for a new version, and read the difference it makes::

    python tests/conformance/measure.py 10.0 > qemu-10.0.json

and, for the three long answers that are read only when they are asked for::

    python tests/conformance/measure.py 10.0 long | gzip -9n > qemu-10.0-long.json.gz

The files belong in ``qmpballoon/testing/model/data``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from real import RealMonitor, qemu_command, real_qemu

DEVICES = (
    "virtio-balloon-pci",
    "virtio-balloon-pci-transitional",
    "virtio-balloon-pci-non-transitional",
)
LISTED_TYPES = (*DEVICES, "virtio-balloon-device", "pc-dimm", "memory-backend-ram")
MONITORS = ("monitor", "monitor-hmp", "monitor-qmp")
NO_DEVICES = ("memory-backend-ram", *MONITORS)
ANCESTORS = ("virtio-balloon-pci-base", "virtio-balloon-device", "memory-backend",
             "pc-dimm", "virtio-device", "monitor")  # fmt: skip
# Queries that have nothing to do with ballooning, and that change with nothing that the
# fake simulates; but for the first four, which it adapts.
ANSWERED = tuple(
    f"query-{name}"
    for name in (
        *("block", "named-block-nodes", "memdev", "hotpluggable-cpus"),
        *("accelerators", "audiodevs", "block-exports", "block-jobs"),
        *("chardev-backends", "colo-status", "cryptodev", "current-machine"),
        *("display-options", "dump", "dump-guest-memory-capability", "fdsets"),
        *("iothreads", "jobs", "kvm", "machines", "mice", "migrate-capabilities"),
        *("migrate-parameters", "migrationthreads", "pr-managers", "replay"),
        *("rx-filter", "sev", "sev-capabilities", "sev-launch-measure", "sgx", "spice"),
        *("target", "tpm", "tpm-models", "tpm-types", "vcpu-dirty-limit"),
        *("vm-generation-id", "vnc", "vnc-servers", "xen-replication-status"),
    )
)
LONG = tuple(
    f"query-{name}"
    for name in ("qmp-schema", "cpu-definitions", "command-line-options")
)
DISK = (
    *("-blockdev", "driver=null-co,node-name=disk0,size=536870912,read-zeroes=on"),
    *("-device", "virtio-blk-pci,drive=disk0"),
)
HOTPLUG = ("-m", "512,slots=2,maxmem=2G")


def measure(version: str) -> dict[str, Any]:
    """Return everything that the profile of a version is made of."""
    with tempfile.TemporaryDirectory() as folder:
        data: dict[str, Any] = {}
        with real_qemu(qemu_command(version), Path(folder), ["-m", "512"]) as monitor:
            data["greeting"] = json.loads(monitor.receive(1))["QMP"]
            monitor.execute("qmp_capabilities")
            data |= plain(monitor)
        options = ["-m", "512", *DISK]
        with real_qemu(qemu_command(version), Path(folder), options) as monitor:
            monitor.receive(1)
            monitor.execute("qmp_capabilities")
            data["answers"] = answers(monitor)
        data["objects"] = {}
        for device in DEVICES:
            options = [*HOTPLUG, "-device", f"{device},id=balloon0"]
            with real_qemu(qemu_command(version), Path(folder), options) as monitor:
                monitor.receive(1)
                monitor.execute("qmp_capabilities")
                data["objects"] |= objects(monitor, device)
    return data


def measure_long(version: str) -> dict[str, Any]:
    """Return the answers to the queries of :data:`LONG`."""
    with (
        tempfile.TemporaryDirectory() as folder,
        real_qemu(qemu_command(version), Path(folder), ["-m", "512"]) as monitor,
    ):
        monitor.receive(1)
        monitor.execute("qmp_capabilities")
        return {name: monitor.execute(name) for name in LONG}


def plain(monitor: RealMonitor) -> dict[str, Any]:
    """Return what does not depend on a device."""
    commands = monitor.execute("query-commands")["return"]
    types: dict[str, Any] = {}
    for ancestor in ANCESTORS:
        found = monitor.execute("qom-list-types", implements=ancestor, abstract=True)
        types |= {entry["name"]: entry for entry in found["return"]}
    return {
        "commands": [command["name"] for command in commands],
        "types": list(types.values()),
        "properties": {
            name: {
                command: monitor.execute(command, typename=name)["return"]
                for command in ("qom-list-properties", "device-list-properties")
                if not (command.startswith("device") and name in NO_DEVICES)
            }
            for name in (*LISTED_TYPES, *(m for m in MONITORS if m in types))
        },
    }


def answers(monitor: RealMonitor) -> dict[str, Any]:
    """Return the answers to queries of what the version has of :data:`ANSWERED`."""
    commands = monitor.execute("query-commands")["return"]
    known = {command["name"] for command in commands}
    return {name: monitor.execute(name) for name in ANSWERED if name in known}


def objects(monitor: RealMonitor, device: str) -> dict[str, Any]:
    """Return the objects that the fake has, by type."""
    backend = {"qom-type": "memory-backend-ram", "id": "m1", "size": 128 << 20}
    monitor.execute("object-add", **backend)
    monitor.execute("device_add", driver="pc-dimm", id="d1", memdev="m1")
    balloon = "/machine/peripheral/balloon0"
    paths = {
        "/": "/",
        "/machine": "/machine",
        "/machine/unattached": "/machine/unattached",
        "/chardevs": "/chardevs",
        "/objects": "/objects",
        "memory-backend-ram": "/objects/m1",
        "pc-dimm": "/machine/peripheral/d1",
        device: balloon,
        "virtio-balloon-device": f"{balloon}/virtio-backend",
        "virtio-pci-bus": f"{balloon}/virtio-bus",
    }
    return {name: properties(monitor, path) for name, path in paths.items()}


def properties(monitor: RealMonitor, path: str) -> list[dict[str, Any]]:
    """Return an object's properties with their values, and what says no."""
    listed = monitor.execute("qom-list", path=path)["return"]
    return [entry | access(monitor, path, entry) for entry in listed]


def access(monitor: RealMonitor, path: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return a property's value and how it takes being set to it."""
    if entry["type"].startswith("child<"):
        return {}
    about = {"path": path, "property": entry["name"]}
    read = monitor.execute("qom-get", **about)
    result: dict[str, Any] = {}
    if "return" in read:
        result["value"] = read["return"]
    else:
        result["unreadable"] = read["error"]["desc"]
    if path.startswith(("/machine/peripheral/", "/objects/")):
        written = monitor.execute("qom-set", **about, value=read.get("return", ""))
        if "error" in written:
            result["refuses"] = written["error"]["desc"]
    return result


if __name__ == "__main__":
    measured = measure_long if sys.argv[2:] == ["long"] else measure
    json.dump(measured(sys.argv[1]), sys.stdout, indent=1)
    sys.stdout.write("\n")
