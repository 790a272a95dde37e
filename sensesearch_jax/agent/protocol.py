"""The one text form of the interaction: the system prompt with its tools, actions read and written.

A policy's turn is `<think>…</think>`, a newline, and either a JSON object with name and arguments
between `<tool_call>` and `</tool_call>`, on lines of their own, or `<answer>…</answer>` (arXiv
2512.24330). Names, tags and frames are data of a `Protocol`, so that the published protocol and
ours share all code.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from sensesearch_jax.agent.actions import (
    Action,
    Answer,
    FormatError,
    ImageCrop,
    ImageSearch,
    TextSearch,
)
from sensesearch_jax.agent.trajectory import ImageRef, Question

# The tools by the names that configs, observations and statistics use; a protocol may write them
# differently.
TOOLS = ('text_search', 'image_search', 'image_crop')


def _tag_pattern() -> re.Pattern[str]:
    """The `<` of a tag, also in full width and with characters in it that nobody sees."""
    unseen = (
        '\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e'
        '\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff'
    )
    wide = ord('！') - ord('!')  # from an ASCII sign to its form in full width

    def spelled(name: str) -> str:
        return f'[{unseen}]*'.join(f'[{letter}{chr(ord(letter) + wide)}]' for letter in name)

    names = '|'.join(
        map(spelled, ('think', 'thinking', 'tools', 'tool_call', 'tool_response', 'answer'))
    )
    gap = rf'[\s{unseen}]*'
    return re.compile(rf'[<＜﹤](?={gap}(?:[/／]{gap})?(?:{names})\b|{gap}[|｜])', re.IGNORECASE)


_TAG = _tag_pattern()
# What only the chat template and the environment write: control tokens, and the tags around a
# tool's result.
_FOREIGN = re.compile(r'<\|\w+\|>|</?tool_response>')
_CALL_OPEN, _CALL_CLOSE = '<tool_call>', '</tool_call>'
_ANSWER_OPEN, _ANSWER_CLOSE = '<answer>', '</answer>'


@dataclasses.dataclass(frozen=True)
class ParsedTurn:
    """A turn's reasoning ('' if it has none) and its action, or the mistake in the action's place."""

    thought: str
    action: Action | FormatError


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Names and conventions of one text form.

    `ImageCrop.bbox` and every `image_index` of an action are the same under all protocols
    (fractions, counted from 1); `box_scale` and `first_index` say how they are written.
    """

    name: str
    thought_tag: str = 'think'
    text_search: str = 'text_search'
    image_search: str = 'image_search'
    image_crop: str = 'image_crop'
    box_key: str = 'bbox'
    box_scale: int = 1
    index_key: str = 'image_index'
    first_index: int = 1
    index_required: bool = False  # whether a crop must name its image
    # False: image search always takes the original and has no argument
    search_any_image: bool = True
    # a name for what is cut out: accepted, written as 'object', never used
    label_key: str | None = None

    # of the authors' files, see released.py: the text before the tools, and the tools by our names
    system_text: str | None = None
    schemas: tuple[tuple[str, dict[str, Any]], ...] = dataclasses.field(default=(), hash=False)
    # a line break follows the end of a policy's turn, as in the family's template
    turn_newline: bool = True
    crops_original: bool = False  # a crop is cut from the first image, whatever image it names
    # results are worded as in the release, and thumbnails are counted among the images
    published: bool = False

    def system_prompt(self, tools: Sequence[str]) -> str:
        """The system turn: instructions and one JSON line per tool of `tools` (a subset of
        `TOOLS`).

        Raises ValueError for an unknown tool name.
        """
        self._check_tools(tools)
        if self.system_text is not None:
            from sensesearch_jax.agent.released import with_tools

            chosen = [schema for tool, schema in self.schemas if tool in tools]
            return with_tools(self.system_text, chosen)
        tag = self.thought_tag
        if not tools:
            return (
                f'Answer the question about the image: reason in <{tag}></{tag}>, '
                'then give the final <answer></answer>.'
            )
        schemas = (
            json.dumps(self.schema(tool), ensure_ascii=False, separators=(',', ':'))
            for tool in tools
        )
        lines = [
            f'Answer the question about the image. Each turn: reason in <{tag}></{tag}>, '
            'then call one tool or give the final <answer></answer>.',
            '<tools>',
            *schemas,
            '</tools>',
            'A call:',
            _CALL_OPEN,
            '{"name": <name>, "arguments": <arguments>}',
            _CALL_CLOSE,
        ]
        if 'image_crop' in tools or ('image_search' in tools and self.search_any_image):
            lines.append(
                f'{self.index_key} counts from {self.first_index}, the original; each crop adds one.'
            )
        return '\n'.join(lines)

    def schema(self, tool: str) -> dict[str, Any]:
        """The OpenAI function schema of `tool` (one of `TOOLS`)."""
        index = {self.index_key: {'type': 'integer'}}
        if tool == 'text_search':
            name, text = self.text_search, 'Search text.'
            properties, required = {'query': {'type': 'string'}}, ['query']
        elif tool == 'image_search':
            name, text = self.image_search, 'Titles of pictures like an image.'
            properties, required = (index if self.search_any_image else {}), []
        else:
            name = self.image_crop
            text = f'Zoom into a box: [left,top,right,bottom], 0 to {self.box_scale} across the image named.'
            box = {'type': 'array', 'items': {'type': 'number'}}
            label = {} if self.label_key is None else {self.label_key: {'type': 'string'}}
            properties, required = {self.box_key: box, **label, **index}, [self.box_key]
            if self.index_required:
                required = list(properties)
        parameters = {'type': 'object', 'properties': properties}
        if required:
            parameters['required'] = required
        return {
            'type': 'function',
            'function': {'name': name, 'description': text, 'parameters': parameters},
        }

    def parse(self, text: str, tools: Sequence[str]) -> ParsedTurn:
        """Reads the policy's text of one turn. Never raises: every mistake becomes a named
        `FormatError`.

        Whatever follows the first `</tool_call>` is cut, as the sampler stops there. A missing
        reasoning block is no error here (the action runs, the format reward is lost); one that is
        not closed is, and so is a control token or a tool response, wherever it stands: what comes
        after may rest on a made-up result.
        """
        end = text.find(_CALL_CLOSE)
        if end >= 0:
            text = text[: end + len(_CALL_CLOSE)]
        if foreign := _FOREIGN.search(text):
            return ParsedTurn(
                '', FormatError('foreign_tag', f'{shorten(foreign[0])} is not yours to write.')
            )
        thought_open, thought_close = f'<{self.thought_tag}>', f'</{self.thought_tag}>'
        start = text.find(thought_open)
        close = text.find(thought_close, max(start, 0))
        if start >= 0 and close < 0:
            return ParsedTurn('', FormatError('unclosed_think', 'The reasoning is not closed.'))
        thought = _clean(text[start + len(thought_open) : close]) if start >= 0 else ''
        rest = text[close + len(thought_close) :] if close >= 0 else text
        return ParsedTurn(thought, self._parse_action(rest, tools))

    def render_action(self, thought: str, action: Action) -> str:
        """The text of a turn, such that `parse` gives `thought` and `action` back.

        Raises ValueError where no text can: a thought or answer with a tag of the protocol or
        blanks around it, an empty answer, a value that this protocol cannot write.
        """
        if isinstance(action, Answer):
            body = f'{_ANSWER_OPEN}{action.text}{_ANSWER_CLOSE}'
        else:
            call = json.dumps(self._call(action), ensure_ascii=False)
            body = f'{_CALL_OPEN}\n{fold_tags(call)}\n{_CALL_CLOSE}'
        text = f'<{self.thought_tag}>{thought}</{self.thought_tag}>\n{body}'
        if self.parse(text, TOOLS) != ParsedTurn(thought, action):
            raise ValueError(
                f'protocol {self.name!r} cannot write {shorten(action, 120)} with the thought '
                f'{shorten(thought, 80)} such that it reads the same; '
                'remove tags and outer blanks, use finite numbers with fewer decimals'
            )
        return text

    def user_parts(self, question: Question, images: Sequence[ImageRef]) -> list[str | ImageRef]:
        """The user's turn: the images, under their numbers where there are several, and the text."""
        text = user_text(question)
        if len(images) < 2:
            return [*images, text]
        parts: list[str | ImageRef] = []
        for index, image in enumerate(images, 1):
            parts += [f'Image {self.shown_index(index)}:', image]
        return [*parts, f'\n{text}']

    def shown_index(self, image_index: int) -> int:
        """Number that this protocol gives to the image that actions call `image_index` (from 1)."""
        return image_index - 1 + self.first_index

    def _check_tools(self, tools: Sequence[str]) -> None:
        unknown = sorted(set(tools) - set(TOOLS))
        if unknown:
            raise ValueError(f'unknown tools {unknown}; choose from {list(TOOLS)}')

    def _call(self, action: TextSearch | ImageSearch | ImageCrop) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if isinstance(action, TextSearch):
            return {'name': self.text_search, 'arguments': {'query': action.query}}
        if isinstance(action, ImageSearch):
            if self.search_any_image and action.image_index != 1:
                arguments[self.index_key] = self.shown_index(action.image_index)
            return {'name': self.image_search, 'arguments': arguments}
        arguments[self.box_key] = [self._written(x) for x in action.bbox]
        if self.label_key is not None:
            arguments[self.label_key] = 'object'
        if self.index_required or action.image_index != 1:
            arguments[self.index_key] = self.shown_index(action.image_index)
        return {'name': self.image_crop, 'arguments': arguments}

    def _written(self, fraction: float) -> float:
        if self.box_scale == 1:
            return float(fraction)
        scaled = round(fraction * self.box_scale, 9)
        return int(scaled) if math.isfinite(scaled) and scaled == int(scaled) else scaled

    def _parse_action(self, text: str, tools: Sequence[str]) -> Action | FormatError:
        calls, answers = text.count(_CALL_OPEN), text.count(_ANSWER_OPEN)
        if calls + answers == 0:
            return FormatError('no_action', 'No action. Call one tool or answer.')
        if calls + answers > 1:
            return FormatError('several_actions', 'More than one action. Take exactly one.')
        if answers:
            start = text.index(_ANSWER_OPEN) + len(_ANSWER_OPEN)
            end = text.find(_ANSWER_CLOSE, start)
            if end < 0:
                return FormatError('unclosed_answer', 'The answer is not closed.')
            answer = _clean(text[start:end])
            return Answer(answer) if answer else FormatError('empty_answer', 'The answer is empty.')
        start = text.index(_CALL_OPEN) + len(_CALL_OPEN)
        end = text.find(_CALL_CLOSE, start)
        if end < 0:
            return FormatError('unclosed_tool_call', 'The tool call is not closed.')
        try:
            call = json.loads(text[start:end])
        except (ValueError, RecursionError):
            # ValueError: also an integer of more digits than Python reads
            return FormatError('bad_json', 'The tool call is not valid JSON.')
        return self._read_call(call, tools)

    def _read_call(self, call: Any, tools: Sequence[str]) -> Action | FormatError:
        if not isinstance(call, dict) or set(call) != {'name', 'arguments'}:
            return FormatError('bad_call', 'A tool call is an object with name and arguments.')
        name, arguments = call['name'], call['arguments']
        known = {getattr(self, tool): tool for tool in tools}
        if not isinstance(name, str) or name not in known:
            names = ', '.join(known) or 'none'
            return FormatError('unknown_tool', f'No tool {shorten(name)}. Tools: {names}.')
        if not isinstance(arguments, dict):
            return FormatError('bad_arguments', 'arguments must be an object.')
        tool = known[name]
        allowed = self.schema(tool)['function']['parameters']['properties']
        for key in arguments:
            if key not in allowed:
                return FormatError('bad_arguments', f'{name} has no argument {shorten(key)}.')
        if tool == 'text_search':
            query = arguments.get('query')
            if not isinstance(query, str):
                return FormatError('bad_arguments', 'query must be a string.')
            return TextSearch(_unicode(query))
        index = _integer(arguments.get(self.index_key, self.first_index))
        if index is None:
            return FormatError('bad_arguments', f'{self.index_key} must be an integer.')
        index += 1 - self.first_index
        if tool == 'image_search':
            return ImageSearch(index)
        box = arguments.get(self.box_key)
        numbers = [_number(x) for x in box] if isinstance(box, list) and len(box) == 4 else [None]
        if None in numbers:
            return FormatError('bad_arguments', f'{self.box_key} must be 4 numbers.')
        return ImageCrop(tuple(x / self.box_scale for x in numbers), index)


