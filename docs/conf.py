"""Sphinx's configuration. Built by ``tox -e docs``, where a warning is an error."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from typing import TYPE_CHECKING

import attrs

import qmpballoon

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

project = "qmpballoon"
author = "The qmpballoon developers"
version = release = qmpballoon.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinxcontrib_trio",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "qmpballoon"
html_show_copyright = False
# Built by `tox -e man`.
man_pages = [
    ("reference/command", "qmpballoon", "control QEMU's virtio-balloon", "", 1),
    ("reference/doctor", "qmpballoon-doctor", "what its findings mean", "", 1),
]

myst_enable_extensions = ["colon_fence", "deflist"]
# Headings can be linked to, as in page.md#heading.
myst_heading_anchors = 3

# What tells "await" and "async with" in signatures (sphinxcontrib-trio) knows only
# this autodoc; without it, an async context manager looks like a plain function.
autodoc_use_legacy_class_based = True
# In the order of the source, which tells a story; types from the annotations.
autodoc_member_order = "bysource"
autodoc_typehints = "description"
# Defaults as they are written.
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# As fields of the class: some attributes are properties, documented there, too.
napoleon_use_ivar = True

# Every name of ours that is referred to must be there. Those of others are not
# looked up: a build needs no network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!qmpballoon\b).*"),
    # Private classes, which are shown as bases.
    ("py:class", r"qmpballoon\..*\._\w+"),
    # Type variables: signatures name them, but they have no documentation of their own.
    ("py:(class|obj)", r"qmpballoon\..*\.[A-Z](_co)?"),
]


class _Written:
    """A default as it is written in the source."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def read_defaults(kind: type) -> dict[str, str]:
    """Return the defaults of an attrs class as they are written, by parameter.

    Its ``__init__`` is generated, and has no source that says them.
    """
    defaults: dict[str, str] = {}
    for base in reversed([each for each in kind.__mro__ if attrs.has(each)]):
        source = ast.parse(textwrap.dedent(inspect.getsource(base)))
        for line in ast.walk(source):
            if not isinstance(line, ast.AnnAssign) or line.value is None:
                continue
            text = _read_default(line.value)
            if isinstance(line.target, ast.Name) and text is not None:
                defaults[line.target.id.lstrip("_")] = text
    return defaults


def _read_default(value: ast.expr) -> str | None:
    is_field = isinstance(value, ast.Call) and ast.unparse(value.func) == "field"
    if not is_field:
        return ast.unparse(value)
    given = {each.arg: ast.unparse(each.value) for each in value.keywords}
    if "factory" in given:
        return f"{given['factory']}()"
    return given.get("default")


def show_defaults(_: Sphinx, function: object, *__: object) -> None:
    """Put the defaults of an attrs class into the signature of its ``__init__``."""
    owner: object = sys.modules.get(getattr(function, "__module__", None) or "")
    *path, name = getattr(function, "__qualname__", "").split(".")
    for part in path:
        owner = getattr(owner, part, None)
    if name != "__init__" or not isinstance(owner, type) or not attrs.has(owner):
        return
    defaults = read_defaults(owner)
    signature = inspect.signature(function)  # type: ignore[arg-type]
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            parameter.replace(default=_Written(defaults[parameter.name]))
            if parameter.name in defaults
            else parameter
            for parameter in signature.parameters.values()
        ]
    )


def shorten_types(*event: list[str]) -> None:
    """Show types of attributes by their names, as those of parameters are shown.

    Napoleon writes where each is defined, and users import it from elsewhere.
    """
    lines = event[-1]
    lines[:] = [
        re.sub(r"(?<![\w.~])(?=qmpballoon\.)", "~", line)
        if line.startswith(":vartype ")
        else line
        for line in lines
    ]


def drop_links(app: Sphinx, tree: nodes.document, _: str) -> None:
    """Leave only the text of links to other pages in the man page, which is alone."""
    from docutils import nodes  # noqa: PLC0415 - comes with Sphinx; tests lack it

    if app.builder.name != "man":
        return
    for link in list(tree.findall(nodes.reference)):
        link.replace_self(link.children)


def escape_stars(_: Sphinx, __: object, lines: list[str]) -> None:
    """Keep the stars in a command's help: they are of globs, not markup."""
    lines[:] = [line.replace("*", r"\*") for line in lines]


def setup(app: Sphinx) -> None:
    """Have Sphinx call what is above, after its own reading of defaults (500)."""
    app.connect("sphinx-click-process-epilog", escape_stars)
    app.connect("autodoc-before-process-signature", show_defaults, priority=900)
    app.connect("autodoc-process-docstring", shorten_types, priority=900)
    app.connect("doctree-resolved", drop_links)
