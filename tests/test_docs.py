"""test_docs - no page of docs/ is forgotten, each table type has one, links lead somewhere, pip is one

`make docs` checks anchors, too.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxymap.tables.types import TABLE_TYPES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, *sorted(ROOT.glob("*.md"))]
NAV = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_in_the_navigation(page: Path) -> None:
    assert str(page.relative_to(ROOT / "docs")) in NAV


@pytest.mark.parametrize("maptype", TABLE_TYPES)
def test_table_type_is_in_a_title_or_the_list(maptype: str) -> None:
    titles = " ".join(page.read_text().partition("\n")[0] for page in (ROOT / "docs/tables").glob("*.md"))
    assert maptype in re.findall(r"\w+", titles) or maptype == "debug"
    assert f"`{maptype}" in (ROOT / "docs/tables/index.md").read_text()


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [*TEXTS, *sorted((ROOT / "man").iterdir())], ids=lambda page: page.name)
def test_packages_are_installed_as_the_installation_says(page: Path) -> None:
    """By the environment's own pip; and "proxymap", with or without extras, would be looked up on PyPI."""
    wrong = r"(?<!/opt/proxymap/bin/)(?<!\.\d/bin/)pip3? install|(?<!/)proxymap\[[a-z]"
    assert not re.search(wrong, page.read_text())
