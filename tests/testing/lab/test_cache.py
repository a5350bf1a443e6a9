"""The cache folder: where it is, its locks and its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpballoon.testing.lab import _cache as cache

if TYPE_CHECKING:
    from pathlib import Path


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QMPBALLOON_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache/qmpballoon"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg/qmpballoon"
    monkeypatch.setenv("QMPBALLOON_CACHE", str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own"


def test_a_lock_is_waited_for_until_the_caller_has_enough(tmp_path: Path) -> None:
    class EnoughError(Exception):
        pass

    def give_up() -> None:
        raise EnoughError

    lock = tmp_path / "folder/lock"
    with (
        cache.locked(lock, give_up),
        pytest.raises(EnoughError),
        cache.locked(lock, give_up),
    ):
        pass
    with cache.locked(lock, give_up):
        pass


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a/b"
    cache.write_whole(path, "old")
    cache.write_whole(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
