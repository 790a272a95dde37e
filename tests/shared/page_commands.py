"""The commands of README, CONTRIBUTING, docs and the configs' docstrings, and the machines that they
name."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
MARK = 'Machine:'
# First words by which a piece of code in a sentence is a command.
PROGRAMS = 'python', 'pytest', 'pip', 'ruff', 'pdoc', 'tensorboard', 'xprof', 'srun', 'sbatch', '.ci/run'  # fmt: skip
PART = re.compile(r'\||\s*[-*] |\d+\. |#')  # begins a row, an item of a list, a heading


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        page: its file, from the repository's root.
        text: in one line, without comments and doubled blanks.
        machine: that the page says it needs; '' where it says none.
    """

    page: str
    text: str
    machine: str = ''

    @property
    def program(self) -> str:
        """The first word behind variables of the environment."""
        return next((w for w in self.text.split() if not re.fullmatch(r'[A-Z_]+=\S*', w)), '')


def commands_of(page: Path) -> list[Command]:
    """Those of a page, or of a config's docstring, in their order."""
    name, text = str(page.relative_to(ROOT)), page.read_text()
    if page.suffix == '.py':
        text = ast.get_docstring(ast.parse(text)) or ''
        indented = [line for line in text.splitlines() if line.startswith('    ')]
        found = [Command(name, line, machine_in(text)) for line, _ in whole_lines(indented)]
        return [c for c in found + in_code(name, text) if c.program in PROGRAMS]
    found, header = [], ''
    for language, lines in parts(text.splitlines()):
        if language == 'bash':
            found += in_block(name, lines)
        elif not language:
            row = lines[0].startswith('|')
            header = (header or lines[0]) if row else ''
            column = re.search(r'\| machine \|', header)
            found += in_code(name, '\n'.join(lines), 'in its row' if column else '')
    return found


def find_command(page: str, words: str) -> Command:
    """The shortest command of a page that has these words."""
    found = [c for c in commands_of(ROOT / page) if words in c.text]
    assert found, f'{page} has no command with {words!r}'
    return min(found, key=lambda c: len(c.text))


def parts(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """(language, lines) of fenced blocks, and ('', lines) of paragraphs, items of lists and rows."""
    part, fence = [], ''
    for line in lines:
        if line.startswith('```') or (not fence and (not line.strip() or PART.match(line))):
            if part:
                yield fence, part
            part = [line] if line.strip() and not line.startswith('```') else []
            if line.startswith('```'):
                fence = '' if fence else line[3:] or 'text'
        else:
            part.append(line)
    if part:
        yield fence, part


def whole_lines(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(command, comment) of each line; what goes on behind a backslash or within quotes is one."""
    begun = ''
    for line in lines:
        begun += line.strip()
        if begun.endswith('\\'):
            begun = begun[:-1].rstrip() + ' '
            continue
        try:
            shlex.split(begun, comments=True)
        except ValueError:  # a quotation that goes on
            begun += ' '
            continue
        comment = re.search(r'(?:^|\s)#(.*)', begun)
        command = begun[: comment.start() if comment else None]
        yield re.sub(r'\s+', ' ', command).strip(), comment[1] if comment else ''
        begun = ''


def in_block(page: str, lines: Iterable[str]) -> list[Command]:
    """Of a block of shell; lines of fields alone (`--config.…`) are none."""
    found, above = [], ''
    for text, comment in whole_lines(lines):
        machine = machine_in(comment)
        if not text:
            above = machine or above
        elif not text.startswith('--'):
            found.append(Command(page, text, machine or above))
    return found


def in_code(page: str, text: str, machine: str = '') -> list[Command]:
    """Of the pieces of code in a paragraph, an item, a row or a docstring."""
    pieces = (re.sub(r'\s+', ' ', piece) for piece in re.findall(r'`([^`]+)`', text))
    found = [Command(page, piece, machine_in(text) or machine) for piece in pieces]
    return [c for c in found if c.program in PROGRAMS]


def machine_in(text: str) -> str:
    """The words behind the mark, up to the end of their sentence or line."""
    return re.split(r'[.;)]\s|\n|$', text.partition(MARK)[2].strip())[0]
