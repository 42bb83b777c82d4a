"""Who may import whom: every import goes down, and rooms of one layer do not know each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE, DATA = "efficient_lvsm_jax", "data_pipeline"
LAYERS = (
    "errors version",
    "files shipped",
    "configuration geometry media parallel",
    "commands metrics nn",
    "backbones data_pipeline",
    "models",
    "cost sessions weights",
    "evaluation runs training",
    "aot compress convert demo doctor export reconstruct render viewer",
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms.split()}
# What reads pictures and cameras must not load a network into a data worker, nor be read by one.
BELOW_DATA = {"commands", "configuration", "errors", "files", "geometry", "media"}
ABOVE_DATA = {"evaluation", "sessions", *LAYERS[-1].split()}


def room_of(module):
    top, _, rest = module.partition(".")
    return DATA if top == DATA else rest.partition(".")[0]


def imports(path):
    """The modules of this project that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module in (PACKAGE, DATA):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module or ""]
        else:
            continue
        yield from (name for name in found if name.partition(".")[0] in (PACKAGE, DATA))


def problems(room, imported):
    other = room_of(imported)
    if other == room:
        return
    if other not in HEIGHT:
        yield f"imports {imported}, which is no room"
    elif HEIGHT[room] <= HEIGHT[other]:
        yield f"imports {imported}, which is not below it"
    elif room == DATA and other not in BELOW_DATA:
        yield f"imports {imported}; {DATA} imports {', '.join(sorted(BELOW_DATA))} alone"
    elif other == DATA and room not in ABOVE_DATA:
        yield f"imports {imported}; only {', '.join(sorted(ABOVE_DATA))} import {DATA}"


def test_every_import_goes_down():
    found = []
    for path in [*ROOT.glob(f"{PACKAGE}/**/*.py"), *ROOT.glob(f"{DATA}/**/*.py")]:
        relative = path.relative_to(ROOT)
        module = ".".join(relative.with_suffix("").parts)
        if module in (f"{PACKAGE}.__init__", f"{PACKAGE}.__main__"):
            continue  # the face of the package names what it offers
        for imported in imports(path):
            found += [f"{relative} {what}" for what in problems(room_of(module), imported)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "imported", "wrong"),
    [
        ("nn", f"{PACKAGE}.models.model", "not below"),
        ("training", f"{PACKAGE}.evaluation.results", "not below"),
        ("training", f"{DATA}.scenes", "only"),
        (DATA, f"{PACKAGE}.nn.attention", "alone"),
        ("nn", f"{PACKAGE}.cellar", "no room"),
    ],
)
def test_an_import_that_goes_up_is_seen(room, imported, wrong):
    (problem,) = problems(room, imported)
    assert wrong in problem
