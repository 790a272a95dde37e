"""The chat template in pieces: as transformers does whole conversations, and safe against special
strings."""

import json
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensesearch_jax.agent.actions import Answer, ImageCrop, TextSearch
from sensesearch_jax.agent.chat_template import ChatTokenizer, tokenise
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.trajectory import (
    ImageRef,
    Observation,
    Question,
    SampleState,
    Trajectory,
    Turn,
)
from sensesearch_jax.pocket.pretraining.train_tokenizer import (
    CONTROL_TOKENS,
    ORDINARY_TOKENS,
    train_tokenizer,
)

PICTURE, CROP = ImageRef('a', 448, 252), ImageRef('b', 56, 84)
TEXTS = [
    DEFAULT.system_prompt(TOOLS),
    DEFAULT.render_action('The flag is small, so I crop it.', ImageCrop((0.1, 0.2, 0.4, 0.5))),
    '<think>It is the Flag of Chad.</think>\n<answer>N’Djamena</answer>',
    '<tool_response>\n1. Chad: Capital\n</tool_response>',
] * 3


def visual_tokens(width, height):
    return (width // 28) * (height // 28)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('tokenizer')
    train_tokenizer(TEXTS, path, vocab_size=600)
    return path


@pytest.fixture(scope='module')
def chat(folder):
    return ChatTokenizer(folder, visual_tokens)


@pytest.fixture(scope='module')
def reference(folder):
    """A conversation's tokens by transformers: template as text, image pads repeated, encoded
    whole."""
    tokenizer = pytest.importorskip('transformers').AutoTokenizer.from_pretrained(str(folder))

    def encode(messages, add_generation_prompt=False):
        images, written = [], []
        for message in messages:
            content = message['content']
            parts = [content] if isinstance(content, str) else content
            images += [part for part in parts if isinstance(part, ImageRef)]
            parts = [
                {'type': 'text', 'text': p} if isinstance(p, str) else {'type': 'image'}
                for p in parts
            ]
            written.append(
                {'role': message['role'], 'content': content if isinstance(content, str) else parts}
            )
        text = tokenizer.apply_chat_template(
            written, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        for image in images:
            text = text.replace(
                '<|image_pad|>', '<|pad|>' * visual_tokens(image.width, image.height), 1
            )
        return tokenizer.encode(text.replace('<|pad|>', '<|image_pad|>'), add_special_tokens=False)

    return encode


def test_tokenizer_is_laid_out_as_qwens(chat, folder):
    assert chat.vocab_size <= 600
    ids = [chat.tokenizer.token_to_id(token) for token in CONTROL_TOKENS + ORDINARY_TOKENS]
    assert ids == list(range(chat.vocab_size - len(ids), chat.vocab_size))
    added = chat.tokenizer.get_added_tokens_decoder()
    assert {added[i].content for i in ids if added[i].special} == set(CONTROL_TOKENS)
    assert 'chat_template' in json.loads((folder / 'tokenizer_config.json').read_text())
    assert len(chat.tokenizer.encode('2048').ids) == 4  # digits stand alone


def test_training_is_reproducible(folder, tmp_path):
    train_tokenizer(TEXTS, tmp_path, vocab_size=600)
    assert (tmp_path / 'tokenizer.json').read_bytes() == (folder / 'tokenizer.json').read_bytes()
    with pytest.raises(ValueError, match='leaves no merges'):
        train_tokenizer(TEXTS, tmp_path, vocab_size=200)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no policy directory'):
        ChatTokenizer(tmp_path, visual_tokens)


STOP = {'<|im_end|>', '<|endoftext|>', '</tool_call>'}
NEVER = {*CONTROL_TOKENS, *ORDINARY_TOKENS} - STOP - {'<tool_call>'}


@pytest.fixture(scope='module')
def later(folder, tmp_path_factory):
    """Of Qwen3's layout: the tags of thoughts and results are tokens too.

    Here those of a call are even special.
    """
    path = tmp_path_factory.mktemp('later') / 'tokenizer.json'
    content = json.loads((folder / 'tokenizer.json').read_text())
    for token in content['added_tokens']:
        token['special'] |= token['content'].endswith('tool_call>')
    like, first = content['added_tokens'][-1], content['added_tokens'][-1]['id'] + 1
    names = '<tool_response>', '</tool_response>', '<think>', '</think>', 'Montenegro'
    content['added_tokens'] += [
        like | {'id': first + i, 'content': name} for i, name in enumerate(names)
    ]
    path.write_text(json.dumps(content))
    return ChatTokenizer(path.parent, visual_tokens)


def test_control_tokens_are_suppressed_and_sampling_stops(chat, later):
    """All that the tokenizers of Qwen2.5 and Qwen3 have, but those that a turn is written with or
    ends with."""

    def names(chat, ids):
        return {chat.tokenizer.id_to_token(i) for i in ids}

    assert names(chat, chat.suppressed_ids) == NEVER and len(NEVER) == 18
    assert names(later, later.suppressed_ids) == NEVER | {'<tool_response>', '</tool_response>'}
    for each in (chat, later):
        assert names(each, each.stop_ids) == STOP and not set(each.stop_ids) & set(
            each.suppressed_ids
        )


def test_what_a_turn_may_hold_is_what_is_trained(chat, later):
    """A demonstration's tokens can all be sampled, whatever stands in its text."""
    hostile = ''.join(NEVER) + '<tool_response>a</tool_response>'
    for each in (chat, later):
        ids = each.assistant(f'<think>Montenegro{hostile}</think>\n<tool_call>\n{{}}\n</tool_call>')
        assert not set(ids) & set(each.suppressed_ids) and ids[-1] == each.tool_call_end
        assert each.tokenizer.token_to_id('<tool_call>') in ids
        assert each.turn_text(ids).endswith(f'{hostile}</think>\n<tool_call>\n{{}}\n</tool_call>')
    assert {
        later.tokenizer.token_to_id(name) for name in ('<think>', '</think>', 'Montenegro')
    } <= set(ids)


def test_a_turn_hides_nothing(chat, later):
    """A made-up dialogue within it, or an id of no token, is there to be read, and is no valid
    turn."""
    good = DEFAULT.render_action('Seen.', Answer('Chad'))
    for each in (chat, later):
        ids = each.assistant(good)
        assert each.turn_text(ids) == each.turn_text([*ids[:-1], each.end_of_text]) == good
        assert DEFAULT.parse(each.turn_text(ids), TOOLS).action == Answer('Chad')
        for foreign in (each.im_start, each.im_end, each.end_of_text, each.image_pad, 9999):
            text = each.turn_text([ids[0], foreign, *ids[1:]])
            assert (each.tokenizer.id_to_token(foreign) or '<|9999|>') in text
            assert DEFAULT.parse(text, TOOLS).action.kind == 'foreign_tag'
        made_up = each.observation(['1. Chad: Capital']) + ids
        assert DEFAULT.parse(each.turn_text(made_up), TOOLS).action.kind == 'foreign_tag'


words = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='<|>'), max_size=40)
parts = st.lists(words | st.sampled_from([PICTURE, CROP]), min_size=1, max_size=4)
thoughts = words.map(str.strip)
actions = st.builds(TextSearch, words) | st.just(ImageCrop((0.1, 0.2, 0.4, 0.5)))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    user=parts,
    turns=st.lists(st.tuples(thoughts, actions, parts), max_size=3),
    answer=thoughts.filter(bool),
)
def test_pieces_equal_the_template_of_the_whole(chat, reference, user, turns, answer):
    system = DEFAULT.system_prompt(TOOLS)
    ids = chat.prompt(system, user)
    messages = [{'role': 'system', 'content': system}, {'role': 'user', 'content': user}]
    assert ids == reference(messages, add_generation_prompt=True)
    for thought, action, seen in turns:
        text = DEFAULT.render_action(thought, action)
        sampled = chat.assistant(text)
        assert sampled[-1] == chat.tool_call_end and chat.decode(sampled) == unicodedata.normalize(
            'NFC', text
        )
        ids += sampled + chat.observation(seen, sampled[-1])
        messages += [{'role': 'assistant', 'content': text}, {'role': 'tool', 'content': seen}]
        assert ids == reference(messages, add_generation_prompt=True) == chat.render(messages, True)
    text = DEFAULT.render_action(answer, Answer(answer))
    ids += chat.assistant(text)
    messages.append({'role': 'assistant', 'content': text})
    newline = chat.tokenizer.encode('\n').ids
    assert ids + newline == reference(messages) == chat.render(messages)
    images = [part for m in messages for part in m['content'] if isinstance(part, ImageRef)]
    assert ids.count(chat.image_pad) == sum(
        visual_tokens(image.width, image.height) for image in images
    )


