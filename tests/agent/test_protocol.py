"""The protocol: prompts, reading anything the policy may write, writing what reads the same."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.protocol import DEFAULT, RELEASED, TOOLS, ParsedTurn, user_text
from sensesearch_jax.agent.trajectory import Question

# A loaded machine is slow at times; that is no failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ACTIONS = (TextSearch, ImageSearch, ImageCrop, Answer, FormatError)


def call(name, **arguments):
    return f'<think>t</think>\n<tool_call>\n{json.dumps({"name": name, "arguments": arguments})}\n</tool_call>'


def kind(text, protocol=DEFAULT, tools=TOOLS):
    action = protocol.parse(text, tools).action
    assert isinstance(action, FormatError) and 0 < len(action.message) < 200
    return action.kind


def check(parsed):
    """Whatever the text was: an action whose values are usable, or a named error with something to
    read."""
    assert isinstance(parsed, ParsedTurn) and isinstance(parsed.action, ACTIONS)
    if isinstance(parsed.action, FormatError):
        assert parsed.action.kind.isidentifier() and 0 < len(parsed.action.message) < 200
        parsed.action.message.encode('utf-8')
    if isinstance(parsed.action, TextSearch):
        parsed.action.query.encode('utf-8')
    if isinstance(parsed.action, Answer):
        assert parsed.action.text
        parsed.action.text.encode('utf-8')
    if isinstance(parsed.action, ImageCrop):
        assert len(parsed.action.bbox) == 4 and all(
            abs(x) < float('inf') for x in parsed.action.bbox
        )
        assert isinstance(parsed.action.image_index, int)


def test_reads_the_four_actions():
    assert DEFAULT.parse(call('text_search', query='Chad capital'), TOOLS) == ParsedTurn(
        't', TextSearch('Chad capital')
    )
    assert DEFAULT.parse(call('image_search'), TOOLS).action == ImageSearch(1)
    assert DEFAULT.parse(call('image_search', image_index=3), TOOLS).action == ImageSearch(3)
    crop = DEFAULT.parse(call('image_crop', bbox=[0, 0.1, 0.5, 1], image_index=2), TOOLS).action
    assert crop == ImageCrop((0.0, 0.1, 0.5, 1.0), 2)
    assert DEFAULT.parse('<think>Seen.</think><answer> Paris </answer>', TOOLS) == ParsedTurn(
        'Seen.', Answer('Paris')
    )


def test_text_after_the_first_call_is_cut():
    text = call('text_search', query='a')
    assert DEFAULT.parse(
        text + '\n<tool_response>made up</tool_response><answer>b</answer>', TOOLS
    ) == DEFAULT.parse(text, TOOLS)
    assert DEFAULT.parse(text + text, TOOLS) == DEFAULT.parse(text, TOOLS)


def test_a_missing_thought_is_no_error():
    assert DEFAULT.parse('<answer>Paris</answer>', TOOLS) == ParsedTurn('', Answer('Paris'))


@pytest.mark.parametrize(
    'text, expected',
    [
        ('', 'no_action'),
        ('<think>only this</think>', 'no_action'),
        ('<think>never closed <answer>a</answer>', 'unclosed_think'),
        ('<think>a</think><answer>b', 'unclosed_answer'),
        ('<think>a</think><answer> </answer>', 'empty_answer'),
        ('<think>a<|im_end|>\n<|im_start|>user\nb</think><answer>c</answer>', 'foreign_tag'),
        (
            '<think>a</think>\n<tool_response>\nmade up\n</tool_response><answer>b</answer>',
            'foreign_tag',
        ),
        ('<think>a</tool_response></think><answer>b</answer>', 'foreign_tag'),
        ('<think>a</think><answer>b<|image_pad|></answer>', 'foreign_tag'),
        ('<think>a</think><answer>b</answer><answer>c</answer>', 'several_actions'),
        ('<think>a</think><answer>b</answer><tool_call>{}</tool_call>', 'several_actions'),
        ('<think>a</think><tool_call><tool_call>{}</tool_call></tool_call>', 'several_actions'),
        ('<think>a</think><tool_call>{"name": "text_search"', 'unclosed_tool_call'),
        ('<tool_call>{"name": "text_search",}</tool_call>', 'bad_json'),
        ('<tool_call>' + '[' * 200_000 + '</tool_call>', 'bad_json'),
        (
            '<tool_call>{"name": "image_search", "arguments": {"image_index": '
            + '9' * 5000
            + '}}</tool_call>',
            'bad_json',
        ),
        ('<tool_call>[]</tool_call>', 'bad_call'),
        ('<tool_call>{"name": "image_search", "parameters": {}}</tool_call>', 'bad_call'),
        ('<tool_call>{"name": "image_search", "arguments": []}</tool_call>', 'bad_arguments'),
        (call('web_search', query='a'), 'unknown_tool'),
        (call('text_search', query=None), 'bad_arguments'),
        (call('text_search', query='a', top_k=3), 'bad_arguments'),
        (call('image_search', image_index='1'), 'bad_arguments'),
        (call('image_search', image_index=True), 'bad_arguments'),
        (call('image_search', image_index=1.5), 'bad_arguments'),
        (call('image_crop', image_index=1), 'bad_arguments'),
        (call('image_crop', bbox=[0, 0, 1]), 'bad_arguments'),
        (call('image_crop', bbox='[0, 0, 1, 1]'), 'bad_arguments'),
        (call('image_crop', bbox=[0, 0, float('nan'), 1]), 'bad_arguments'),
        (call('image_crop', bbox=[0, 0, float('inf'), 1]), 'bad_arguments'),
        (call('image_crop', bbox=[0, 0, 10**400, 1]), 'bad_arguments'),
        (call('image_crop', bbox=[0, 0, True, 1]), 'bad_arguments'),
    ],
)
def test_mistakes_have_names(text, expected):
    assert kind(text) == expected


def test_a_tool_switched_off_is_absent_and_refused():
    tools = ('text_search', 'image_search')
    assert 'image_crop' in DEFAULT.system_prompt(
        TOOLS
    ) and 'image_crop' not in DEFAULT.system_prompt(tools)
    assert kind(call('image_crop', bbox=[0, 0, 1, 1]), tools=tools) == 'unknown_tool'
    assert '<tools>' not in DEFAULT.system_prompt(())
    with pytest.raises(ValueError, match='unknown tools'):
        DEFAULT.system_prompt(('zoom',))


@pytest.mark.parametrize('protocol', [DEFAULT, RELEASED])
def test_system_prompt_lists_schemas_as_json_lines(protocol):
    prompt = protocol.system_prompt(TOOLS)
    lines = prompt.split('<tools>\n')[1].split('\n</tools>')[0].split('\n')
    assert [json.loads(line)['function']['name'] for line in lines] == [
        getattr(protocol, tool) for tool in TOOLS
    ]
    assert all(json.loads(line)['type'] == 'function' for line in lines)
    assert f'<{protocol.thought_tag}>' in prompt


def test_system_prompt_is_short():
    assert len(DEFAULT.system_prompt(TOOLS)) < 960


def test_user_text_lists_the_choices():
    question = Question(
        'q',
        'Which one?',
        ('a.png',),
        ('B',),
        ('red', 'blue'),
        category='perception',
        difficulty='1',
    )
    assert user_text(question) == 'Which one?\nA. red\nB. blue'


def test_released_protocol_counts_and_scales_its_own_way():
    text = RELEASED.render_action('t', ImageCrop((0.1, 0.57, 0.5, 1.0), 2))
    assert (
        '"bbox_2d": [100, 570, 500, 1000]' in text
        and '"img_idx": 1' in text
        and '<thinking>t</thinking>' in text
    )
    assert RELEASED.parse(text, TOOLS) == ParsedTurn('t', ImageCrop((0.1, 0.57, 0.5, 1.0), 2))
    assert RELEASED.render_action('t', ImageSearch()).count('image_search_tool') == 1
    with pytest.raises(ValueError, match='cannot write'):
        RELEASED.render_action('t', ImageSearch(2))


@pytest.mark.parametrize(
    'thought, action',
    [
        ('t', Answer('')),
        (' t', Answer('a')),
        ('t', Answer('a </answer>')),
        ('</think>', Answer('a')),
        ('t', ImageCrop((0.0, 0.0, float('nan'), 1.0))),
    ],
)
def test_what_would_read_differently_cannot_be_written(thought, action):
    with pytest.raises(ValueError, match='cannot write'):
        DEFAULT.render_action(thought, action)


plain = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='<>'), max_size=60).map(
    str.strip
)
tenths = st.integers(0, 10).map(lambda i: i / 10)
fractions = st.floats(allow_nan=False, allow_infinity=False)
crops = st.builds(
    ImageCrop, st.tuples(fractions, fractions, fractions, fractions), st.integers(1, 50)
)
released_crops = st.builds(ImageCrop, st.tuples(tenths, tenths, tenths, tenths), st.integers(1, 50))
queries = st.builds(TextSearch, st.text(max_size=80) | st.just('</tool_call><think><|im_end|>'))
answers = st.builds(Answer, plain.filter(bool))


@patient
@given(plain, queries | answers | crops | st.builds(ImageSearch, st.integers(1, 50)))
def test_written_actions_read_the_same(thought, action):
    assert DEFAULT.parse(DEFAULT.render_action(thought, action), TOOLS) == ParsedTurn(
        thought, action
    )


@patient
@given(plain, queries | answers | released_crops | st.builds(ImageSearch))
def test_written_actions_read_the_same_as_released(thought, action):
    assert RELEASED.parse(RELEASED.render_action(thought, action), TOOLS) == ParsedTurn(
        thought, action
    )


fragments = st.sampled_from(
    [
        '<think>',
        '</think>',
        '<thinking>',
        '<tool_call>',
        '</tool_call>',
        '<answer>',
        '</answer>',
        '{',
        '}',
        '[',
        ']',
    ]
    + [
        '"name"',
        '"arguments"',
        '"image_crop"',
        '"bbox"',
        ':',
        ',',
        'NaN',
        '-Infinity',
        '1e999',
        '"\\ud800"',
        '\n',
    ]
    + [
        '{"name": "text_search", "arguments": {"query": "\\udfff"}}',
        '{"name": "image_search", "arguments": {}}',
    ]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**320)
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
names = st.sampled_from(
    [getattr(protocol, tool) for protocol in (DEFAULT, RELEASED) for tool in TOOLS]
) | st.text(max_size=8)
keys = st.sampled_from(['query', 'bbox', 'bbox_2d', 'image_index', 'img_idx', 'label'])


@settings(patient, max_examples=300)
@given(
    st.lists(fragments | st.text(max_size=6), max_size=16).map(''.join),
    st.sampled_from([DEFAULT, RELEASED]),
)
def test_reads_any_text(text, protocol):
    check(protocol.parse(text, TOOLS))
    check(protocol.parse(f'<think>a</think><tool_call>{text}</tool_call>', TOOLS))


@settings(patient, max_examples=300)
@given(
    names, st.dictionaries(keys, values, max_size=3) | values, st.sampled_from([DEFAULT, RELEASED])
)
def test_reads_any_call(name, arguments, protocol):
    text = json.dumps({'name': name, 'arguments': arguments})
    check(protocol.parse(f'<think>a</think>\n<tool_call>\n{text}\n</tool_call>', TOOLS))


@pytest.mark.parametrize(
    'unit', ['<think>', '</think><answer>', '<tool_call>', '{"name":', '{"a":', 'é', '\\u003c', '"']
)
def test_reads_megabytes(unit):
    text = unit * (2**20 // len(unit))
    check(DEFAULT.parse(text, TOOLS))
    check(DEFAULT.parse(f'<tool_call>{text}</tool_call>', TOOLS))
    check(DEFAULT.parse(call('text_search', query=text), TOOLS))
    check(DEFAULT.parse(call(text), TOOLS))
