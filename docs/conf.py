"""Sphinx: `make docs` builds these pages into build/docs, and any warning is an error. Nothing is fetched."""

from importlib.metadata import version as version_of

project = "blora"
version = release = version_of("blora")
copyright = "the authors of blora, Apache-2.0"

extensions = ["myst_parser"]
exclude_patterns = ["**/__pycache__"]
source_suffix = {".md": "markdown"}
nitpicky = True
smartquotes = False  # two dashes are a flag

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme = "furo"
html_title = "blora"
html_copy_source = False
html_show_sphinx = False
