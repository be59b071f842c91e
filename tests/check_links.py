"""Find what the documents point to and what is not there. No network.

    python tests/check_links.py [--root FOLDER]

Looks at README.md, CHANGELOG.md, CONTRIBUTING.md and docs/**/*.md for
- relative links and images whose file does not exist or lies outside the repository,
- `#anchors` without such a heading,
- external addresses that are not well formed,
- `vadexport …` lines in code blocks that name a command or an option that does not exist.

Prints one line for each, `file:line: what`, and ends with status 1 if there is any.
"""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOP_DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
SHELL_BLOCKS = {"", "bash", "console", "sh", "shell", "text"}
HELP_OPTIONS = {"-h", "--help"}

#: Command name to its option names; the empty name is `vadexport` itself.
Commands = Mapping[str, frozenset[str]]

_FENCE = re.compile(r" {0,3}(?P<mark>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
_CODE_SPAN = re.compile(r"(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)")
_ATX_HEADING = re.compile(r" {0,3}#{1,6}\s+(?P<text>.*?)(?:\s+#+)?\s*")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-{2,})\s*")
_HTML_ANCHOR = re.compile(r"""<\w+[^>]*?\s(?:id|name)=["'](?P<name>[^"']+)["']""")
_TARGETS = (
    re.compile(r"\]\(\s*(?:<(?P<angled>[^>]*)>|(?P<target>[^\s()]*(?:\([^\s()]*\)[^\s()]*)*))"),
    re.compile(r" {0,3}\[[^\]^][^\]]*\]:\s*<?(?P<target>[^\s>]+)"),
    re.compile(r"""<(?:a|img|source)\b[^>]*?\s(?:href|src|srcset)=["'](?P<target>[^"']*)["']"""),
)
_COMMAND_NAME = re.compile(r"[a-z][a-z0-9-]*")
_OPTION_NAME = re.compile(r"--?[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Line:
    """A line of a document: prose has no language, the lines of a code block have its."""

    number: int
    text: str
    language: str | None


def main() -> int:
    """Check the documents below `--root` and print what is wrong."""
    parser = argparse.ArgumentParser(description="find dead links and commands in the documents")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent)
    root = parser.parse_args().root.resolve()

    commands, why_not = _commands()
    if why_not:
        print(f"check-links: commands in code blocks are not checked: {why_not}")
    documents = find_documents(root)
    problems = [problem for path in documents for problem in check(path, root, commands)]
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"check-links: {len(documents)} documents, {len(problems)} dead links or commands")
    return 1 if problems else 0


def find_documents(root: Path) -> list[Path]:
    """Every document that a reader of the repository is pointed to."""
    top = [root / name for name in TOP_DOCUMENTS if (root / name).is_file()]
    return top + sorted((root / "docs").rglob("*.md"))


def check(path: Path, root: Path, commands: Commands) -> Iterator[str]:
    """Yield `file:line: what is wrong` for one document; without `commands` none is checked."""
    lines = read_lines(path)
    name = path.relative_to(root)
    for line in lines:
        if line.language is None:
            found = (_link_problem(target, path, root) for target in link_targets(line.text))
            yield from (f"{name}:{line.number}: {problem}" for problem in found if problem)
    if commands:
        for number, words in command_lines(lines):
            problem = _command_problem(words, commands)
            if problem:
                yield f"{name}:{number}: {problem}"


# ------------------------------------------------------------------------------ reading


@cache
def read_lines(path: Path) -> tuple[Line, ...]:
    """Split a document into lines, told apart as prose and code; the fences are left out."""
    lines: list[Line] = []
    fence = ""
    language: str | None = None
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = _FENCE.match(text)
        if match and not fence:
            fence, language = match["mark"], match["language"].lower()
        elif fence and re.fullmatch(rf" {{0,3}}{re.escape(fence)}{fence[0]}*\s*", text):
            fence, language = "", None
        else:
            lines.append(Line(number, text, language))
    return tuple(lines)


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a document as GitHub makes them: one a heading, and HTML ids."""
    found: set[str] = set()
    before = ""
    for line in read_lines(path):
        if line.language is not None:
            before = ""
            continue
        found.update(match["name"] for match in _HTML_ANCHOR.finditer(line.text))
        heading = _ATX_HEADING.fullmatch(line.text)
        if heading:
            found.add(_unused(slug(heading["text"]), found))
        elif before and _UNDERLINE.fullmatch(line.text):
            found.add(_unused(slug(before), found))
        before = "" if heading else line.text.strip()
    return frozenset(found)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"<[^>]+>", "", text).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def _unused(name: str, taken: set[str]) -> str:
    candidates = [name, *(f"{name}-{count}" for count in range(1, len(taken) + 1))]
    return next(candidate for candidate in candidates if candidate not in taken)


def link_targets(text: str) -> list[str]:
    """Where a line of prose links to: Markdown links, images, definitions, and HTML's."""
    prose = _CODE_SPAN.sub("", text)
    matches = [match.groupdict() for pattern in _TARGETS for match in pattern.finditer(prose)]
    return [match.get("angled") or match["target"] or "" for match in matches]


