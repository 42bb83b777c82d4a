"""The pages as a site: built without a warning, with every public name, and no dead end."""

import html.parser
import subprocess
import sys
from pathlib import Path

import pytest

import efficient_lvsm_jax as elvsm

WHY = "the site is built with the extra [docs]"
inventory = pytest.importorskip("sphinx.util.inventory", reason=WHY)
for extension in ("myst_parser", "furo"):
    pytest.importorskip(extension, reason=WHY)

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", DOCS, folder]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder


class Addresses(html.parser.HTMLParser):
    """What a page links to and shows, and places in it."""

    def __init__(self, page):
        super().__init__()
        self.found, self.places = [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.found += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        self.places.add(attributes.get("id"))


def test_every_page_and_public_name_is_on_it(site):
    pages = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    assert all((site / f"{page}.html").is_file() for page in pages)
    assert {"demo.html", "rooms.html", "api/index.html"} <= {*Addresses(site / "index.html").found}
    known = inventory.InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    names = {
        name.rpartition(".")[2]
        for kind, objects in known.items()
        if kind.startswith("py:")
        for name in objects
    }
    assert {*elvsm.__all__} - {"__version__"} <= names


def test_links_lead_to_what_is_there(site):
    pages = {page: Addresses(page) for page in site.rglob("*.html")}
    missing = []
    for page, addresses in pages.items():
        for address in addresses.found:
            file, _, place = address.partition("#")
            if ":" in file or address == "#":
                continue
            target = (page.parent / file.partition("?")[0]).resolve() if file else page
            there = target in pages and (not place or place in pages[target].places)
            if not there and not (target.is_file() and target.suffix != ".html"):
                missing.append((page.name, address))
    assert not missing
