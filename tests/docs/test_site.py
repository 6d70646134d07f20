"""The site: built without warnings, with a page for every part, option and code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from policysmith.components.registry import REGISTRIES
from policysmith.schemas.questions.codes import CODES

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [value for key in ("href", "src") if (value := found.get(key))]
        if name := found.get("id"):
            self.anchors.add(name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, **quiet, "PYTHONPATH": str(ROOT / ".namespace")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def broken(site: Path) -> Iterator[str]:
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (
                parts.fragment and target in pages and parts.fragment not in pages[target].anchors
            ):
                yield f"{path.relative_to(site)}: {link}"


def test_no_link_or_anchor_of_the_site_is_broken(site: Path) -> None:
    assert list(broken(site)) == []


def test_every_part_and_code_has_its_place(site: Path) -> None:
    for kind, registry in REGISTRIES.items():
        page = Page((site / "reference" / f"{kind}.html").read_text())
        assert set(registry.shipped) <= page.anchors
    anchors = Page((site / "reference" / "errors.html").read_text()).anchors
    assert {re.sub(r"\W+", "-", code.lower()) for code in CODES} <= anchors


def test_every_page_of_the_documentation_is_in_the_navigation(site: Path) -> None:
    shown = set(Page((site / "index.html").read_text()).links)
    pages = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    assert pages <= shown
