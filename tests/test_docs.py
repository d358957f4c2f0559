"""What the documentation shows runs, its links lead somewhere, and its reference is complete."""

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
    starts = [line for before, line in zip(["", *lines], lines, strict=False) if line and not before]
    assert all(line.startswith(">>>") for line in starts), "Python blocks are doctests"
    test = doctest.DocTestParser().get_doctest("\n".join(lines), {}, name(page), str(page), 0)
    report = io.StringIO()
    failed, _ = doctest.DocTestRunner().run(test, out=report.write)
    assert not failed, report.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    prose = "\n".join(line for language, line in blocks(page) if language is None)
    links = re.findall(r"\]\(([^)#\s:]+)[)#]", prose)
    assert not [link for link in links if not (page.parent / link).exists()]


def test_files_import_from_above():
    """As the table of `ARCHITECTURE.md` has them, which has all."""
    rows = [line.split("|")[1] for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line[:3] == "| `"]
    order = [file for row in rows for file in re.findall(r"`([a-z_]+)\.py`", row)]
    files = {path.stem: path.read_text() for path in (ROOT / "jfree").glob("*.py")}
    assert sorted(order) == sorted(files)
    for file, text in files.items():
        imported = re.findall(r"^from \.([a-z_]+) import", text, re.MULTILINE)
        assert not [other for other in imported if order.index(other) > order.index(file)], file


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
