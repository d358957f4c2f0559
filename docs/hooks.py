"""Shows what stands elsewhere in the repository as pages of the site. Links are written for the repository, and lead to
those pages on the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

_ROOT = Path(__file__).parent.parent
_FIGURES = sorted(_ROOT.glob("benchmarks/results/**/*.png"))
# Paths in the repository, and on the site.
_PLACES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "license.txt",
    "benchmarks/RESULTS.md": "results.md",
    "notebooks/modern_blocks.ipynb": "notebooks/modern_blocks.ipynb",
    "notebooks/quickstart.ipynb": "notebooks/quickstart.ipynb",
    **{place: place.removeprefix("benchmarks/") for place in (str(path.relative_to(_ROOT)) for path in _FIGURES)},
}
_SOURCES = {place: source for source, place in _PLACES.items()}
_LINK = re.compile(r"(?<=\]\()[^)#\s:]+(?=[)#])")


def on_files(files, config):
    for source, place in _PLACES.items():
        files.append(File.generated(config, place, abs_src_path=str(_ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    folder = posixpath.dirname(_SOURCES.get(here, f"docs/{here}"))

    def on_site(link):
        target = posixpath.normpath(posixpath.join(folder, link[0]))
        place = _PLACES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    return _LINK.sub(on_site, markdown)
