"""What the pages say is there: links, sections, messages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "libai_ext", "projects")
PAGES = sorted([*ROOT.glob("*.md"), *(p for top in FOLDERS for p in (ROOT / top).rglob("*.md"))])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def sections(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_code(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(without_code(page)):
        file, _, section = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not section or section in sections(target), link


def test_every_page_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    assert len(PAGES) > 10
    assert [page.name for page in PAGES if str(page.relative_to(ROOT)) not in site] == []


def test_troubleshooting_quotes_real_messages():
    said = (ROOT / "tools/train.sh").read_text()
    for top in ("libai_ext", "projects"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    said += f"{node.value}\n"
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = [
        message
        for line in page.splitlines()
        if line.startswith("| ")
        for message in re.findall(r"`(.+?)`", line.split("|")[1])
    ]
    assert len(quoted) > 25
    assert [message for message in quoted if message not in said] == []
