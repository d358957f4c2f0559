"""What the documentation shows runs, its links lead somewhere, and its reference is complete."""

import ast
import doctest
import io
import re
from pathlib import Path
from types import ModuleType

import pytest

import jfree

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "benchmarks").rglob("*.md"), *DOCS])
FENCE = re.compile(r"\s*```(\S*)$")


def name(path):
    return path.relative_to(ROOT).as_posix()


def blocks(page):
    """`(language, line)` line by line, fences blank; the language is None outside of blocks of code."""
    language = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if fence:
            assert (language is None) == bool(fence[1]), f"{name(page)}:{number}: a block of code without a language"
            language = fence[1] or None
        yield language, "" if fence else line


def python_of(page):
    """The page with all but its Python blank: lines keep their numbers."""
    return [line if language == "python" else "" for language, line in blocks(page)]


@pytest.mark.parametrize("page", [page for page in DOCS if any(python_of(page))], ids=name)
def test_examples_run(page):
    lines = python_of(page)
    for framework in ("flax", "torch"):
        if any(re.search(rf"\b(import|from) {framework}\b", line) for line in lines):
            pytest.importorskip(framework)
    starts = [line for before, line in zip(["", *lines], lines, strict=False) if line and not before]
    assert all(line.startswith(">>>") for line in starts), "Python blocks are doctests"
    test = doctest.DocTestParser().get_doctest("\n".join(lines), {}, name(page), str(page), 0)
    report = io.StringIO()
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.write)
    assert not failed, report.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    prose = "\n".join(line for language, line in blocks(page) if language is None)
    links = re.findall(r"\]\(([^)#\s:]+)[)#]", prose)
    assert not [link for link in links if not (page.parent / link).exists()]


def test_wings_import_what_their_rows_say():
    """As the table of `ARCHITECTURE.md` has them, which has all, the lowest first."""
    table = [line.split("|")[1:4] for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line[:3] == "| `"]
    allowed = {}
    for wings, _, imports in table[1:]:
        above = {"_numerics", *allowed} if imports.strip() == "all" else {"_numerics", *named(imports)}
        assert above <= {"_numerics", *allowed}, f"{wings} imports from below"
        allowed |= {wing: above | set(named(wings)) for wing in named(wings)}
    below = {("_spectrum", "plot")}  # inside a function
    for path in (ROOT / "jfree").rglob("*.py"):
        wing, *_ = place = path.relative_to(ROOT / "jfree").with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            if wing != "__init__" and isinstance(node, ast.ImportFrom) and node.level:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                for name in names:
                    other = (*place[: len(place) - node.level], *name.split("."))[0]
                    assert other in allowed[wing] or (wing, other) in below, f"{path}: {other}"


def named(cell):
    return re.findall(r"`(\w+)(?:\.py|/)?`", cell)


def test_reference_is_complete():
    own = (jfree.objectives, jfree.constraints, jfree.empirical)
    names = {f"jfree.{name}" for name in public(jfree)}
    names |= {f"jfree.activations.{name}" for name in public(jfree.activations)}
    names |= {f"jfree.layers.{name}" for name in public(jfree.layers)}
    names |= {f"jfree.plot.{name}" for name in public(jfree.plot) if name.startswith("plot_")}
    names |= {f"{m.__name__}.{k}" for m in own for k, v in public(m).items() if v.__module__ == m.__name__}
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    missing = sorted(names - documented)
    assert not missing


def public(module):
    """Our classes and functions, by name."""
    things = {k: v for k, v in vars(module).items() if not k.startswith("_") and not isinstance(v, ModuleType)}
    return {k: v for k, v in things.items() if getattr(v, "__module__", "").startswith("jfree")}
