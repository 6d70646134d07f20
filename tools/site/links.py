"""Links of the pages, which are written for the repository, turned into links of the site."""

from __future__ import annotations

import re
from typing import Any

LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)((?:#[^)]*)?\))")


def target(link: str) -> str | None:
    """Return a page of the site for a link relative to the top of the repository; None if it has none."""
    if link in ("README.md", "."):
        return "index.md"
    if link == "CONTRIBUTING.md":
        return "contributing.md"
    if link.startswith("docs/decisions"):
        return None
    if link.startswith("docs/"):
        return link.removeprefix("docs/")
    if link.startswith("recipes"):
        anchor = re.sub(r"[^\w-]", "", link) if link.endswith(".yaml") else ""
        return f"reference/gallery.md#{anchor}" if anchor else "reference/gallery.md"
    return None


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page; those to files that the site lacks become their names in code."""
    source = page.file.src_uri
    if source.startswith("reference/") and source != "reference/gallery.md":
        return markdown
    at_top = source in ("index.md", "contributing.md")

    def rewritten(found: re.Match[str]) -> str:
        text, link, anchor = found.group(1), found.group(2).rstrip("/"), found.group(3)
        if link.startswith("../"):
            link = link.removeprefix("../")
        elif not at_top:
            return found.group(0)
        page_of = target(link)
        return (
            f"{text}{page_of}{anchor if '#' not in page_of else ')'}" if page_of else f"{text}MISSING:{link})"
        )

    markdown = LINK.sub(rewritten, markdown)
    return re.sub(r"\[([^\]]*)\]\(MISSING:([^)]*)\)", _plain, markdown)


def _plain(found: re.Match[str]) -> str:
    shown, link = found.group(1), found.group(2)
    return f"`{link}`" if shown in link or shown == link else f"{shown} (`{link}`)"
