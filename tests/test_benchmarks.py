"""The record of the benchmarks is complete, and one page shows all of it."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import _page
from benchmarks._harness import RESULTS
from benchmarks.papers.__main__ import reproductions


def test_page_is_that_of_the_saved_results(tmp_path, monkeypatch):
    committed = _page.PAGE.read_text()
    monkeypatch.setattr(_page, "PAGE", tmp_path / "page.md")
    assert _page.write_page().read_text() == committed


def test_all_reproductions_are_saved():
    names = set(reproductions())
    assert names == {path.stem for path in (RESULTS / "papers").glob("*.json")}
    for name in names:
        saved = json.loads((RESULTS / "papers" / f"{name}.json").read_text())
        assert saved["tables"]["Published, and ours"]
        assert (RESULTS / "papers" / saved["figure"]).exists()


@pytest.mark.slow
def test_a_reproduction_that_does_not_exist():
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.papers", "figure_9"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "No reproduction is called 'figure_9'" in ended.stderr
