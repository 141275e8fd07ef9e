"""Documents (.txt, .md, .html) as records of passages: `{id, title, text}`.

- A passage's id is its source: the document's path and the passage's number in it.
- Its title is the document's, and the section's where the document has headings.
- Texts are cut at the largest unit that fits (section, paragraph, sentence) by semantic-text-splitter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steper_ray.corpora.files import DataFile
from steper_ray.corpora.places import ErrorLog, Place

_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
#: Parts of a page that are not its text.
_NOT_TEXT = ("script", "style", "template", "noscript", "nav", "header", "footer", "aside", "form")


def read_document(file: DataFile, characters: int, log: ErrorLog) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The passages of one document, of at most `characters` characters each. One that is not UTF-8 is malformed."""
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    with file.open() as stream:
        data = stream.read()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        log.malformed(Place(str(file), f"byte {error.start}"), f"not UTF-8 ({error.reason})")
        return
    title = Path(file.name).stem
    if file.suffix == ".txt":
        pieces = [("", piece) for piece in TextSplitter(characters).chunks(text)]
    else:
        is_page = file.suffix in (".html", ".htm")
        if is_page:
            named, text = _markdown(text)
            title = named or title
        pieces = list(_sections(MarkdownSplitter(characters).chunks(text)))
        if not is_page and (first := _HEADING.search(_FENCE.sub("", text))):
            title = first[1]
    for number, (section, piece) in enumerate(pieces, start=1):
        name = title if section in ("", title) else f"{title}: {section}"
        yield (
            Place(str(file), f"passage {number}"),
            {"id": f"{file.label or file.name}#{number}", "title": name, "text": piece},
        )


def _markdown(page: str) -> tuple[str, str]:
    """The title of a page, and its text as Markdown."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(page, "html.parser")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for part in soup([*_NOT_TEXT, "title"]):
        part.decompose()
    text = MarkdownConverter(heading_style="ATX", strip=["a", "img"]).convert_soup(soup)
    return title, re.sub(r"\n{3,}", "\n\n", text)


def _sections(chunks: list[str]) -> Iterator[tuple[str, str]]:
    """Each piece with the heading it stands under; a piece that is headings alone is left to those that follow."""
    section = ""
    for chunk in chunks:
        headings = _HEADING.findall(_FENCE.sub("", chunk))
        if _HEADING.match(chunk):
            section = headings[0]
        if _HEADING.sub("", chunk).strip():
            yield section, chunk
        if headings:
            section = headings[-1]
