"""What is kept on a disk is there whole, or is known to be damaged."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from qmpballoon.cluster._fields import Malformed
from qmpballoon.cluster.store import Store

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_kept_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "folder")
    assert store.read("policy") is None
    for data in (b"one", b"", b"two\nlines\n"):
        store.write("policy", data)
        assert store.read("policy") == data
    assert store.read("jobs") is None
    assert [path.name for path in store.folder.iterdir()] == ["policy"]
    assert (store.folder / "policy").stat().st_mode & 0o777 == 0o600
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_what_is_damaged_does_not_count(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("policy", b"one two three")
    path = tmp_path / "policy"
    whole = path.read_bytes()
    for data in (b"", whole[:-1], whole + b" ", whole.replace(b"two", b"TWO"), b"\n"):
        path.write_bytes(data)
        with pytest.raises(Malformed, match="policy is damaged"):
            store.read("policy")
    path.unlink()
    path.mkdir()
    with pytest.raises(Malformed, match="cannot be read: Is a directory"):
        store.read("policy")


def test_one_that_was_killed_while_writing_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write("policy", b"old")
    synced: list[int] = []

    def die(descriptor: int) -> None:
        synced.append(descriptor)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", die)
        with pytest.raises(OSError, match="No space"):
            store.write("policy", b"new")
    assert len(synced) == 1  # before it takes the old one's place
    assert store.read("policy") == b"old"
    store.write("policy", b"new")
    assert store.read("policy") == b"new"


def test_a_link_that_somebody_put_there_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    store = Store(tmp_path / "folder")
    store.folder.mkdir()
    (store.folder / ".policy.new").symlink_to(victim)
    store.write("policy", b"new")
    assert store.read("policy") == b"new"
    assert victim.read_bytes() == b"mine"
