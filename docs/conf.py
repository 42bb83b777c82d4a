"""The site of these pages: `make docs` writes it to build/docs."""

import re
import sys
from pathlib import Path
from urllib.parse import unquote

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project = html_title = "efficient_lvsm_jax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
myst_heading_anchors = 3
default_role = "code"  # `single backticks` in docstrings
autodoc_member_order = "bysource"
napoleon_use_ivar = True  # attributes in a list
html_theme_options = {"light_css_variables": {"code-font-size": "75%"}}  # 98 columns

# Pages whose text lies elsewhere, because it is shown there, too.
SHIPPED = ROOT / "efficient_lvsm_jax/shipped"
ELSEWHERE = {
    "index": ROOT / "README.md",
    **{name: SHIPPED / f"{name}.md" for name in ("rooms", "rooms-geometry")},
}
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")  # to a file


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Files link to each other as they lie in the repository; here to pages, or to copies."""
    text, folder = source[0], (DOCS / name).parent
    if name in ELSEWHERE:
        file = ELSEWHERE[name]
        text, folder = f"{file.read_text(encoding='utf-8')}\n{text}", file.parent
        app.env.note_dependency(str(file))

    def placed(link: re.Match) -> str:
        file = (folder / unquote(link[0])).resolve()
        pages = [f"/{page}.md" for page, other in ELSEWHERE.items() if other == file]
        if pages or not file.is_file():
            return pages[0] if pages else link[0]
        if file.is_relative_to(DOCS):
            return f"/{file.relative_to(DOCS)}"
        return f"path:/../{file.relative_to(ROOT)}"

    source[0] = LINK.sub(placed, text)


def read_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Indented lines of a module's docstring stay lines; attributes that share one stay together.

    Of `:ivar width, height:` Sphinx would take the first word for a type.
    """
    for i in range(len(lines) - 1, -1, -1):
        lines[i] = re.sub(r"^:ivar [\w, ]+(?=:)", lambda it: it[0].replace(", ", "/"), lines[i])
        begins = lines[i].startswith("    ") and i > 1 and not lines[i - 1]
        if what == "module" and begins and lines[i - 2][:1].strip():
            lines[i:i] = ["::", ""]


def setup(app: Sphinx) -> None:
    """Sphinx calls it."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring)
