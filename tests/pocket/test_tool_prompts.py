"""Made-up tools in Qwen's format: what is written can be read back, and none is a tool of the project."""

import json
import re

import numpy as np
import pytest

from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.pocket.pretraining.tool_prompts import (
    RESERVED,
    ToolPrompt,
    answer,
    call,
    up_to_value,
)

WORDS = np.array(
    sorted({'river', 'Paris', 'crop', 'query', 'é', *(a + b + c for a in 'bdfg' for b in 'aeio' for c in 'nrst')})
)  # fmt: skip
VALUES = {'box': [0.1, 0.2, 0.3, 1.0], 'string': 'the "Elder" é', 'none': None, 'number': 3}


def drawn(count):
    return [
        ToolPrompt.draw(np.random.default_rng(seed), WORDS, ('box', 'none', 'string'), 2)
        for seed in range(count)
    ]


def test_a_system_prompt_declares_each_tool_as_the_protocol_declares_its_own():
    own = DEFAULT.system_prompt(TOOLS).split('\n')
    alike = 0
    for prompt in drawn(40):
        lines = prompt.system().split('\n')
        start, end = lines.index('<tools>'), lines.index('</tools>')
        schemas = [json.loads(line) for line in lines[start + 1 : end]]
        assert [s['function']['name'] for s in schemas] == [tool.name for tool in prompt.tools]
        assert 3 <= len(schemas) <= 5
        for schema, line in zip(schemas, lines[start + 1 : end]):
            assert schema.keys() == json.loads(own[2]).keys()
            assert schema['function'].keys() == json.loads(own[2])['function'].keys()
            assert line == json.dumps(schema, ensure_ascii=False, separators=(',', ':'))
        assert lines[end + 1 : end + 5] == own[own.index('</tools>') + 1 :][:4]
        alike += lines[0] == own[0]
    assert 5 < alike < 35


def test_names_are_none_of_the_projects():
    for prompt in drawn(40):
        words = {w for tool in prompt.tools for w in (*tool.name.split('_'), tool.argument)}
        assert not RESERVED & words and not set(TOOLS) & {tool.name for tool in prompt.tools}
        assert len({tool.name for tool in prompt.tools}) == len(prompt.tools)
        assert set(prompt.wanted) <= set(prompt.tools)


def test_calls_and_answers_are_turns_that_the_protocol_reads_up_to_the_name():
    for prompt in drawn(20):
        for tool in prompt.tools:
            turn = call('I look.', tool, VALUES[tool.kind], picture=2)
            found = json.loads(re.search(r'<tool_call>\n(.*)\n</tool_call>$', turn)[1])
            expected = {} if tool.kind == 'none' else {tool.argument: VALUES[tool.kind]}
            if tool.picture:
                expected[tool.picture] = 2
            assert found == {'name': tool.name, 'arguments': expected}
            parsed = DEFAULT.parse(turn, TOOLS)
            assert (parsed.thought, parsed.action.kind) == ('I look.', 'unknown_tool')
            begun = up_to_value(turn, tool)
            assert turn.startswith(begun) and begun.endswith(('": ', '{'))
    parsed = DEFAULT.parse(answer('It is red.', 'red'), TOOLS)
    assert (parsed.thought, parsed.action.text) == ('It is red.', 'red')


def test_many_prompts_and_seeds_decide():
    assert len({prompt.system() for prompt in drawn(50)}) == 50
    assert drawn(3) == drawn(3)


@pytest.mark.parametrize('kinds, counted', [(('string',), False), (('box',), True)])
def test_pictures_are_counted_where_a_tool_takes_one(kinds, counted):
    prompt = ToolPrompt.draw(np.random.default_rng(0), WORDS, kinds, 0)
    assert bool(prompt.counted) == counted == ('counts from 1' in prompt.system())
