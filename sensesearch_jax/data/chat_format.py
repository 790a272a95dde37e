"""Trajectories in the chat format of PyTorch trainers, and back.

    python -m sensesearch_jax.data.chat_format export RUN/cold_start/kept.jsonl CHAT
    python -m sensesearch_jax.data.chat_format import CHAT/train.jsonl kept.jsonl --pictures DIR --policy DIR

A record is {messages, images}: contents are texts in which `<image>` stands for the next of the image
files. Roles are system, user, assistant and tool. ms-swift reads it as it is, LLaMA-Factory through
the dataset_info.json that is written beside it ("sharegpt" with these roles as tags). In the style
`messages` an assistant's call is part of its text, reasoning first, as the policy writes it. In the
style `openai` it stands in `tool_calls`, with the tools' schemas under `tools`, as chat templates of
Hugging Face take it; LLaMA-Factory drops the text beside such calls, so give it the first style.

`sensesearch` holds, as JSON in a text, what messages cannot say (the question's record, states,
rewards), so that an export comes back equal. Where a message was edited meanwhile, the message
counts. Records of others are read without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop
from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.protocol import PROTOCOLS, Protocol, tool_of
from sensesearch_jax.agent.trajectory import (
    ImageRef,
    Observation,
    Question,
    SampleState,
    Trajectory,
    Turn,
)
from sensesearch_jax.errors import UserError

STYLES = ('messages', 'openai')
PLACEHOLDER = '<image>'
EXTRA = 'sensesearch'
Part = str | ImageRef

# Texts that would be taken for placeholders get a word joiner behind their '<'; one that has some
# already gets one more, so that each way undoes the other.
_LITERAL = re.compile(r'<(\u2060*)(image|video|audio)>')
_ESCAPED = re.compile(r'<\u2060(\u2060*)(image|video|audio)>')
_NO_INPUT = re.compile('<(video|audio)>')
_CALL = re.compile(
    r'(?P<text>.*)\n<tool_call>\n\{"name": (?P<name>"[^"\\]*"), "arguments": (?P<arguments>\{.*\})\}\n</tool_call>',
    re.DOTALL,
)
_TOKENS = 'prompt_tokens', 'tokens', 'log_probs', 'observation_tokens'


class BadChat(ValueError):
    """A record that is no conversation of an agent; its text says why."""


def to_chat(
    trajectory: Trajectory,
    protocol: Protocol,
    tools: Sequence[str],
    name_of: Callable[[ImageRef], str],
    style: str,
) -> dict[str, Any]:
    """A trajectory as a record.

    Args:
        trajectory: as a cold start or a rollout leaves it.
        protocol, tools: that it was made under; they give the system message.
        name_of: the file of an image, as the record is to name it.
        style: one of `STYLES`.
    """
    images: list[str] = []

    def content(parts: Sequence[Part]) -> str:
        images.extend(name_of(part) for part in parts if isinstance(part, ImageRef))
        return _text(parts)

    user = protocol.user_parts(trajectory.question, trajectory.own_images)
    messages: list[dict[str, Any]] = [
        {'role': 'system', 'content': _text([protocol.system_prompt(tools)])},
        {'role': 'user', 'content': content(user)},
    ]
    for turn in trajectory.turns:
        messages.append(_assistant(turn.text, style))
        if turn.observation is not None:
            messages.append({'role': 'tool', 'content': content(turn.observation.parts)})
    extra = {'protocol': protocol.name, 'tools': list(tools), **_extra(trajectory)}
    record = {'messages': messages, 'images': images, EXTRA: json.dumps(extra)}
    if style == 'openai':
        record['tools'] = json.dumps([protocol.schema(tool) for tool in tools])
    return record


def from_chat(
    record: Mapping[str, Any],
    picture: Callable[[str], ImageRef],
    protocol: Protocol | None,
    tools: Sequence[str] | None,
    identity: str,
) -> tuple[Trajectory, str, list[Part]]:
    """A record as a trajectory.

    Args:
        record: with `messages` and `images`, in either style, or `conversations` of from and value.
        picture: the image of a file that the record names.
        protocol, tools: by which the assistant's text is read; None: the record's own.
        identity: of a question whose record has none.

    Returns:
        The trajectory, without tokens unless it was sampled, its system message and the parts of
        its user's message, from which `agent.chat_template.tokenise` makes them.

    Raises:
        BadChat: it is no such record.
    """
    extra = json.loads(record[EXTRA]) if record.get(EXTRA) else {}
    protocol = protocol or PROTOCOLS.get(extra.get('protocol', ''))
    tools = extra.get('tools') if tools is None else tools
    if protocol is None or tools is None:
        raise BadChat('it does not say its protocol and tools; give --protocol and --tools')
    system, messages = _messages(record)
    if not messages or messages[0][0] != 'user':
        raise BadChat('it does not begin with a message of the user')
    names = iter(record.get('images') or ())
    user = _parts(messages[0][1], names, picture)
    images = [part for part in user if isinstance(part, ImageRef)]
    own = len(images)
    turns: list[Turn] = []
    saved = extra.get('turns', [])
    for i, (role, text) in enumerate(messages[1:]):
        if role != ('tool' if i % 2 else 'assistant'):
            raise BadChat(f'message {i + 2} is of {role}; assistant and tool take turns')
        if role == 'assistant':
            about = saved[len(turns)] if len(turns) < len(saved) else {}
            turns.append(_turn(_unescape(text), protocol, tools, about))
            continue
        parts = _parts(text, names, picture)
        about = saved[len(turns) - 1].get('observation') if len(turns) <= len(saved) else None
        turns[-1].observation = _observation(turns[-1], parts, about)
        images += [part for part in parts if isinstance(part, ImageRef)]
    if next(names, None) is not None:
        raise BadChat(f'it names more images than there are {PLACEHOLDER} in its messages')
    return _trajectory(extra, user, own, images, turns, identity), system, user


def _extra(trajectory: Trajectory) -> dict[str, Any]:
    """All but the texts and images of the messages; tokens of what was sampled alone."""
    value = trajectory.to_json()
    sampled = any(turn.log_probs for turn in trajectory.turns)
    for holder in (value, *value['turns']):
        for name in _TOKENS:
            if not sampled:
                holder.pop(name, None)
    for turn, made in zip(value['turns'], trajectory.turns):
        del turn['text']
        if turn['observation'] is not None:
            parts = made.observation.parts
            if _split(_text(parts)) != [p if isinstance(p, str) else None for p in parts]:
                continue  # texts that stand side by side cannot be told apart in a message
            del turn['observation']['parts']
    if value['images'] == [*value['images'][: len(trajectory.own_images)], *_shown(trajectory)]:
        del value['images']
    return value


def _shown(trajectory: Trajectory) -> list[dict[str, Any]]:
    parts = (
        part for turn in trajectory.turns if turn.observation for part in turn.observation.parts
    )
    return [vars(part) for part in parts if isinstance(part, ImageRef)]


def _text(parts: Sequence[Part]) -> str:
    return ''.join(
        _LITERAL.sub('<\u2060\\1\\2>', part) if isinstance(part, str) else PLACEHOLDER
        for part in parts
    )


def _unescape(text: str) -> str:
    return _ESCAPED.sub('<\\1\\2>', text)


def _split(content: str) -> list[str | None]:
    """Texts and, as None, images of a message."""
    found: list[str | None] = []
    for i, text in enumerate(content.split(PLACEHOLDER)):
        found += [None] if i else []
        found += [_unescape(text)] if text else []
    return found


def _parts(content: str, names: Iterator[str], picture: Callable[[str], ImageRef]) -> list[Part]:
    if other := _NO_INPUT.search(content):
        raise BadChat(f'it has {other[0]}; only images are an input')
    parts: list[Part] = []
    for text in _split(content):
        if text is not None:
            parts.append(text)
            continue
        name = next(names, None)
        if name is None:
            raise BadChat(f'it has more {PLACEHOLDER} than images')
        parts.append(picture(name))
    return parts


def _assistant(text: str, style: str) -> dict[str, Any]:
    called = _CALL.fullmatch(text) if style == 'openai' else None
    if called is None:
        return {'role': 'assistant', 'content': _text([text])}
    function = {'name': json.loads(called['name']), 'arguments': _text([called['arguments']])}
    return {
        'role': 'assistant',
        'content': _text([called['text']]),
        'tool_calls': [{'type': 'function', 'function': function}],
    }


def _messages(record: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """The system message, and roles and contents of the others."""
    roles = {'human': 'user', 'gpt': 'assistant', 'observation': 'tool', 'tool_response': 'tool'}
    system, found = str(record.get('system') or ''), []
    listed = record.get('messages') or record.get('conversations')
    if (
        not isinstance(listed, list)
        or not listed
        or not all(isinstance(m, Mapping) for m in listed)
    ):
        raise BadChat('it has no messages')
    for message in listed:
        role = message.get('role', message.get('from'))
        content = message.get('content', message.get('value')) or ''
        if not isinstance(content, str):
            raise BadChat(f'the content of a message of {role} is no text')
        for call in message.get('tool_calls') or []:
            function = call['function']
            arguments = function['arguments']
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            name = json.dumps(function['name'], ensure_ascii=False)
            called = f'{{"name": {name}, "arguments": {arguments}}}'
            content += f'\n<tool_call>\n{called}\n</tool_call>'
        role = roles.get(role, role)
        if role == 'system':
            system = _unescape(content)
        else:
            found.append((role, content))
    return system, found


def _turn(text: str, protocol: Protocol, tools: Sequence[str], about: Mapping[str, Any]) -> Turn:
    turn = Turn([], [], text, protocol.parse(text, tools).action, None, [])
    if about:
        saved = Turn.from_json(
            {'tokens': [], 'log_probs': [], 'observation_tokens': [], **about}
            | {'text': text, 'observation': None}
        )
        if isinstance(saved.action, FormatError) or saved.action == turn.action:
            return saved
    return turn


def _observation(turn: Turn, parts: list[Part], about: Mapping[str, Any] | None) -> Observation:
    if about:
        if 'parts' in about and _text(Observation.from_json(dict(about)).parts) == _text(parts):
            return Observation.from_json(dict(about))
        saved = Observation.from_json({'parts': [], **about})
        return dataclasses.replace(saved, parts=tuple(parts))
    if isinstance(turn.action, FormatError | Answer):
        return Observation(tuple(parts), ok=False, kind='format_error')
    refs = [part for part in parts if isinstance(part, ImageRef)]
    cropped = isinstance(turn.action, ImageCrop)
    if cropped and not refs:
        return Observation(tuple(parts), ok=False, kind='tool_error')
    kind = tool_of(turn.action) or 'tool_error'
    return Observation(tuple(parts), ok=True, kind=kind, new_images=tuple(refs) if cropped else ())


def _trajectory(
    extra: Mapping[str, Any],
    user: list[Part],
    own: int,
    images: list[ImageRef],
    turns: list[Turn],
    identity: str,
) -> Trajectory:
    last = turns[-1].action if turns else None
    answer = last.text if isinstance(last, Answer) else None
    if 'question' in extra:
        question = Question.from_json(extra['question'])
        known = {name: extra[name] for name in ('member', 'seed', 'reward', 'failure')}
        state = SampleState(extra['state'])
        answer = extra['answer'] if answer is None else answer
    else:
        text = ''.join(part for part in user if isinstance(part, str)).strip()
        refs = tuple(f'sha256:{image.sha256}' for image in images[:own])
        question = Question(identity, text, refs, (answer,) if answer else ())
        known = {'member': 0, 'seed': 0, 'reward': {}, 'failure': ''}
        state = SampleState.TRUNCATED if answer is None else SampleState.OK
    if 'images' in extra:
        images = [ImageRef(**ref) for ref in extra['images']]
    return Trajectory(
        question=question,
        turns=turns,
        state=state,
        prompt_tokens=extra.get('prompt_tokens', []),
        images=images,
        answer=answer,
        **known,
    )


def main() -> None:
    """The command line."""
    from sensesearch_jax.data import chat_files
    from sensesearch_jax.model.image_processor import Preprocessor

    parser = argparse.ArgumentParser(
        prog='python -m sensesearch_jax.data.chat_format',
        description='Trajectories in the chat format of PyTorch trainers, and back.',
    )
    ways = parser.add_subparsers(dest='way', required=True)
    export = ways.add_parser('export', help='a file of trajectories becomes a folder of chats')
    export.add_argument('trajectories', type=Path, help='such as kept.jsonl of a cold start')
    export.add_argument('folder', type=Path, help='gets train.jsonl, images, dataset_info.json')
    export.add_argument('--style', choices=STYLES, default='messages', help='how calls are written')
    back = ways.add_parser('import', help='a file of chats becomes a file of trajectories')
    back.add_argument('chats', type=Path, help='JSON lines or a JSON list')
    back.add_argument('trajectories', type=Path, help='the file for --config.sft.data')
    back.add_argument('--policy', required=True, help='directory of the policy that is to learn')
    back.add_argument('--min_pixels', type=int, default=0, help='as in the config of SFT')
    back.add_argument('--max_pixels', type=int, default=0, help='as in the config of SFT')
    for way in (export, back):
        way.add_argument(
            '--pictures',
            type=Path,
            help="the tool server's folder (tools.folder); of an export's run",
        )
        way.add_argument('--protocol', help="agent.protocol; the run's, or the record's own")
        way.add_argument('--tools', help="agent.tools with commas; the run's, or the record's own")
    given = parser.parse_args()
    try:
        protocol = chat_files.protocol_of(given.protocol) if given.protocol else None
        tools = given.tools.split(',') if given.tools else None
        if given.way == 'export':
            agent, images = chat_files.run_of(given.trajectories)
            images = given.pictures or images
            if protocol is None and 'protocol' in agent:
                protocol = chat_files.protocol_of(agent['protocol'])
            tools = tools or agent.get('tools')
            if protocol is None or tools is None or not images.is_dir():
                raise UserError(
                    f'{given.trajectories} lies in no run; give --protocol, --tools and --pictures.'
                )
            count = chat_files.export(
                given.trajectories, given.folder, images, protocol, tools, given.style
            )
            print(f'{count} trajectories in {given.folder / "train.jsonl"}')
            return
        if given.pictures is None:
            raise UserError('An import needs --pictures, the folder that SFT gets as tools.folder.')
        preprocessor = Preprocessor.read(given.policy).within(given.min_pixels, given.max_pixels)
        tokenizer = ChatTokenizer(given.policy, preprocessor.merged_tokens)
        count = chat_files.import_(
            given.chats, given.trajectories, given.pictures, tokenizer, protocol, tools
        )
        print(
            f'{count} trajectories in {given.trajectories}; train with '
            f'--config.sft.data={given.trajectories} --config.tools.folder={given.pictures}'
        )
    except UserError as error:
        print(f'chat_format: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
