"""The project's own Markdown, read for its code blocks and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: the page, the language behind the fence, the text."""

    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return str(self.page.relative_to(ROOT))


@dataclass(frozen=True)
class Command:
    """One program of one ``$`` line of a console block; ``words`` as a shell would split them."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {' '.join(self.words)}"


def blocks(*languages: str) -> list[Block]:
    """All fenced blocks in one of the languages."""
    return [
        Block(page, language, text)
        for page in PAGES
        for language, text in _FENCE.findall(page.read_text(encoding="utf-8"))
        if language in languages
    ]


def commands() -> Iterator[Command]:
    """The programs of all console blocks; pipelines and redirections are taken apart."""
    for block in blocks("console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if not line.startswith("$ "):
                continue  # output
            for words in _programs(line.removeprefix("$ ")):
                yield Command(block.page, tuple(words))


def _programs(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>&;")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for token in lexer:
        if skip:
            skip = False
        elif token in {"<", ">", ">>", "2>"}:
            skip = True
        elif set(token) <= set("|&;"):
            yield words
            words = []
        else:
            words.append(token)
    yield words


def anchors(page: Path) -> set[str]:
    """What links into a page may name: its headings as GitHub spells them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
