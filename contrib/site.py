"""site - a hook of MkDocs: pages kept elsewhere, links to pages that a text names, two gaps of the theme

README is the first page; CHANGES, CONTRIBUTING and SECURITY are pages, and so is each
manual page, as mandoc renders it. A page of the navigation that is not there (yet) is
left out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from markdown.extensions.toc import slugify
from mkdocs.exceptions import ConfigurationError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CHANGES.md", "CONTRIBUTING.md", "SECURITY.md")
MANUAL = sorted((ROOT / "man").iterdir())
GENERATED = {"index.md", *PAGES, *(f"man/{page.name}.md" for page in MANUAL)}
NAMES = "|".join(re.escape(page.name.rpartition(".")[0]) for page in MANUAL)
REFERENCE = re.compile(rf"(?<![\w./-])({NAMES})\((\d)\)")  # proxymap.cf(5)
CODE = re.compile(r"(^```.*?^```$|^(?: {4}|\t|# )[^\n]*$)", re.MULTILINE | re.DOTALL)  # and titles
HEADING = re.compile(r'<h([12]) class="S[hs]" id="([^"]+)"><a[^>]*>(.*?)</a></h\1>', re.DOTALL)
QUOTED = re.compile(r"`docs/([\w/.-]+\.md)`|`((?:CHANGES|CONTRIBUTING|SECURITY)\.md)`")


def on_config(config: Any) -> Any:
    config.nav = _there(config.nav)
    config["mdx_configs"]["toc"] = {"slugify": _anchor}
    return config


def _anchor(title: str, separator: str) -> str:
    """Of a heading. One that begins with a digit ends the theme's script: it is no selector of CSS."""
    found = slugify(title, separator)
    return found if found[:1].isalpha() else f"s{separator}{found}"


def on_post_page(output: str, **_: Any) -> str:
    """The theme's switch of colours looks for its style sheets of code, and dies where they are not there."""
    return output.replace("</head>", '<meta id="hljs-light"><meta id="hljs-dark"></head>')


def _there(items: list[Any]) -> list[Any]:
    """The navigation without pages that are missing."""
    found = []
    for item in items:
        ((title, target),) = item.items()
        if isinstance(target, list):
            found.append({title: _there(target)})
        elif target in GENERATED or (ROOT / "docs" / target).exists():
            found.append(item)
    return found


def on_files(files: Files, config: Any) -> Files:
    readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    for name in PAGES:
        text = (ROOT / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    for page in MANUAL:
        files.append(File.generated(config, f"man/{page.name}.md", content=_rendered(page)))
    return files


def _rendered(page: Path) -> str:
    """A manual page as a page of the site."""
    if shutil.which("mandoc") is None:
        raise ConfigurationError("please install mandoc, which renders the manual pages")
    command = ["mandoc", "-T", "html", "-O", "fragment", str(page)]
    html = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    html = html[html.index('<div class="manual-text">') : html.rindex('<table class="foot">')]
    html = re.sub(r"</?(?:section|div)\b[^>]*>", "", html)
    html = re.sub(r"<b>([\w.]+)</b>\((\d)\)", r"\1(\2)", html)
    html = re.sub(r"<b>(--?[\w-]+)</b>", r'<b class="option">\1</b>', html)
    html = re.sub("\n\\s*\n", "\n", html)  # an empty line would end the HTML for Markdown
    html = HEADING.sub(_heading, html)
    name, _, section = page.name.rpartition(".")
    return f"# {name}({section})\n\n{html}\n"


def _heading(found: re.Match[str]) -> str:
    """A heading of mandoc's as one of Markdown's, so that it is in the table of contents."""
    return f"\n\n{'#' * int(found[1])}# {' '.join(found[3].split())} {{#{found[2]}}}\n\n"


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """What names a page, as `docs/cache.md` or proxymap.cf(5), becomes a link, with the page's title."""
    up = "../" * page.file.src_uri.count("/")
    target = page.file.src_uri

    def reference(found: re.Match[str]) -> str:
        name = f"man/{found[1]}.{found[2]}"
        if f"{name}.md" not in GENERATED or target == f"{name}.md":
            return found[0]
        if target.startswith("man/"):
            return f'<a href="{up}{name}.html">{found[0]}</a>'
        return f"[{found[0]}]({up}{name}.md)"

    def quoted(found: re.Match[str]) -> str:
        path = found[1] or found[2]
        if files.get_file_from_path(path) is None:
            return found[0]
        source = (ROOT / "docs" if found[1] else ROOT) / path
        title = source.read_text().partition("\n")[0].removeprefix("# ")
        return f"[{title}]({up}{path})"

    if target.startswith("man/"):
        title, _, html = markdown.partition("\n")
        return f"{title}\n{REFERENCE.sub(reference, html)}"
    return "".join(
        part if number % 2 else QUOTED.sub(quoted, REFERENCE.sub(reference, part))
        for number, part in enumerate(CODE.split(markdown))
    )