def test_a_turn_that_ended_itself_is_not_ended_twice(chat):
    after_end, after_cut = chat.observation(['a'], chat.im_end), chat.observation(['a'], 5)
    assert after_cut == [chat.im_end, *after_end] == chat.observation(['a'])


@pytest.mark.parametrize('token', CONTROL_TOKENS + ORDINARY_TOKENS)
def test_text_from_outside_never_becomes_a_special_token(chat, token):
    hostile = f'a{token}b{token[:-1]}{token}<{token}'
    for piece in (chat.prompt('s', [hostile]), chat.observation([hostile[:4], hostile[4:]])):
        plain = chat.prompt('s', ['x']) if piece[0] == chat.im_start else chat.observation(['x'])
        special = set(chat.tokenizer.get_added_tokens_decoder())
        assert [i for i in piece if i in special] == [i for i in plain if i in special]
        assert hostile in chat.tokenizer.decode(piece, skip_special_tokens=False)
    # A sampled-like text may hold ordinary vocabulary, never control tokens.
    ids = chat.assistant(f'a{token}')[:2]
    assert (chat.tokenizer.token_to_id(token) in ids) == (token in ('<tool_call>', '</tool_call>'))


def test_system_prompt_holds_the_real_tool_call_token(chat):
    assert chat.tool_call_end in chat.prompt(DEFAULT.system_prompt(TOOLS), ['q'])


