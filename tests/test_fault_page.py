"""The page on faults has a row for each test that makes one, and no other."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from chaos import rows

TESTS = sorted((Path(__file__).parent / "qemu").glob("test_chaos*.py"))


def titles(path: Path) -> list[str]:
    """Return the rows that a file's tests are held against, in their order."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [item for name, item in vars(module).items() if name.startswith("test_")]
    assert tests
    return [test.fault for test in tests]  # a test without one is an error


def test_the_page_s_rows_are_the_tests() -> None:
    assert TESTS
    assert list(rows()) == [title for path in TESTS for title in titles(path)]
