"""The chat format of PyTorch trainers: both ways equal, in every style, and records of others."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_tools import noise_file

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.chat_template import ChatTokenizer, tokenise
from sensesearch_jax.agent.protocol import DEFAULT, PROTOCOLS, RELEASED, TOOLS, tool_of
from sensesearch_jax.agent.trajectory import (
    ImageRef,
    Observation,
    Question,
    SampleState,
    Trajectory,
    Turn,
)
from sensesearch_jax.data.chat_files import export, import_
from sensesearch_jax.data.chat_format import STYLES, BadChat, from_chat, to_chat
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.recipes.checkpoint_policy import POCKET_POLICY
from sensesearch_jax.recipes.session import read_trajectories
from tools_server.pictures.folder import PictureFolder

ROOT = Path(__file__).parents[2]
WORDS = st.text(
    st.characters(codec='utf-8', exclude_categories=('Cs',)), min_size=1, max_size=12
) | st.sampled_from(
    ['<image>', '<\u2060video>', 'ünïcode 中文 🙂', 'a\u2028b', '<tool_call>', '"\\']
)
# content decides the size
REFS = st.builds(ImageRef, st.integers(0, 30).map('{:064x}'.format), st.just(80), st.just(60))
ACTIONS = st.one_of(
    WORDS.map(TextSearch),
    st.integers(1, 3).map(ImageSearch),
    st.builds(ImageCrop, st.just((0.125, 0.25, 0.5, 0.75)), st.integers(1, 3)),
)


@st.composite
def turns(draw, protocol):
    """A turn with a call, its text as the protocol or a careless model writes it, and a result."""
    action, thought = draw(ACTIONS), draw(WORDS)
    try:
        text = protocol.render_action(thought, action)
        action = protocol.parse(text, TOOLS).action
    except ValueError:
        text = thought
        action = protocol.parse(text, TOOLS).action
    if isinstance(action, FormatError | Answer):
        action = FormatError('no_action', 'No action.')
        return Turn([], [], text, action, Observation(('No action.',), False, 'format_error'), [])
    if draw(st.booleans()):
        told = Observation((draw(WORDS),), False, 'tool_error', infra_failed=draw(st.booleans()))
        return Turn([], [], text, action, told, [])
    parts = draw(st.lists(WORDS | REFS, min_size=1, max_size=4))
    new = (
        tuple(p for p in parts if isinstance(p, ImageRef))[:1]
        if tool_of(action) == 'image_crop'
        else ()
    )
    seen = Observation(tuple(parts), True, tool_of(action), new, 0.5)
    return Turn([], [], text, action, seen, [])


@st.composite
def trajectories(draw, protocol):
    made = draw(st.lists(turns(protocol), max_size=4))
    answer = draw(st.none() | st.sampled_from(['it', 'Zürich', '中']))
    if answer:
        made.append(
            Turn([], [], protocol.render_action('so', Answer(answer)), Answer(answer), None, [])
        )
    question = Question(
        draw(WORDS), draw(WORDS), tuple(draw(st.lists(st.just('x.png'), max_size=3))), ('it',),
        choices=draw(st.sampled_from([(), ('it', 'that')])), truth={'box': [0, 0, 1, 1], 'n': 1},
    )  # fmt: skip
    own = [draw(REFS) for _ in question.images]
    shown = [
        p for t in made if t.observation for p in t.observation.parts if isinstance(p, ImageRef)
    ]
    if draw(st.booleans()):  # as a rollout leaves it
        for turn in made:
            turn.tokens, turn.log_probs, turn.observation_tokens = [5, 6], [-0.5, -1.0], [7]
    state = draw(st.sampled_from(list(SampleState)))
    reward = {'total': 1.5, 'accuracy': 1.0}
    cut = draw(st.integers(0, len(shown)))
    prompt = [1, 2] if any(t.log_probs for t in made) else []
    return Trajectory(
        question,
        1,
        7,
        made,
        state,
        prompt,
        own + shown[:cut],
        reward,
        answer,
        draw(st.just('') | WORDS),
    )


def picture(name):
    return ImageRef(name, 80, 60)


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('protocol', [DEFAULT, RELEASED], ids=lambda p: p.name)
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_both_ways_are_equal(style, protocol, data):
    whole = data.draw(trajectories(protocol))
    record = to_chat(whole, protocol, TOOLS, lambda ref: ref.sha256, style)
    record = json.loads(json.dumps(record))
    back, system, user = from_chat(record, picture, None, None, 'id')
    assert back == whole and system == protocol.system_prompt(TOOLS)
    assert user == protocol.user_parts(whole.question, whole.own_images)
    again = to_chat(back, PROTOCOLS[protocol.name], TOOLS, lambda ref: ref.sha256, style)
    assert again == record
    written = ''.join(m['content'] for m in record['messages'])
    assert written.count('<image>') == len(record['images'])
    assert all(isinstance(m['content'], str) for m in record['messages'])


CALL = '<think>look</think>\n<tool_call>\n{"name": "text_search", "arguments": {"query": "a"}}\n</tool_call>'


def test_the_openai_style_has_calls_as_objects():
    seen = Observation(('1. it',), True, 'text_search')
    last = Turn([], [], '<think>so</think>\n<answer>it</answer>', Answer('it'), None, [])
    whole = Trajectory(
        Question('q', 'What?', ('x',), ('it',)), 0, 0, [Turn([], [], CALL, TextSearch('a'), seen, []), last],
        SampleState.OK, [], [ImageRef('s', 80, 60)], {}, 'it',
    )  # fmt: skip
    record = to_chat(whole, DEFAULT, TOOLS, lambda ref: 'a.png', 'openai')
    assistant = record['messages'][2]
    assert assistant['content'] == '<think>look</think>'
    assert assistant['tool_calls'][0]['function'] == {
        'name': 'text_search',
        'arguments': '{"query": "a"}',
    }
    assert [tool['function']['name'] for tool in json.loads(record['tools'])] == list(TOOLS)
    assert [m['role'] for m in record['messages']] == [
        'system',
        'user',
        'assistant',
        'tool',
        'assistant',
    ]
    plain = to_chat(whole, DEFAULT, TOOLS, lambda ref: 'a.png', 'messages')
    assert plain['messages'][2]['content'] == CALL and 'tools' not in plain


FOREIGN = {
    'conversations': [
        {'from': 'human', 'value': '<image>What is it?'},
        {'from': 'gpt', 'value': '<think>near</think>\n<tool_call>\n{"name": "image_crop", "arguments": '
                                 '{"bbox": [0.1, 0.1, 0.5, 0.5]}}\n</tool_call>'},
        {'from': 'observation', 'value': 'Image 2:<image>'},
        {'from': 'gpt', 'value': '<think>so</think>\n<answer>it</answer>'},
    ],
    'system': 'Be brief.',
    'images': ['a', 'b'],
}  # fmt: skip


def test_a_record_of_others_is_read():
    whole, system, user = from_chat(FOREIGN, picture, DEFAULT, TOOLS, 'mine-1')
    assert whole.question.id == 'mine-1' and whole.question.text == 'What is it?'
    assert whole.question.images == ('sha256:a',) and whole.question.answers == ('it',)
    assert [type(t.action) for t in whole.turns] == [ImageCrop, Answer] and system == 'Be brief.'
    assert whole.turns[0].observation.new_images == (picture('b'),) and whole.answer == 'it'
    assert whole.images == [picture('a'), picture('b')] and whole.state is SampleState.OK
    assert user == [picture('a'), 'What is it?']


def changed(**changes):
    return {**FOREIGN, **changes}


@pytest.mark.parametrize(
    'record, reason',
    [
        (changed(images=['a']), 'more <image> than images'),
        (changed(images=['a', 'b', 'c']), 'names more images'),
        (changed(conversations=[{'from': 'human', 'value': '<video>What is it?'}]), 'it has <video>; only images'),
        (changed(conversations=[]), 'no messages'),
        (changed(conversations=FOREIGN['conversations'][1:]), 'does not begin with a message of the user'),
        (changed(conversations=FOREIGN['conversations'][:1] * 2), 'take turns'),
        (changed(conversations=[{'role': 'user', 'content': [1]}]), 'is no text'),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused(record, reason):
    with pytest.raises(BadChat, match=reason):
        from_chat(record, picture, DEFAULT, TOOLS, 'id')
    with pytest.raises(BadChat, match='give --protocol and --tools'):
        from_chat(FOREIGN, picture, None, None, 'id')


@pytest.fixture
def kept(tmp_path):
    """A run's folder with one trajectory, its tokens and its images."""
    run, refs = tmp_path / 'run', []
    stored = PictureFolder(run / 'tools' / 'images', 1 << 30, 0.0)
    for seed in range(2):
        data = Path(noise_file(tmp_path / f'{seed}.png', 80, 60, seed)).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        stored.write(sha256, data, {'width': 80, 'height': 60})
        refs.append(ImageRef(sha256, 80, 60))
    crop = ImageCrop((0.1, 0.1, 0.5, 0.5))
    seen = Observation(('Image 2:', refs[1]), True, 'image_crop', (refs[1],), 0.1)
    made = [
        Turn([], [], DEFAULT.render_action('A look.', crop), crop, seen, []),
        Turn(
            [], [], DEFAULT.render_action('Zürich.', Answer('Zürich')), Answer('Zürich'), None, []
        ),
    ]
    whole = Trajectory(
        Question('q', 'Wo?', ('x.png',), ('Zürich',)), 0, 0, made, SampleState.OK, [], refs, {}, 'Zürich'
    )  # fmt: skip
    tokenise(whole, tokenizer(), DEFAULT.system_prompt(TOOLS), [refs[0], 'Wo?'])
    (run / 'cold_start').mkdir()
    (run / 'cold_start' / 'kept.jsonl').write_text(json.dumps(whole.to_json()) + '\n')
    agent = {'agent': {'protocol': 'default', 'tools': list(TOOLS)}, 'tools': {'folder': ''}}
    (run / 'config.json').write_text(json.dumps(agent))
    return run / 'cold_start' / 'kept.jsonl', whole