def test_decode_drops_control_tokens_and_survives_broken_bytes(chat):
    text = DEFAULT.render_action('Zoom.', ImageCrop((0.1, 0.2, 0.4, 0.5)))
    assert chat.decode(chat.assistant(text)) == text
    assert chat.decode([*chat.assistant('<answer>é</answer>'), chat.im_end]) == '<answer>é</answer>'
    half = chat.tokenizer.encode('é').ids[:1]
    assert isinstance(chat.decode(half), str)


CALL = {'type': 'function', 'function': {'name': 'text_search', 'arguments': {'query': 'Chad é'}}}
SEARCH = {'type': 'function', 'function': {'name': 'text_search', 'parameters': {'type': 'object'}}}


@pytest.fixture(scope='module')
def template(folder):
    """Text that transformers makes of a conversation."""
    tokenizer = pytest.importorskip('transformers').AutoTokenizer.from_pretrained(str(folder))
    return lambda messages, **options: tokenizer.apply_chat_template(
        messages, tokenize=False, **options
    )


def test_results_of_tools_that_follow_each_other_are_one_user_turn(chat, template, reference):
    messages = [
        {'role': 'user', 'content': 'q'},
        {'role': 'assistant', 'content': 'two calls'},
        {'role': 'tool', 'content': '1. Chad'},
        {'role': 'tool', 'content': ['a>', PICTURE]},
        {'role': 'tool', 'content': 'c'},
        {'role': 'assistant', 'content': 'a'},
    ]
    assert chat.render(messages) == reference(messages)
    text = template([{**m, 'content': 'x'} for m in messages])
    each = '\n<tool_response>\nx\n</tool_response>'
    assert text.count('<|im_start|>user') == 2 and f'<|im_start|>user{each * 3}<|im_end|>\n' in text


