"""MkDocs hooks for a site whose pages refer to other files of the repository.

Tables and lists live once. A page includes one, from the first line that begins with one text up to the first line
after it that begins with another (to the end of the file, if that is empty):

    <!-- include ../benchmarks/RESULTS.md from "## Accuracy" to "![" -->

Links lead to files, as they do in a checkout. A file outside docs/ that a page links to becomes a page of the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CODE = re.compile(r"^( *)(```+).*?^\1\2\s*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()[^)\s#]+(?=[)#\s])")  # a title may follow
INCLUDE = re.compile(r'^<!-- include (\S+) from "(.+)" to "(.*)" -->$', re.MULTILINE)
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".json": "json", ".h": "cpp", ".cpp": "cpp"}


def links(text: str) -> list[str]:
    """The relative links and pictures of a page, without anchors; code has none."""
    return [match[0] for match in LINK.finditer(CODE.sub("", text)) if "://" not in match[0]]


def included(path: Path) -> list[tuple[Path, str]]:
    """The text of a page in pieces, each with the file that it comes from, to which its links are relative.

    Raises:
        ValueError: an included file lacks one of the lines that are named.
    """
    text = path.read_text()
    pieces, end = [], 0
    for match in INCLUDE.finditer(text):
        source = (path.parent / match[1]).resolve()
        pieces += [(path, text[end : match.start()]), (source, _between(source, match[2], match[3]))]
        end = match.end()
    return [*pieces, (path, text[end:])]


def _between(source: Path, first: str, last: str) -> str:
    lines = source.read_text().splitlines(keepends=True)
    begin = next((i for i, line in enumerate(lines) if line.startswith(first)), None)
    if begin is None:
        raise ValueError(f"{source.relative_to(ROOT)} has no line that begins with {first!r}")
    if not last:
        return "".join(lines[begin:])
    end = next((i for i in range(begin + 1, len(lines)) if lines[i].startswith(last)), None)
    if end is None:
        raise ValueError(f"{source.relative_to(ROOT)} has no line after {first!r} that begins with {last!r}")
    return "".join(lines[begin:end])


def place(path: Path) -> str:
    """The path of a repository's file on the site."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix().replace("/.", "/").lstrip(".")  # MkDocs leaves out what begins with a dot
    return f"source/{name}" if path.suffix in (".md", ".png") else f"source/{name}{'/files' * path.is_dir()}.md"


def rendered(path: Path, at: str) -> tuple[str, set[Path]]:
    """A page as the site has it at `at`, and the files outside docs/ that it links to."""
    if path.is_dir():
        return f"# {path.relative_to(ROOT)}\n\n" + "".join(f"- {each.name}\n" for each in sorted(path.iterdir())), set()
    if path.suffix != ".md":
        fence = "`" * 6
        title = f"---\nsearch: {{exclude: true}}\n---\n# {path.relative_to(ROOT)}\n\n"
        return f"{title}{fence}{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}\n{fence}\n", set()
    outside, parts = set(), []
    for source, text in included(path):
        for link in sorted(set(links(text)), key=len, reverse=True):
            target = Path(os.path.normpath(source.parent / link))
            if not target.exists() or not target.is_relative_to(ROOT):
                continue  # MkDocs says so
            if not target.is_relative_to(DOCS):
                outside.add(target)
            text = re.sub(rf"(?<=\]\(){re.escape(link)}(?=[)#\s])", _relative(place(target), at), text)
        parts.append(text)
    return "".join(parts), outside


def _relative(target: str, at: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(at) or ".")


def on_files(files: Any, config: Any) -> Any:
    """Adds the files outside docs/ that pages link to, and those that these link to."""
    from mkdocs.structure.files import File

    pending = list(DOCS.rglob("*.md"))
    known = set(pending)
    while pending:
        path = pending.pop()
        if path.suffix == ".png":
            files.append(File.generated(config, place(path), content=path.read_bytes()))
            continue
        content, outside = rendered(path, place(path))
        if not path.is_relative_to(DOCS):
            files.append(File.generated(config, place(path), content=content))
        pending += sorted(outside - known)
        known |= outside
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page of docs/, with what it includes and with links that lead somewhere on the site."""
    path = DOCS / page.file.src_uri
    return rendered(path, page.file.src_uri)[0] if path.is_file() else markdown