def tokenizer():
    return ChatTokenizer(POCKET_POLICY, Preprocessor.read(POCKET_POLICY).merged_tokens)


def test_files_with_images_and_tokens_come_back_equal(kept, tmp_path):
    path, whole = kept
    chat, pictures = tmp_path / 'chat', tmp_path / 'pictures'
    assert export(path, chat, path.parents[1] / 'tools', DEFAULT, TOOLS, 'messages') == 1
    info = json.loads((chat / 'dataset_info.json').read_text())['chat']
    record = json.loads((chat / info['file_name']).read_text())
    assert all((chat / name).is_file() for name in record[info['columns']['images']])
    assert {m[info['tags']['role_tag']] for m in record['messages']} == {
        'system',
        'user',
        'assistant',
        'tool',
    }
    assert (
        import_(chat / 'train.jsonl', tmp_path / 'back.jsonl', pictures, tokenizer(), None, None)
        == 1
    )
    assert read_trajectories(tmp_path / 'back.jsonl') == [whole]
    stored = PictureFolder(pictures / 'images', 1 << 30, 0.0)
    assert all(stored.record(ref.sha256) == {'width': 80, 'height': 60} for ref in whole.images)


def test_the_command_line(kept, tmp_path):
    path, whole = kept

    def run(*arguments):
        command = [sys.executable, '-m', 'sensesearch_jax.data.chat_format', *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert run('export', path, tmp_path / 'chat', '--style=openai').returncode == 0
    back = run(
        'import', tmp_path / 'chat' / 'train.jsonl', tmp_path / 'back.jsonl',
        '--pictures', tmp_path / 'pictures', '--policy', POCKET_POLICY,
    )  # fmt: skip
    assert back.returncode == 0 and '--config.sft.data=' in back.stdout, back.stderr
    assert read_trajectories(tmp_path / 'back.jsonl') == [whole]
    alone = tmp_path / 'alone.jsonl'
    alone.write_bytes(path.read_bytes())
    assert 'give --protocol, --tools and --pictures' in run('export', alone, tmp_path / 'c').stderr
