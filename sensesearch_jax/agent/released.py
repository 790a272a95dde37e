"""The protocol of the released SenseNova-MARS policies, with the system text and the tools of their
authors' own files.

Their manifest of a data set holds the system text under `system_prompt`, their tool configuration
(verl's layout) a `tool_schema` for each tool; neither is written here. Their training and their
evaluation differ in three ways, which are fields: the schema, the line break between turns, and the
image that a crop is cut from.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from ml_collections import ConfigDict

from sensesearch_jax.agent.chat_template import CHAT_TEMPLATE
from sensesearch_jax.agent.protocol import PROTOCOLS, RELEASED, TOOLS, Protocol
from sensesearch_jax.errors import UserError

FORMS = ('evaluated', 'trained')
CROPS = ('named', 'original')
ORDER = ('image_crop', 'text_search', 'image_search')
# What their training's serialization of a schema leaves out.
DROPPED = ('items', 'minItems', 'maxItems')


def protocol_of(agent: ConfigDict) -> Protocol:
    """Protocol of a run.

    Args:
        agent: with `protocol`, and the fields of `released`.

    Raises:
        UserError: no such protocol or form, a file that cannot be read or lacks what it is for, or
            a field of another protocol.
    """
    if agent.protocol not in PROTOCOLS:
        raise UserError(
            f"agent.protocol '{agent.protocol}' is unknown; choose from {list(PROTOCOLS)}."
        )
    system, tools = agent.released.system_file, agent.released.tools_file
    form, crops = agent.released.form, agent.released.crops
    for name, value, known in (('form', form, FORMS), ('crops', crops, CROPS)):
        if value not in known:
            raise UserError(f"agent.released.{name} '{value}' is unknown; choose from {known}.")
    if not system and not tools:
        return PROTOCOLS[agent.protocol]
    if agent.protocol != RELEASED.name or not (system and tools):
        raise UserError(
            'agent.released.system_file and agent.released.tools_file go together, with '
            "agent.protocol='released'; set all three, or neither file."
        )
    return published(Path(system), Path(tools), form, crops)


def published(system: Path, tools: Path, form: str, crops: str) -> Protocol:
    """Protocol with the authors' system text and tools.

    Args:
        system: their manifest (JSON), or a file that holds the text alone.
        tools: their tool configuration, YAML or JSON.
        form: 'evaluated', or 'trained': without the boxes' item types, and without a line break
            after a turn of the policy.
        crops: 'named' cuts from the image that a call names; 'original' from the first, whatever it
            names, and within its bounds, as their inference script does.
    """
    schemas = _schemas(tools)
    if form == 'trained':
        schemas = {name: _as_trained(schema) for name, schema in schemas.items()}
    known = {getattr(RELEASED, tool): tool for tool in TOOLS}
    if missing := sorted(known.keys() - schemas.keys()):
        raise UserError(
            f'{tools} declares no {missing[0]}; name the tool configuration of the release.'
        )
    return dataclasses.replace(
        RELEASED,
        system_text=_system_text(system),
        schemas=tuple((tool, schemas[getattr(RELEASED, tool)]) for tool in ORDER),
        turn_newline=form == 'evaluated',
        crops_original=crops == 'original',
        published=True,
    )


def with_tools(system: str, schemas: Sequence[dict[str, Any]]) -> str:
    """System turn's text with the tools declared as the family's chat template declares them.

    Args:
        system: the text before them.
        schemas: function schemas; without any, the text stays as it is.
    """
    if not schemas:
        return system
    environment = jinja2.Environment()
    environment.filters['tojson'] = lambda value: json.dumps(value, ensure_ascii=False)
    messages = [{'role': 'system', 'content': system}]
    turn = environment.from_string(CHAT_TEMPLATE).render(messages=messages, tools=schemas)
    return turn.removeprefix('<|im_start|>system\n').removesuffix('<|im_end|>\n')


def _system_text(path: Path) -> str:
    text = _read(path)
    try:
        manifest = json.loads(text)
    except ValueError:
        return text
    found = set(_values(manifest, 'system_prompt'))
    if len(found) != 1:
        raise UserError(
            f"{path} holds {len(found)} different texts under 'system_prompt'; write the one that you "
            'mean into a file of its own.'
        )
    return found.pop()


def _schemas(path: Path) -> dict[str, dict[str, Any]]:
    """Function schemas of a tool configuration, by the names of their functions."""
    try:
        content = yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        raise UserError(f'{path} is neither YAML nor JSON: {error}') from None
    schemas = [*_values(content, 'tool_schema')] or content
    try:
        return {schema['function']['name']: schema for schema in schemas}
    except (TypeError, KeyError):
        raise UserError(
            f"{path} holds no tools: neither 'tool_schema' entries nor a list of function schemas."
        ) from None


def _as_trained(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {k: _as_trained(v) for k, v in schema.items() if k not in DROPPED}
    return schema


def _values(content: Any, key: str) -> Iterator[Any]:
    """Values under a key, at any depth."""
    if isinstance(content, dict):
        if key in content:
            yield content[key]
        for name, value in content.items():
            if name != key:
                yield from _values(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from _values(value, key)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'agent.released: {path} cannot be read: {error}.') from None