def test_calls_are_rendered_as_they_are_sampled(template):
    call = DEFAULT.render_action('I look it up.', TextSearch('Chad é'))
    thought = call.partition('\n<tool_call>')[0]
    assert template([{'role': 'assistant', 'content': thought, 'tool_calls': [CALL]}]) == template(
        [{'role': 'assistant', 'content': call}]
    )
    as_text = {'function': {'name': 'text_search', 'arguments': '{"query": "Chad é"}'}}
    for content in (None, ''):
        two = template([{'role': 'assistant', 'content': content, 'tool_calls': [CALL, as_text]}])
        body = (
            '<tool_call>\n{"name": "text_search", "arguments": {"query": "Chad é"}}\n</tool_call>'
        )
        assert two == f'<|im_start|>assistant\n{body}\n{body}<|im_end|>\n'


def test_tools_are_listed_in_the_system_turn(template):
    user = {'role': 'user', 'content': 'q'}
    listed = '# Tools\n\nYou may call one or more functions to assist with the user query.'
    for system in ([], [{'role': 'system', 'content': 'Be brief.'}]):
        text = template([*system, user], tools=[SEARCH])
        head, _, rest = text.partition(listed)
        assert head == '<|im_start|>system\n' + ('Be brief.\n\n' if system else '')
        assert (
            f'<tools>\n{json.dumps(SEARCH)}\n</tools>' in rest
            and text.count('<|im_start|>system') == 1
        )
        assert rest.endswith('</tool_call><|im_end|>\n<|im_start|>user\nq<|im_end|>\n')


def test_every_way_of_writing_an_image_is_an_image(template):
    vision = '<|vision_start|><|image_pad|><|vision_end|>'
    for part in (
        {'type': 'image'},
        {'type': 'image', 'url': 'a.png'},
        {'image': 'a.png'},
        {'image_url': {'url': 'a'}},
        {'type': 'image_url', 'image_url': {'url': 'data:,'}},
    ):
        assert vision in template(
            [{'role': 'user', 'content': [part, {'type': 'text', 'text': 'q'}]}]
        )


@pytest.mark.parametrize(
    'message',
    [
        {'role': 'user', 'content': [{'type': 'video', 'video': 'a.mp4'}]},
        {'role': 'user', 'content': [{'type': 'audio', 'text': 'a'}]},
        {'role': 'user', 'content': ['q']},
        {'role': 'user', 'content': 'q', 'tool_calls': [CALL]},
        {'role': 'critic', 'content': 'a'},
    ],
)
def test_what_the_template_cannot_render_it_refuses(chat, template, message):
    jinja2 = pytest.importorskip('jinja2')
    with pytest.raises(jinja2.TemplateError):
        template([message])
    if message['content'] != ['q']:  # a part of ours is a text or an image reference
        with pytest.raises(ValueError):
            chat.render([message])


def test_unknown_roles_are_refused(chat):
    with pytest.raises(ValueError, match='role'):
        chat.render([{'role': 'critic', 'content': 'a'}])


def test_tokenise_fills_an_expert_trajectory(chat):
    question = Question(
        'q', 'Which capital?', ('a.png',), ('Paris',), category='search', difficulty='1'
    )
    seen = Observation(('Image 2:', CROP), True, 'image_crop', (CROP,))
    texts = [
        DEFAULT.render_action('t', ImageCrop((0.1, 0.2, 0.4, 0.5))),
        DEFAULT.render_action('t', Answer('Paris')),
    ]
    turns = [Turn([], [], texts[0], None, seen, []), Turn([], [], texts[1], None, None, [])]
    whole = Trajectory(question, 0, 0, turns, SampleState.OK, [], [PICTURE, CROP], {}, 'Paris')
    tokenise(whole, chat, 'sys', [PICTURE, question.text])
    ids = whole.prompt_tokens + [
        i for turn in whole.turns for i in turn.tokens + turn.observation_tokens
    ]
    messages = [
        {'role': 'system', 'content': 'sys'},
        {'role': 'user', 'content': [PICTURE, question.text]},
        {'role': 'assistant', 'content': texts[0]},
        {'role': 'tool', 'content': ['Image 2:', CROP]},
        {'role': 'assistant', 'content': texts[1]},
    ]
    assert chat.render(messages)[:-1] == ids
    assert (
        whole.turns[0].tokens[-1] == chat.tool_call_end and whole.turns[1].tokens[-1] == chat.im_end
    )
