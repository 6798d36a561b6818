"""test_citations - what a source file cites in docs/postfix/ can be opened: the page and the section exist

tables.md 2.2 to 2.5            tables.md 1.2, 4.7, 5           master.md 1.1, 2; wire.md
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs/postfix"
FOLDERS = ("proxymap", "tests", "benchmarks", "contrib", "man")
SUFFIXES = (".py", ".pyx", ".pxd", ".pyi", ".md")
NUMBER = r"\d+(?:\.\d+)?(?![\w%])"
CITED = re.compile(
    rf"(?<![\w/.-])([a-z]+\.md)`?(?:,? (?:section )?({NUMBER}(?:(?:,|,? and| to)\s+(?:\# )?{NUMBER})*))?"
)


def citations(text: str) -> list[tuple[str, str]]:
    """The pages that a text names, each with a section or ""."""
    found = []
    for page, numbers in CITED.findall(text):
        if page == "index.md" or (ROOT / "docs" / page).exists() or (ROOT / page).exists():
            continue  # about this project
        found += [(page, number) for number in re.findall(NUMBER, numbers) or [""]]
    return found


def sections(page: Path) -> set[str]:
    return {""} | set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", page.read_text(), re.M))


SOURCES = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in SUFFIXES and path != Path(__file__) and ".md" in path.read_text()
]


@pytest.mark.parametrize("path", SOURCES + sorted(PAGES.iterdir()), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_cited_exists(path: Path) -> None:
    for page, section in citations(path.read_text()):
        assert (PAGES / page).exists(), f"{path} cites {page}, which is not in docs/postfix/"
        assert section in sections(PAGES / page), f"{path} cites {page} {section}, which has no such section"


def test_citations_are_found() -> None:
    text = "tables.md 2.2 to 2.5 (x). master.md 1.1, 2. wire.md. tables.md 4.2 for the NUL, `tables.md` 3.1"
    assert citations(text) == [
        *(
            ("tables.md", "2.2"),
            ("tables.md", "2.5"),
            ("master.md", "1.1"),
            ("master.md", "2"),
            ("wire.md", ""),
        ),
        *(("tables.md", "4.2"), ("tables.md", "3.1")),
    ]
    assert sum(len(citations(path.read_text())) for path in SOURCES) > 40
