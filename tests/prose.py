"""Check the English of the project: banned phrases and long sentences.

    python tests/prose.py [FILES]      list the findings in FILES, by default in all tracked files

The exit code is 1 if there are findings. Markdown is checked for banned
phrases only, without its code. Decision records are exempt.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EXEMPT = ("docs/decisions/", "tests/prose.py", "tests/test_prose.py")
MAX_WORDS = 25

PARTICIPLE = (
    r"(?:\w+ed|done|found|given|gone|kept|known|left|lost|made|meant|said|seen|shown|taken|told|written)"
)

BANNED = {
    r"told": "name who says what: 'the command prints', 'the manifest states'",
    r"tells? of": "says, describes",
    r"what (?:is|are|was|were) " + PARTICIPLE: "name the thing: 'finished outputs', not 'what is finished'",
    r"those of": "repeat the noun",
    r"so many": "give the number, or 'too many'",
    r"anew": "again, from the start, re-",
    r"(?:goes|go|going|gone|went) on (?:where|with)": "resumes",
    r"(?:is|are|was|were) gone on": "resumes",
    r"taken for": "read as, inferred as",
    r"(?:is|are|was|were) none": "is not a, there is no",
    r"of (?:its|their|his|her|your) own": "own + noun, separate",
    r"beside": "next to, with, besides",
    r"meanwhile": "while + clause, temporarily",
    r"in doubt": "uncertain",
    r"look(?:s|ed|ing)? (?:for|at) again": "search again, re-rank",
    r"shall": "must, will",
}
"""Phrase (a regular expression between word boundaries) and what to write instead."""

PATTERNS = [(re.compile(rf"\b{phrase}\b", re.IGNORECASE), fix) for phrase, fix in BANNED.items()]
MESSAGE_CALLS = re.compile(r"(?:Error|Warning|BadParameter|^warn|^echo|^note|^fail)$")
HELP_KEYWORDS = {"help", "short_help", "epilog"}
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|vs|et al|cf|No|Fig|Eq|approx|[A-Z])\.(?=\s)")
LITERAL = re.compile(r"``[^`]*``|`[^`]*`|https?://\S+")
SHAPE = re.compile(r"\((?:[\w*+/.' -]{1,10},\s*)+[\w*+/.' -]{0,10}\)")
ITEM = re.compile(r"^\s*(?:[-*]\s|\d+\.\s|\*{0,2}\w[\w.\[\]]*(?:, \*{0,2}\w+)*(?: \([^)]*\))?:(?:\s|$))")
LITERAL_LINE = re.compile(r"^\s*(?:>>>|\.\.\.|\$|\||[┌└│├─╔])|\S {3,}\S|\|.*\|")


class Finding(NamedTuple):
    """One fault of a text, with its place and its repair."""

    path: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}"


class Text(NamedTuple):
    """A text that a person reads: its first line in the file, and whether its sentences are counted."""

    line: int
    value: str
    counted: bool


def main(arguments: list[str]) -> int:
    """Print the findings of files, of all tracked ones without arguments; return 1 if there are any."""
    paths = [Path(name).resolve().relative_to(ROOT).as_posix() for name in arguments] or tracked_files()
    findings = {path: check_file(path) for path in paths if is_checked(path)}
    listed = [str(finding) for of_file in findings.values() for finding in of_file]
    print("\n".join(listed) or "no findings")
    return int(bool(listed))


def check_all() -> dict[str, list[Finding]]:
    """Return the findings of every tracked file."""
    return {path: check_file(path) for path in tracked_files() if is_checked(path)}


def tracked_files() -> list[str]:
    """Return the Python and Markdown files under version control, relative to the root."""
    command = ["git", "ls-files", "*.py", "*.md"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listing.splitlines() if (ROOT / path).exists()]


def is_checked(path: str) -> bool:
    """Return whether the rules hold for a file, given relative to the root."""
    return path.endswith((".py", ".md")) and not path.startswith(EXEMPT)


def check_file(path: str) -> list[Finding]:
    """Return the findings of one file, given relative to the root."""
    source = (ROOT / path).read_text(encoding="utf-8")
    texts = python_texts(source) if path.endswith(".py") else markdown_texts(source)
    return [Finding(path, line, problem) for text in texts for line, problem in check_text(text)]


def check_text(text: Text) -> Iterator[tuple[int, str]]:
    """Yield the line and problem of each banned phrase and each long sentence."""
    prose = LITERAL.sub(lambda match: "x" + "\n" * match[0].count("\n"), text.value)
    for pattern, fix in PATTERNS:
        for match in pattern.finditer(re.sub(r"\n[ \t]*", "\n", prose).replace("\n", " ")):
            yield text.line, f"'{match[0]}': write {fix}"
    if text.counted:
        for sentence in sentences(prose):
            count = len(re.findall(r"[^\W\d_][\w'’-]*", SHAPE.sub("", sentence)))
            if count > MAX_WORDS:
                yield text.line, f"{count} words (at most {MAX_WORDS}): {sentence[:60]}…"


def sentences(prose: str) -> Iterator[str]:
    """Yield the sentences of a docstring; list items and argument descriptions end a sentence."""
    for paragraph in paragraphs(prose):
        joined = ABBREVIATION.sub(r"\1", " ".join(paragraph.split()))
        yield from re.split(r"(?<=[.!?])[)\"']?\s+", joined)


def paragraphs(prose: str) -> Iterator[str]:
    """Yield the paragraphs, list items and argument descriptions of a docstring, without its tables."""
    lines: list[str] = []
    for line in [*prose.splitlines(), ""]:
        ends = not line.strip() or bool(ITEM.match(line)) or bool(LITERAL_LINE.search(line.strip()))
        if ends and lines:
            yield "\n".join(lines)
            lines = []
        if line.strip() and not LITERAL_LINE.search(line.strip()):
            lines.append(ITEM.sub("", line))


def markdown_texts(source: str) -> Iterator[Text]:
    """Yield the paragraphs of a Markdown page, without code, comments and link targets."""
    blank = re.compile(r"^```.*?^```|^~~~.*?^~~~|<!--.*?-->", re.DOTALL | re.MULTILINE)
    source = blank.sub(lambda match: "\n" * match[0].count("\n"), source)
    source = re.sub(r"\]\([^)\s]*\)", "]", source)
    line = 1
    for paragraph in re.split(r"\n[ \t]*\n", source):
        yield Text(line + len(paragraph) - len(paragraph.lstrip("\n")), paragraph, False)
        line += paragraph.count("\n") + 2


def python_texts(source: str) -> Iterator[Text]:
    """Yield the docstrings, help strings and messages of a Python file, and its other strings of words."""
    tree = ast.parse(source)
    counted = {id(node) for node in counted_strings(tree)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        value = string_value(node)
        if value is not None and id(node) not in parts and len(value.split()) > 2:
            yield Text(getattr(node, "lineno", 1), value, id(node) in counted)


def counted_strings(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the strings whose sentences are counted: docstrings, help, errors and warnings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            yield node.value
        elif isinstance(node, ast.Raise) and node.exc is not None:
            yield from ast.walk(node.exc)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if MESSAGE_CALLS.search(name):
                yield from (part for argument in node.args for part in ast.walk(argument))
            yield from (keyword.value for keyword in node.keywords if keyword.arg in HELP_KEYWORDS)


def string_value(node: ast.AST) -> str | None:
    """Return the text of a string or an f-string, each placeholder as `x`; None for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(string_value(part) or "x" for part in node.values)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
