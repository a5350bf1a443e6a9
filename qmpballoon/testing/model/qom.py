"""QEMU's tree of objects (QOM).

An object of which nothing else is known is a leaf that has a type. A path may be
absolute or, as QEMU allows, the end of a path that only one object has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import define, field, frozen

from qmpballoon.testing.model.arguments import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from qmpballoon.testing.model.qobject import Value

__all__ = ["AmbiguousPath", "Node", "Property", "Tree", "make_not_found"]

Setter: TypeAlias = "Callable[[Value], None]"


def make_not_found(name: str) -> QmpError:
    """Return QEMU's error for a path or an id that no object has."""
    return QmpError(f"Device '{name}' not found", "DeviceNotFound")


class AmbiguousPath(QmpError):
    """Several objects have the path. Most commands say that none has."""


@define
class Property:
    """One property of an object.

    Attributes:
        name: Its name.
        type: Its type, as ``qom-list`` prints it.
        get: Returns its value; raises :exc:`QmpError` if it cannot be read.
        set: Sets its value; raises :exc:`QmpError` if it refuses the value.
        target: The type of the objects that it links to, if it is a link that can be
            set.
    """

    name: str
    type: str
    get: Callable[[], Value]
    set: Setter
    target: str | None = None


@frozen
class _Measured:
    """A property that answers as QEMU did when the profile was measured.

    Attributes:
        owner: The object's type.
        name: The property's name.
        value: Its value.
        unreadable: The error of reading it, if it cannot be read.
        refusal: The error of writing it; ``None``: QEMU's usual one.
        rename: Replacements in these errors.
    """

    owner: str
    name: str
    value: Value = None
    unreadable: str | None = None
    refusal: str | None = None
    rename: tuple[tuple[str, str], ...] = ()

    @property
    def is_read_only(self) -> bool:
        """Whether it can never be written."""
        return self.refusal is None or self.refusal.endswith("is not writable")

    def get(self) -> Value:
        """Return the value, or raise the error of reading it."""
        if self.unreadable is not None:
            raise QmpError(_rename(self.unreadable, self.rename))
        return self.value

    def set(self, _: Value) -> None:
        """Raise the error of writing it."""
        default = f"Property '{self.owner}.{self.name}' is not writable"
        raise QmpError(_rename(self.refusal or default, self.rename))


def _rename(text: str, rename: tuple[tuple[str, str], ...]) -> str:
    for old, new in rename:
        text = text.replace(old, new)
    return text


@define
class Node:
    """One object: its type, and its properties in the order that QEMU lists them."""

    type: str
    properties: dict[str, Property] = field(factory=dict[str, Property])

    def find(self, name: str) -> Property:
        """Return a property by its name.

        Raises:
            QmpError: The object has no such property.
        """
        if name not in self.properties:
            raise QmpError(f"Property '{self.type}.{name}' not found")
        return self.properties[name]

    def override(
        self,
        name: str,
        get: Callable[[], Value] | None = None,
        set_: Setter | None = None,
    ) -> None:
        """Replace how a property is read or written, if the object has it."""
        found = self.properties.get(name)
        if found:
            found.get = get or found.get
            found.set = set_ or found.set


def _match(path: str, paths: Collection[str]) -> list[str]:
    """Return those of full paths that a path matches, whole or by their end."""
    parts = [part for part in path.split("/") if part]
    full = "/" + "/".join(parts)
    if path.startswith("/"):
        return [full] if full in paths else []
    return [each for each in paths if each.endswith(full) or not parts]


@define
class Tree:
    """All objects, by their paths."""

    _nodes: dict[str, Node] = field(factory=lambda: {"/": Node("container")})

    def add(
        self,
        path: str,
        type_: str,
        entries: Sequence[dict[str, Any]] = (),
        rename: tuple[tuple[str, str], ...] = (),
    ) -> Node:
        """Add an object, and its children as far as its properties list them.

        Args:
            path: Its path.
            type_: Its type.
            entries: Its properties in the profile's form; none: only its type.
            rename: Replacements in the values and errors, which were measured on
                another object of the type.
        """
        node = Node(type_)
        self._nodes[path] = node
        self._put(path, node, {"name": "type", "type": "string", "value": type_}, ())
        for entry in entries:
            if entry["name"] != "type":
                self._put(path, node, entry, rename)
        return node

    def add_child(
        self,
        parent: str,
        name: str,
        type_: str,
        **options: Any,  # noqa: ANN401 - those of add()
    ) -> Node:
        """Add an object as :meth:`add` does, and a property of its parent for it."""
        entry = {"name": name, "type": f"child<{type_}>"}
        self._put(parent, self._nodes[parent], entry, ())
        return self.add(f"{parent}/{name}", type_, **options)

    def has_child(self, parent: str, name: str) -> bool:
        """Whether an object has a child, or another property, with a name."""
        return name in self._nodes[parent].properties

    def remove_child(self, parent: str, name: str) -> None:
        """Remove an object and all below it."""
        path = f"{parent}/{name}"
        del self._nodes[parent].properties[name]
        for each in [p for p in self._nodes if f"{p}/".startswith(f"{path}/")]:
            del self._nodes[each]

    def _put(
        self,
        path: str,
        node: Node,
        entry: dict[str, Any],
        rename: tuple[tuple[str, str], ...],
    ) -> None:
        name, type_ = entry["name"], entry["type"]
        value = entry.get("value")
        if isinstance(value, str):
            value = _rename(value, rename)
        if type_.startswith("child<"):
            value = f"{path.rstrip('/')}/{name}"
            self._nodes.setdefault(value, Node(type_[6:-1]))
            leaf = self._nodes[value]
            about = _Measured(leaf.type, "type", leaf.type)
            own = Property("type", "string", about.get, about.set)
            leaf.properties.setdefault("type", own)
        about = _Measured(
            node.type,
            name,
            value,
            entry.get("unreadable"),
            entry.get("refuses"),
            rename,
        )
        target = None
        if type_.startswith("link<") and not about.is_read_only:
            target = type_[len("link<") : -1]
        node.properties[name] = Property(name, type_, about.get, about.set, target)

    def resolve(self, path: str, shown: str | None = None) -> str:
        """Return the full path of the one object that has a path.

        Args:
            path: The path.
            shown: What the error shows instead of the path.

        Raises:
            AmbiguousPath: Several objects have it.
            QmpError: No object has it.
        """
        found = _match(path, self._nodes)
        if len(found) > 1:
            raise AmbiguousPath(f"Path '{path}' is ambiguous")
        if not found:
            raise make_not_found(path if shown is None else shown)
        return found[0]

    def check_link(
        self, name: str, target: str, value: Value, itself: str | None = None
    ) -> str | None:
        """Check the value that a link to another object is set to.

        Args:
            name: The property's name.
            target: The type of the objects that it links to.
            value: The path of an object of that type.
            itself: The path of the property's own object, if that is not in the tree
                yet.

        Returns:
            The full path; ``None`` for an empty path, which links to nothing.

        Raises:
            QmpError: The value is no path, or that of no object or of one of another
                type.
        """
        if not isinstance(value, str):
            raise QmpError(f"Invalid parameter type for '{name}', expected: string")
        if not value:
            return None
        named = _match(value, self._nodes)
        for full in named:
            if f"{self._nodes[full].type}-".startswith(f"{target}-"):
                return full
        if named or (itself and _match(value, [itself])):
            raise QmpError(f"Invalid parameter type for '{name}', expected: {target}")
        raise make_not_found(value)

    def __getitem__(self, path: str) -> Node:
        return self._nodes[path]

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)
