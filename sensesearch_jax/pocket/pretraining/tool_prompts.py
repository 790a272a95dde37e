"""Qwen's tool calls with made-up tools: a system prompt that declares them, calls, and answers.

What an instruction-tuned Qwen brings along: to read what tools there are, to think, to call one as
JSON between `<tool_call>` tags, to read its response, to answer between tags. Names, arguments and
purposes are drawn anew for each dialogue. None is a tool of the project, and which tool a question
wants is learned from nothing: the question says so, or the call's beginning is given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sensesearch_jax.agent.protocol import DEFAULT, TOOLS

# The project's own words for tools and arguments.
RESERVED = frozenset('text image search crop bbox query index name arguments null true'.split())
VERBS = (
    'Weighs', 'Sorts', 'Fetches', 'Measures', 'Lists', 'Opens', 'Compares', 'Traces', 'Reads', 'Turns',
    'Names', 'Counts', 'Gathers', 'Checks', 'Shows', 'Looks up', 'Cuts out', 'Finds', 'Draws', 'Explains',
)  # fmt: skip
OPENINGS = (
    'Reason in <think></think>, then call a tool or give the final <answer></answer>.',
    'You are a helpful assistant. Think in <think></think> before each call and before the <answer></answer>.',
    'Each turn: <think></think>, then one call, or at the end the <answer></answer>.',
)
OWN = DEFAULT.system_prompt(TOOLS).split('\n')[0]


class Tool(NamedTuple):
    """A made-up tool.

    Attributes:
        name: it is called by.
        purpose: a sentence.
        argument: name of its first argument.
        kind: of that argument, 'string', 'box', 'number' or 'none'.
        picture: name of the argument that says which picture it takes; '' for none.
    """

    name: str
    purpose: str
    argument: str
    kind: str
    picture: str

    def schema(self) -> dict[str, Any]:
        """The function schema in the form of OpenAI's, which Qwen reads."""
        types = {
            'string': {'type': 'string'},
            'box': {'type': 'array', 'items': {'type': 'number'}},
            'number': {'type': 'integer'},
        }
        properties = {self.argument: types[self.kind]} if self.kind in types else {}
        required = list(properties)
        if self.picture:
            properties[self.picture] = {'type': 'integer'}
        parameters: dict[str, Any] = {'type': 'object', 'properties': properties}
        if required:
            parameters['required'] = required
        function = {'name': self.name, 'description': self.purpose, 'parameters': parameters}
        return {'type': 'function', 'function': function}


class ToolPrompt(NamedTuple):
    """The tools of one dialogue, in the order in which they are declared; `wanted` are those that
    were asked for.
    """

    opening: str
    tools: tuple[Tool, ...]
    wanted: tuple[Tool, ...]
    counted: str  # name of the argument for pictures, '' where no tool has one

    @classmethod
    def draw(
        cls, rng: np.random.Generator, words: Sequence[str], kinds: Sequence[str], others: int
    ) -> ToolPrompt:
        """Tools with arguments of those kinds, and others beside them.

        Args:
            rng: the only source of randomness.
            words: that names and purposes are made of.
            kinds: of the arguments of tools that are wanted; 'box' and 'none' take a picture.
            others: further tools at most.
        """
        drawn: list[str] = []

        def word() -> str:
            while True:
                found = str(words[rng.integers(len(words))]).lower()
                if found.isascii() and len(found) <= 9 and found not in RESERVED | set(drawn):
                    drawn.append(found)
                    return found

        counted = word() if {'box', 'none'} & set(kinds) else ''
        further = rng.choice(['string', 'number', 'none'], rng.integers(others + 1))
        made = []
        for kind in (*kinds, *further):
            name = '_'.join(word() for _ in range(rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2])))
            purpose = f'{VERBS[rng.integers(len(VERBS))]} {word()} {word()}'
            if rng.random() < 0.5:
                purpose += f' of {word()}'
            purpose += ': [left,top,right,bottom], 0 to 1.' if kind == 'box' else '.'
            takes = counted if kind in ('box', 'none') and len(made) < len(kinds) else ''
            made.append(Tool(name, purpose, word(), kind, takes))
        order = rng.permutation(len(made))
        opening = OWN if rng.random() < 0.5 else OPENINGS[rng.integers(len(OPENINGS))]
        return cls(opening, tuple(made[i] for i in order), tuple(made[: len(kinds)]), counted)

    def system(self) -> str:
        """The system prompt."""
        schemas = (
            json.dumps(tool.schema(), ensure_ascii=False, separators=(',', ':'))
            for tool in self.tools
        )
        lines = [
            self.opening,
            '<tools>',
            *schemas,
            '</tools>',
            'A call:',
            '<tool_call>',
            '{"name": <name>, "arguments": <arguments>}',
            '</tool_call>',
        ]
        if self.counted:
            lines.append(f'{self.counted} counts from 1, the original; each new picture adds one.')
        return '\n'.join(lines)


def call(thought: str, tool: Tool, value: Any = None, picture: int = 1) -> str:
    """A turn that calls a tool.

    Args:
        thought: before the call.
        tool: to call.
        value: of its first argument.
        picture: that it takes, from 1; the first one goes without saying.
    """
    arguments = {} if tool.kind == 'none' else {tool.argument: value}
    if picture != 1 and tool.picture:
        arguments[tool.picture] = picture
    body = json.dumps({'name': tool.name, 'arguments': arguments}, ensure_ascii=False)
    return f'<think>{thought}</think>\n<tool_call>\n{body}\n</tool_call>'


def up_to_value(turn: str, tool: Tool) -> str:
    """The beginning of a call's text up to its arguments."""
    end = '"arguments": {' if tool.kind == 'none' else f'"{tool.argument}": '
    return turn[: turn.index(end) + len(end)]


def answer(thought: str, text: str) -> str:
    """A turn that answers.

    Args:
        thought: before the answer.
        text: of the answer.
    """
    return f'<think>{thought}</think>\n<answer>{text}</answer>'
