"""Sphinx's configuration (`make docs`). The source folder is the repository's root: README's links work there too."""

from __future__ import annotations

import re

import codegrid

project, author, copyright = "Codegrid", "Codegrid's contributors", "Codegrid's contributors, Apache-2.0"
version = release = codegrid.__version__
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/api/*.md", "docs/recipes/*.md"]
exclude_patterns = [".venv*", "build", "dist", "runs", "tests"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"Codegrid {version}"

# Anchors as GitHub makes them; nothing is looked up in the network.
myst_heading_anchors = 3
myst_url_schemes = ("http", "https", "mailto")
suppress_warnings = ["myst.header", "misc.highlighting_failure"]  # drawings are fenced with words of our own

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
napoleon_use_ivar = True
default_role = "code"  # docstrings write `names` as Markdown does


def _plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: stars, bars and underscores outside of it mean themselves.

    An indented block after a paragraph is a command or a drawing, and stays as it is.
    """
    inside = False
    for index, line in enumerate(lines):
        before = lines[index - 1] if index else ""
        if line.startswith("    ") and not before.strip() and not inside and not _in_section(lines[:index]):
            lines[index - 1] = "::\n"
            inside = True
        elif line.strip() and not line.startswith("    "):
            inside = False
        if not inside:
            pieces = re.split(r"(`[^`]*`)", line)
            lines[index] = "".join(
                piece if piece.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", piece) for piece in pieces
            )
    lines[:] = "\n".join(lines).split("\n")


def _in_section(lines: list[str]) -> bool:
    """Whether what follows belongs to `Args:`, `Raises:` and the like, which napoleon reads."""
    heads = [line for line in lines if line.strip() and not line.startswith(" ")]
    return bool(heads) and re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields|Examples?):", heads[-1]) is not None


def setup(app) -> None:
    """Before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _plain, priority=100)
