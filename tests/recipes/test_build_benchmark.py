"""A benchmark of one's own: difficulty by samples of a policy, and what is written of it."""

import json
import runpy
from pathlib import Path

import pytest
from scripted_tools import DOWN, ScriptedTools, noise_file

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.protocol import ParsedTurn
from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.config.checks import check
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes import build_benchmark
from sensesearch_jax.recipes.session import Session, load_policy_directory
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.runtime.workdir import Workdir

CONFIG = Path(__file__).parents[2] / 'configs' / 'build_benchmark.py'


@pytest.fixture
def config(policy_folder, tmp_path):
    """Four items, of which the last has its answer in the question."""
    config = runpy.run_path(str(CONFIG))['get_config']()
    config.policy = str(policy_folder)
    config.benchmark.update(min_width=320, min_height=180, samples=2)
    config.rollout.update(
        groups=3, engines=1, chunk=4, extend_lanes=2, prompt_capacity=384, suffix_capacity=64
    )
    config.agent.update(turn_tokens=4, max_turns=2)
    items = [
        {
            'id': f'q{i}',
            'image': noise_file(tmp_path / f'{i}.png', 320, 180, i),
            'box': [100, 60, 140, 80],
            'question': f'What is {i}?',
            'answer': f'{3 * (i == 3) or "it"}',
            'category': 'sports' if i else 'games',
        }
        for i in range(4)
    ]
    config.benchmark.data = str(tmp_path / 'items.jsonl')
    Path(config.benchmark.data).write_text('\n'.join(map(json.dumps, items)))
    return config


@pytest.fixture
def asked(config, tmp_path, monkeypatch):
    """Samples answers to three questions with given tools, in one workdir."""
    # Each turn is an answer, which the judge finds right where the question says so.
    monkeypatch.setattr(Environment, 'parse', lambda *_: ParsedTurn('thought', Answer('it')))
    mesh = make_mesh(config.mesh)
    loaded = load_policy_directory(config.policy, config, mesh, 'float32')
    questions = [
        Question(f'q{i}', f'What is {i}?', (str(tmp_path / f'{i}.png'),), (answer,))
        for i, answer in enumerate(('it', 'nothing of the kind', 'it'))
    ]

    def asked(tools, change=()):
        found = [dict(change).get(q.id, q) for q in questions]
        with (
            Workdir.open(tmp_path / 'run', config) as workdir,
            MetricWriter(workdir / 'metrics.jsonl') as metrics,
        ):
            (workdir / 'benchmark').mkdir(exist_ok=True)
            session = Session(config, workdir, tools, metrics, mesh)
            features = session.features(loaded)
            return build_benchmark.difficulties(session, loaded, features, found)

    return asked


def test_difficulty_is_how_often_the_policy_is_right(asked):
    tools = ScriptedTools()
    assert asked(tools) == {'q0': 2, 'q1': 0, 'q2': 2}
    tools.calls.clear()
    assert asked(tools) == {'q0': 2, 'q1': 0, 'q2': 2} and not tools.calls
    changed = {'q1': Question('q1', 'What is 1?', (), ('it',))}
    assert asked(tools, changed) == {'q0': 2, 'q1': 2, 'q2': 2}


def test_what_failed_is_not_known_and_asked_again(asked):
    tools = ScriptedTools(fails=lambda *call: DOWN if call == ('upload', '1.png') else None)
    assert asked(tools) == {'q0': 2, 'q2': 2}
    tools.fails = lambda *call: None
    assert asked(tools) == {'q0': 2, 'q1': 0, 'q2': 2}


def test_a_prompt_that_is_too_long_leaves_its_item_without_difficulty(asked):
    long = {'q1': Question('q1', 'What is it? ' * 200, (), ('it',))}
    found = asked(ScriptedTools(), long)
    assert found == {'q0': 2, 'q1': None, 'q2': 2}
    assert build_benchmark.rated(long['q1'], found['q1'], 2).difficulty == ''


def test_hard_is_never_right():
    question = Question('q', 'What?', truth={'box': [0, 0, 1, 1]})
    rated = [build_benchmark.rated(question, right, 8) for right in (0, 1, 8)]
    assert [q.difficulty for q in rated] == ['hard', 'easy', 'easy']
    assert rated[1].truth == {'box': [0, 0, 1, 1], 'right': 1, 'samples': 8}


def test_items_are_checked_and_counted_without_a_policy(config, tmp_path, capsys):
    config.benchmark.samples = 0
    check(config)
    with Workdir.open(tmp_path / 'run', config) as workdir:
        build_benchmark.run(config, workdir)
    folder = tmp_path / 'run' / 'benchmark'
    candidates = [json.loads(line) for line in (folder / 'candidates.jsonl').open()]
    assert [c['id'] for c in candidates] == ['q0', 'q1', 'q2']
    assert candidates[0]['truth'] == {'box': [0.3125, 1 / 3, 0.4375, 4 / 9]}
    (fault,) = [json.loads(line) for line in (folder / 'faults.jsonl').open()]
    assert fault == {'id': 'q3', 'faults': {'answer in question': "'3' stands in the question"}}
    summary = json.loads((folder / 'summary.json').read_text())
    assert (summary['items'], summary['sound']) == (4, 3)
    assert summary['category']['sports'] == {'items': 2, 'share': 0.6667}
    said = capsys.readouterr().out
    assert '3 of 4 items are sound' in said and 'sports 66.7%, games 33.3%' in said
    assert f'sensesearch_jax.data.review {folder / "candidates.jsonl"}' in said


def test_no_sound_item_is_said(config, tmp_path):
    config.benchmark.update(samples=0, min_width=4000)
    with Workdir.open(tmp_path / 'run', config) as workdir:
        with pytest.raises(UserError, match=r'No item is sound; .*faults\.jsonl says why'):
            build_benchmark.run(config, workdir)


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'data': 'absent.jsonl'}, "benchmark.data 'absent.jsonl' is no file"),
        ({'samples': -1}, 'benchmark.samples is -1'),
        ({'max_area': 0.0}, 'benchmark.max_area is 0.0'),
        ({'max_likeness': 1.5}, 'benchmark.max_likeness is 1.5'),
        ({'min_width': 0}, 'benchmark.min_width is 0'),
    ],
)
def test_a_config_without_sense_is_refused(config, fields, words):
    config.benchmark.update(fields)
    with pytest.raises(UserError, match=words):
        check(config)


def test_the_7b_variant_has_the_same_fields():
    get_config = runpy.run_path(str(CONFIG))['get_config']
    assert set(get_config('7b').benchmark.keys()) == set(get_config().benchmark.keys())
    with pytest.raises(UserError, match="choose 'pocket' or '7b'"):
        get_config('8b')
