"""The object tree, as far as ballooning looks at it.

Objects come from the profile; those that ballooning has nothing to do with are
leaves that know their type. Paths may be absolute or, as QEMU allows, any unique
end of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import define, field, frozen

from qmpballoon.testing.model.visit import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from qmpballoon.testing.model.qobject import Value

__all__ = ["AmbiguousPath", "Node", "Property", "Tree", "device_not_found"]

Setter: TypeAlias = "Callable[[Value], None]"


def device_not_found(name: str) -> QmpError:
    """Return QEMU's error for a path or an id that names nothing."""
    return QmpError(f"Device '{name}' not found", "DeviceNotFound")


class AmbiguousPath(QmpError):
    """A path could mean several objects; most commands say that it means none."""


@define
class Property:
    """One property of an object.

    Attributes:
        name: Its name.
        type: Its type, as ``qom-list`` prints it.
        get: Returns its value.
        set: Takes a value; raises :exc:`QmpError` when it refuses.
        target: The type of the objects it points to, if it does, and can be set.
    """

    name: str
    type: str
    get: Callable[[], Value]
    set: Setter
    target: str | None = None


@frozen
class _Measured:
    """How a property answers of which nothing is known but what QEMU once said.

    Attributes:
        owner: The object's type.
        name: The property's name.
        value: Its value.
        unreadable: What was said instead of a value.
        refusal: What was said to whoever wrote to it; None: QEMU's usual words.
        rename: Replacements in these words.
    """

    owner: str
    name: str
    value: Value = None
    unreadable: str | None = None
    refusal: str | None = None
    rename: tuple[tuple[str, str], ...] = ()

    @property
    def is_read_only(self) -> bool:
        """Whether nobody can write to it at any time."""
        return self.refusal is None or self.refusal.endswith("is not writable")

    def get(self) -> Value:
        """Return the value, or raise what was said instead."""
        if self.unreadable is not None:
            raise QmpError(_renamed(self.unreadable, self.rename))
        return self.value

    def set(self, _: Value) -> None:
        """Raise what was said to whoever wrote to it."""
        default = f"Property '{self.owner}.{self.name}' is not writable"
        raise QmpError(_renamed(self.refusal or default, self.rename))


def _renamed(text: str, rename: tuple[tuple[str, str], ...]) -> str:
    for old, new in rename:
        text = text.replace(old, new)
    return text


@define
class Node:
    """One object: its type, its properties, in the order in which they are listed."""

    type: str
    properties: dict[str, Property] = field(factory=dict[str, Property])

    def find(self, name: str) -> Property:
        """Return a property by its name.

        Raises:
            QmpError: There is none.
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
        """Let a property, if there is one, be a function of the machine's state."""
        found = self.properties.get(name)
        if found:
            found.get = get or found.get
            found.set = set_ or found.set


def _named_by(path: str, paths: Collection[str]) -> list[str]:
    """Return those of full paths that a path, or the end of one, names."""
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
        """Add an object, and what its children are as far as they are listed.

        Args:
            path: Where.
            type_: Its type.
            entries: Its properties, as the profile has them; none: its type only.
            rename: Replacements in the values and words that were measured on
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
        **options: Any,  # noqa: ANN401
    ) -> Node:
        """Add an object as :meth:`add` does, and list it at its parent's."""
        entry = {"name": name, "type": f"child<{type_}>"}
        self._put(parent, self._nodes[parent], entry, ())
        return self.add(f"{parent}/{name}", type_, **options)

    def has_child(self, parent: str, name: str) -> bool:
        """Tell whether an object has a child, or another property, of a name."""
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
            value = _renamed(value, rename)
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
        """Return the full path of the one object that a path names.

        Args:
            path: The path.
            shown: What the error names, if that is not the path.

        Raises:
            AmbiguousPath: It names several.
            QmpError: It names none.
        """
        found = _named_by(path, self._nodes)
        if len(found) > 1:
            raise AmbiguousPath(f"Path '{path}' is ambiguous")
        if not found:
            raise device_not_found(path if shown is None else shown)
        return found[0]

    def check_link(
        self, name: str, target: str, value: Value, itself: str | None = None
    ) -> str | None:
        """Check what a property is set to that points to another object.

        Args:
            name: The property's name.
            target: The type of object it points to.
            value: A path, of an object of that type.
            itself: The path of the property's object, if that is about to be added.

        Returns:
            The full path; ``None`` for an empty one, which points to nothing.

        Raises:
            QmpError: It is no path, or leads to nothing, or to another thing.
        """
        if not isinstance(value, str):
            raise QmpError(f"Invalid parameter type for '{name}', expected: string")
        if not value:
            return None
        named = _named_by(value, self._nodes)
        for full in named:
            if f"{self._nodes[full].type}-".startswith(f"{target}-"):
                return full
        if named or (itself and _named_by(value, [itself])):
            raise QmpError(f"Invalid parameter type for '{name}', expected: {target}")
        raise device_not_found(value)

    def __getitem__(self, path: str) -> Node:
        return self._nodes[path]

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)
