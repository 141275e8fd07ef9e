"""Sphinx settings; `make docs` builds strictly: a warning is an error."""

import steper_ray

project = "steper_ray"
author = "The steper_ray authors"
copyright = "The steper_ray authors"
release = steper_ray.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
autodoc_typehints = "description"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "steper_ray"
html_static_path: list[str] = []
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": False}
# Docstrings are plain text with `code` in single backquotes.
default_role = "code"
exclude_patterns = ["_build"]
