"""Sphinx's configuration. Built by ``tox -e docs``, where a warning is an error."""

from __future__ import annotations

import qmpballoon

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
