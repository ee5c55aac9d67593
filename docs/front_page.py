"""A hook of mkdocs: the README is the site's front page as well, so that it is written once."""

from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

README = Path(__file__).parent.parent / "README.md"
PLACE = "[README.md](../README.md) comes first: it is the front page, here and on the site.\n"
"""The line of ``index.md`` that the README takes the place of."""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A page as the site has it: links to the README lead to the front page, where the README itself stands.

    Raises:
        PluginError: ``index.md`` has lost its place for it.
    """
    if page.file.src_uri == "index.md":
        if PLACE not in markdown:
            raise PluginError(f"docs/index.md has no line {PLACE!r}")
        return markdown.replace(PLACE, README.read_text(encoding="utf-8").replace("](docs/", "]("))
    return markdown.replace("](../README.md", "](index.md")
