"""Files of a policy directory beside config and weights: tokenizer, chat template, processor, stop
tokens.

A policy is served with the chat template that it was trained with. Qwen2.5-VL's own writes a tool's
result as a turn of 'tool'; a rollout writes it as a user turn in <tool_response>. So the source's
template stays only if it renders a conversation with tools to the same tokens as the rollouts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sensesearch_jax.agent.chat_template import CHAT_TEMPLATE, ChatTokenizer, tokenizer_config
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.model.image_processor import read_object

COPIED = (
    'tokenizer.json', 'special_tokens_map.json', 'added_tokens.json', 'vocab.json', 'merges.txt',
    'preprocessor_config.json', 'video_preprocessor_config.json', 'processor_config.json', 'generation_config.json',
)  # fmt: skip
TEMPLATE = 'chat_template.jinja'
LEGACY_TEMPLATE = 'chat_template.json'  # which transformers prefers

_PICTURE = ImageRef('0' * 64, 1, 1)
_CONVERSATION = (  # all that an agent's conversations have, and two consecutive tool results
    {
        'role': 'system',
        'content': 'Answer the question.\n<tool_call>\n{"name": <name>}\n</tool_call>',
    },
    {'role': 'user', 'content': [_PICTURE, 'Which flag is it?']},
    {
        'role': 'assistant',
        'content': '<think>I look.</think>\n<tool_call>\n{"name": "image_crop"}\n</tool_call>',
    },
    {'role': 'tool', 'content': ['Image 2:\n', _PICTURE]},
    {'role': 'assistant', 'content': 'I search.'},
    {'role': 'tool', 'content': '1. Chad'},
    {'role': 'tool', 'content': '2. Mali'},
)


def companions(source: Path) -> dict[str, bytes]:
    """Contents of the files beside config.json and weights, by name, for a policy trained from
    `source`.

    Tokenizer and processor files are those of `source`; chat_template.jinja, and the same in
    tokenizer_config.json, the template of the training; generation_config.json has the tokens at
    which rollouts stop. A directory without a tokenizer gives what it has.

    Raises:
        UserError: a file of `source` that cannot be read.
    """
    files = {name: (source / name).read_bytes() for name in COPIED if (source / name).is_file()}
    if 'tokenizer.json' not in files:
        return files
    chat = ChatTokenizer(source, lambda width, height: 1)
    template = trained_template(source, chat)
    files[TEMPLATE] = template.encode()
    config = _read(source / 'tokenizer_config.json') or tokenizer_config()
    files['tokenizer_config.json'] = _written(config | {'chat_template': template})
    if 'processor_config.json' in files:  # a template in it would go before the others
        config = _read(source / 'processor_config.json')
        files['processor_config.json'] = _written(
            {k: v for k, v in config.items() if k != 'chat_template'}
        )
    sampling = _read(source / 'generation_config.json') or {
        'do_sample': True,
        'pad_token_id': chat.end_of_text,
    }
    files['generation_config.json'] = _written(sampling | {'eos_token_id': list(chat.stop_ids)})
    return files


def trained_template(source: Path, chat: ChatTokenizer) -> str:
    """Chat template: that of `source` if it renders a conversation as `chat` does, else ours."""
    template = _source_template(source)
    return template if template is not None and renders_alike(template, chat) else CHAT_TEMPLATE


def renders_alike(template: str, chat: ChatTokenizer) -> bool:
    """Whether a Jinja template's text has the tokens that `chat` renders; False for one that fails.

    `chat` counts one visual token for an image of one pixel.
    """

    def part(one):
        return {'type': 'text', 'text': one} if isinstance(one, str) else {'type': 'image'}

    def content(said):
        return said if isinstance(said, str) else [part(one) for one in said]

    messages = [m | {'content': content(m['content'])} for m in _CONVERSATION]
    try:
        text = (
            _environment()
            .from_string(template)
            .render(messages=messages, tools=None, add_generation_prompt=True)
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError):
        # what a template can raise
        return False
    ids = chat.tokenizer.encode(text, add_special_tokens=False).ids
    return ids == chat.render(_CONVERSATION, add_generation_prompt=True)


def _environment() -> jinja2.Environment:
    """Jinja environment like that of transformers; sandboxed, since a template is untrusted code."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters['tojson'] = lambda value, **options: json.dumps(
        value, **{'ensure_ascii': False} | options
    )
    environment.globals['raise_exception'] = refuse
    return environment


def _source_template(source: Path) -> str | None:
    """Chat template of a directory's processor or tokenizer, by the precedence of transformers."""
    processor, legacy = _read(source / 'processor_config.json'), _read(source / LEGACY_TEMPLATE)
    for config in (processor, legacy):
        if isinstance(config.get('chat_template'), str):
            return config['chat_template']
    if (source / TEMPLATE).is_file():
        return (source / TEMPLATE).read_text(encoding='utf-8')
    template = _read(source / 'tokenizer_config.json').get('chat_template')
    return template if isinstance(template, str) else None


def _read(file: Path) -> dict[str, Any]:
    """JSON object of a file; an empty one if there is no such file."""
    return read_object(file) if file.is_file() else {}


def _written(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + '\n').encode()
