"""Made-up ways of writing thoughts, calls and replies, as a system prompt gives them: one per
dialogue.

What a policy must bring along before it meets any protocol: to follow the one that it is given, to
close what it opened, to put what it found between quotes. Tags, functions and arguments are words
drawn anew each time; none is the protocol's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The protocol's own words, and what JSON could not tell apart.
RESERVED = frozenset(
    (
        'think',
        'answer',
        'tool',
        'call',
        'response',
        'name',
        'arguments',
        'query',
        'text',
        'image',
        'search',
        'crop',
        'bbox',
        'index',
        'null',
        'true',
        'false',
    )
)


class Function(NamedTuple):
    """A made-up function that a system prompt declares."""

    name: str
    argument: str


class Format(NamedTuple):
    """How one dialogue is written.

    `thought`, `call`, `reply`: tags, '' for none; `keys`: of a call's function and arguments;
    `functions`: to look at a place, to name what is shown, to find words.
    """

    thought: str
    call: str
    reply: str
    keys: tuple[str, str]
    functions: tuple[Function, Function, Function]
    gap: str  # between a thought and what follows
    edge: str  # between a call's tag and its object

    LOOK, NAME, FIND = range(3)

    @classmethod
    def draw(cls, rng: np.random.Generator, words: Sequence[str]) -> Format:
        """A format with names from `words`; long ones and those with capitals are passed over."""
        drawn: list[str] = []
        while len(drawn) < 11:
            word = str(words[rng.integers(len(words))])
            if word.islower() and len(word) <= 8 and word not in RESERVED and word not in drawn:
                drawn.append(word)
        chance = rng.random(5)
        return cls(
            drawn[0] if chance[0] < 0.85 else '',
            drawn[1] if chance[1] < 0.85 else '',
            drawn[2] if chance[2] < 0.85 else '',
            (drawn[3], drawn[4]),
            tuple(Function(*pair) for pair in zip(drawn[5:8], drawn[8:11])),
            ' ' if chance[3] < 0.3 else '\n',
            '\n' if chance[4] < 0.6 else '',
        )

    def rule(self, functions: Sequence[int] = (LOOK, NAME, FIND)) -> str:
        """The format as a system prompt gives it: an example of each kind of turn."""
        calls = f' {self.gap.strip(" ")}or '.join(self._call(f, '…') for f in functions)
        thought = self._tagged(self.thought, '…')
        return f'{thought}{self.gap}{calls}\nor at the end {thought}{self.gap}{self._tagged(self.reply, "…")}'

    def manual(self, rng: np.random.Generator, words: Sequence[str]) -> str:
        """A longer rule: before it every function as an entry of nested JSON, the way tools are
        declared.
        """
        drawn = (str(words[i]).lower() for i in rng.integers(len(words), size=120))
        kind, wrapper, label, about, *rest = [
            word for word in drawn if len(word) <= 6 and word not in RESERVED
        ]
        entries = []
        for name, argument in self.functions:
            length = int(rng.integers(1, 6))
            said, rest = ' '.join(rest[:length]), rest[length:]
            entries.append(
                json.dumps(
                    {
                        kind: wrapper,
                        wrapper: {label: name, about: said, kind: {argument: {kind: label}}},
                    },
                    ensure_ascii=False,
                    separators=(',', ':'),
                )
            )
        return '\n'.join(entries) + f'\n{self.rule()}'

    def write_call(self, thought: str, function: int, value=None) -> str:
        """A turn that calls a function; `value`: its argument, text or a box as written, None for
        no argument.

        Args:
            thought: that stands before it.
            function: LOOK, NAME or FIND.
            value: its argument, text or a box as written; None for none.
        """
        if value is not None and not value.startswith('['):
            value = json.dumps(value, ensure_ascii=False)
        return f'{self._tagged(self.thought, thought)}{self.gap}{self._call(function, value)}'

    def write_reply(self, thought: str, value: str) -> str:
        """A turn that ends with `value`."""
        return f'{self._tagged(self.thought, thought)}{self.gap}{self._tagged(self.reply, value)}'

    def _call(self, function: int, value: str | None) -> str:
        name, argument = self.functions[function]
        arguments = '' if value is None else f'"{argument}": {value}'
        return self._tagged(
            self.call,
            f'{self.edge}{{"{self.keys[0]}": "{name}", "{self.keys[1]}": {{{arguments}}}}}{self.edge}',
        )

    def _tagged(self, tag: str, text: str) -> str:
        return f'<{tag}>{text}</{tag}>' if tag else text.strip()