def command_lines(lines: Iterable[Line]) -> Iterator[tuple[int, list[str]]]:
    """Yield the words after `vadexport` of every such line in a shell block, joined at `\\`."""
    start, pending = 0, ""
    for line in lines:
        if line.language not in SHELL_BLOCKS:
            pending = ""
            continue
        start = start if pending else line.number
        text = pending + line.text.strip()
        if text.endswith("\\"):
            pending = text.removesuffix("\\")
            continue
        pending = ""
        words = _first_command(text.removeprefix("$ "))
        if words and words[0].rsplit("/", 1)[-1] == "vadexport":
            yield start, words[1:]


def _first_command(text: str) -> list[str]:
    """The words up to the first `|`, `;`, `&` or redirection, without `NAME=value` before."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        for word in lexer:
            if word[0] in "|;&<>()":
                break
            if words or not re.match(r"\w+=", word):
                words.append(word)
    except ValueError:  # an open quotation mark: the output of a program, not a command
        return []
    return words


# ------------------------------------------------------------------------------ judging


def _link_problem(target: str, document: Path, root: Path) -> str | None:
    if re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
        return _address_problem(target)
    name, _, anchor = unquote(target).partition("#")
    base = root if name.startswith("/") else document.parent
    path = (base / name.lstrip("/")).resolve() if name else document
    if not path.is_relative_to(root):
        return f"lies outside the repository: {target}"
    if not target or not path.exists():
        return f"no such file: {target!r}"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return f"no such heading: {target}"
    return None


def _address_problem(address: str) -> str | None:
    try:
        parts = urlsplit(address)
    except ValueError as error:
        return f"malformed address ({error}): {address}"
    if parts.scheme == "mailto":
        return None if "@" in parts.path else f"malformed address: {address}"
    if parts.scheme not in {"http", "https"} or "." not in (parts.hostname or ""):
        return f"malformed address: {address}"
    return None


def _command_problem(words: list[str], commands: Commands) -> str | None:
    if not words:
        return None
    name = words[0]
    if name.startswith("-"):
        return _option_problem("", words, commands[""])
    if not _COMMAND_NAME.fullmatch(name):  # a placeholder such as COMMAND
        return None
    if name not in commands:
        return f"no such command: vadexport {name}"
    nested = " ".join(words[:2])
    if nested in commands:
        name = nested
    return _option_problem(name, words[1:], commands[name])


def _option_problem(command: str, words: list[str], known: frozenset[str]) -> str | None:
    for word in words:
        option = word.partition("=")[0]
        if _OPTION_NAME.fullmatch(option) and option not in known | HELP_OPTIONS:
            return f"no such option: {f'vadexport {command}'.strip()} {option}"
    return None


def _commands() -> tuple[Commands, str]:
    """The command line's commands and options, or none and the reason."""
    try:
        click = importlib.import_module("click")
        module = importlib.import_module("vadexport.cli.main")
    except ImportError as error:
        return {}, str(error)
    group = next((value for value in vars(module).values() if isinstance(value, click.Group)), None)
    if group is None:
        return {}, "vadexport.cli.main holds no click group"
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    for name, command in list(found.items()):
        if isinstance(command, click.Group):
            inner = click.Context(command, parent=context)
            for child in command.list_commands(inner):
                found[f"{name} {child}"] = command.get_command(inner, child)
    return {name: _options(command) for name, command in {"": group, **found}.items()}, ""


def _options(command: object) -> frozenset[str]:
    parameters = getattr(command, "params", [])
    return frozenset(
        name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)
    )


if __name__ == "__main__":
    sys.exit(main())
