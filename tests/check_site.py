"""Look through the built documentation for what a reader would stumble over; `make docs` runs it on build/site."""

import importlib
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADS = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}
"""Attributes that a browser fetches by itself."""

PUBLIC = (
    "",
    ".agents",
    ".envs",
    ".evaluation.protocol",
    ".hw_emulator",
    ".llm",
    ".runtime",
    ".runtime.actuators",
    ".runtime.meters",
)
"""Modules of the package whose names the API reference has to have."""


@dataclass
class Page(HTMLParser):
    """What a page refers to, and what can be referred to on it."""

    anchors: set[str] = field(default_factory=set)
    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if found.get(_LOADS.get(tag, "")) and found.get("rel") != "canonical":
            self.loads.append(found[_LOADS[tag]])


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def problems(site: Path) -> Iterator[str]:
    """One sentence for each image, file or anchor that is not there, and for each thing that is fetched from elsewhere."""
    pages = {path.resolve(): read(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: no pages"
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its addresses are absolute, as it is shown at any depth
        where = path.relative_to(site.resolve())
        for address in page.loads:
            if urlsplit(address).scheme not in ("", "data") or address.startswith("//"):
                yield f"{where}: fetches {address} from elsewhere"
        for address in [*page.loads, *page.links]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                yield f"{where}: {address} is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{where}: {address} has no such anchor"


def missing(site: Path) -> Iterator[str]:
    """One sentence for each public name that the API reference lacks."""
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    shown = {line.split(" ", 1)[0] for line in lines}
    for part in PUBLIC:
        module = importlib.import_module(f"clone_rl{part}")
        own = (name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__)
        for name in getattr(module, "__all__", own):
            if not name.startswith("_") and f"clone_rl{part}.{name}" not in shown:
                yield f"clone_rl{part}.{name} is in no page of docs/api"


def main() -> int:
    site = Path(sys.argv[1])
    found = [*problems(site), *missing(site)]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