DEFAULT = Protocol('default')
RELEASED = Protocol(
    'released',
    thought_tag='thinking',
    text_search='text_search_tool',
    image_search='image_search_tool',
    image_crop='image_zoom_in_tool',
    box_key='bbox_2d',
    box_scale=1000,
    index_key='img_idx',
    first_index=0,
    index_required=True,
    search_any_image=False,
    label_key='label',
)
PROTOCOLS = {protocol.name: protocol for protocol in (DEFAULT, RELEASED)}


def user_text(question: Question) -> str:
    """The user's words: the question, with its options if it has any."""
    return lettered(question.text, question.choices)


def lettered(text: str, options: Sequence[str]) -> str:
    """A question with its options on lines of their own, as `A. …`, `B. …`."""
    lines = (f'{chr(ord("A") + i)}. {option}' for i, option in enumerate(options))
    return '\n'.join([text, *lines])


def tool_of(action: Action | FormatError) -> str | None:
    """The tool (of `TOOLS`) that `action` calls; None for an answer or a format error."""
    return {TextSearch: 'text_search', ImageSearch: 'image_search', ImageCrop: 'image_crop'}.get(
        type(action)
    )


def fold_tags(text: str) -> str:
    """JSON text in which no string can be taken for a tag: the `<` of one becomes its JSON escape."""
    return re.sub(r'<(?=[/|a-z])', r'\\u003c', text)


def disarm(text: str) -> str:
    """Text from elsewhere in which nothing reads as a tag of a protocol or a control token: its `<`
    becomes `‹`.

    The tokenizer makes no control tokens of a tool's text; but tags that are ordinary text, such as
    `</tool_response>`, would end the response in the policy's eyes.
    """
    return _TAG.sub('‹', text)


def shorten(value: Any, length: int = 40) -> str:
    """`repr` of a value from outside, cut so that an error text stays short."""
    if isinstance(value, str):
        value = value[: length + 1]  # a megabyte need not be quoted to be cut
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + '…'


def _unicode(text: str) -> str:
    """Without lone surrogates, which JSON escapes can smuggle in and no tokenizer accepts."""
    return text.encode('utf-8', 'replace').decode('utf-8')


def _clean(text: str) -> str:
    return _unicode(text.strip())


def _number(value: Any) -> float | None:
    """`value` as a finite float, else None; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _integer(value: Any) -> int | None:
    """`value` as an integer (2.0 counts), else None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None
