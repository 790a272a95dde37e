"""The figures of a sweep from hand-made runs: accuracy and differences over seeds, curves, tables, page."""

import json
import re

import pytest
from evaluated import answered, found, question

from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.sweep.page import write_sweep_page
from sensesearch_jax.sweep.results import Evidence, read_sweep, summarise_sweep
from sensesearch_jax.sweep.tables import as_markdown, difference_rows, printed, training_rows

CATEGORIES = 'search', 'perception'


def evaluated(right, source='pocket'):
    """Of ten questions, the first `right` answered right; five of each category."""
    return [
        answered(question(i, source, category=CATEGORIES[i % 2]), 'Paris' if i < right else 'Rome', turns=[found()])
        for i in range(10)
    ]  # fmt: skip


def metrics(reward, steps=6, **more):
    return [
        {'stage': 'rl', 'step': s, 'values': {'reward': reward + s, 'entropy': 1.0, **more}}
        for s in range(1, steps + 1)
    ]


WATCHED = [{'stage': 'evaluate policy', 'step': s, 'values': {'accuracy': 0.5}} for s in (1, 2)]


def evidence(setting, seed, right, reward=0.0):
    return Evidence(setting, seed, evaluated(right), metrics(reward) + WATCHED, [])


@pytest.fixture
def two_settings():
    """GSPO right 4, 6 and 8 times of ten over three seeds, BN-GSPO one more each; and the start."""
    return [
        Evidence('start', 0, evaluated(3), [], []),
        *(evidence('GSPO', seed, 4 + 2 * seed, seed) for seed in range(3)),
        *(evidence('BN-GSPO', seed, 5 + 2 * seed, seed) for seed in range(3)),
    ]


def test_accuracy_is_over_seeds_and_categories(two_settings):
    settings = summarise_sweep(two_settings, ['x-0'])['settings']
    assert list(settings) == ['start', 'GSPO', 'BN-GSPO'] and settings['GSPO']['seeds'] == [0, 1, 2]
    overall = settings['GSPO']['accuracy']['overall']
    assert overall['mean'] == pytest.approx(0.6) and overall['questions'] == 10
    assert overall['by_seed'] == {'0': 0.4, '1': 0.6, '2': 0.8}
    assert 0.2 < overall['low'] < 0.45 and 0.75 < overall['high'] < 1
    assert list(settings['GSPO']['accuracy']) == ['overall', 'search', 'perception']
    assert settings['start']['accuracy']['perception']['mean'] == pytest.approx(0.2)
    assert settings['GSPO']['conduct']['tool_calls/text_search'] == 1


def test_differences_pair_seeds_and_questions_and_a_single_run_meets_each_seed(two_settings):
    found = summarise_sweep(two_settings, [])['differences']
    pairs = {(d['a'], d['b']): d for d in found if d['category'] == 'overall'}
    assert list(pairs) == [('GSPO', 'start'), ('BN-GSPO', 'start'), ('BN-GSPO', 'GSPO')]
    assert pairs['BN-GSPO', 'GSPO']['mean'] == pytest.approx(0.1)
    assert pairs['BN-GSPO', 'GSPO']['seeds'] == 3 and pairs['GSPO', 'start']['seeds'] == 3
    assert pairs['GSPO', 'start']['mean'] == pytest.approx(0.3)
    # Every seed gains exactly one of ten questions, each another one: 0 to 3 of 30 in a resample.
    assert 0 <= pairs['BN-GSPO', 'GSPO']['low'] <= 0.1 <= pairs['BN-GSPO', 'GSPO']['high'] <= 0.3


def test_settings_without_a_common_seed_have_no_difference():
    found = [evidence('A', s, 4) for s in (0, 1)] + [evidence('B', s, 5) for s in (2, 3)]
    assert summarise_sweep(found, [])['differences'] == []


def test_training_is_the_later_steps_and_curves_have_bands(two_settings):
    summary = summarise_sweep(two_settings, [])
    reward = summary['settings']['GSPO']['training']['rl']['reward']
    assert reward == {'mean': 6.5, 'low': 5.5, 'high': 7.5}  # steps 5 and 6 of 6, of seeds 0 to 2
    curve = summary['curves']['rl']['reward']['GSPO']
    assert curve['steps'] == [1, 2, 3, 4, 5, 6] and curve['mean'][0] == 2
    assert (curve['low'][0], curve['high'][0]) == (1, 3)
    assert list(summary['curves']) == list(summary['settings']['GSPO']['training']) == ['rl']
    assert training_rows(summary, 'rl')[1][:2] == ['GSPO', '6.5 (5.5–7.5)']


def test_tables_and_page_have_every_setting(two_settings, tmp_path):
    summary = summarise_sweep(two_settings, ['GRPO-4'])
    assert len(json.dumps(summary)) < 20_000
    rows = difference_rows(summary)
    assert rows[1][0] == 'GSPO − start' and rows[1][1].startswith('+30.00 [')
    text = as_markdown('Algorithms', 'python -m x', summary)
    assert '## Paired differences' in text and '| BN-GSPO | 70.00 [' in text
    assert 'GSPO − start' in printed(summary)
    pair = {
        s: [t for e in two_settings if e.setting == s for t in e.trajectories]
        for s in ('start', 'GSPO')
    }
    write_sweep_page(
        tmp_path / 'sweep.html', 'Algorithms', summary, pair, lambda sha256: None, DEFAULT, 'python -m x'
    )  # fmt: skip
    page = (tmp_path / 'sweep.html').read_text()
    assert 'GRPO-4' in page and page.count('class="band') == 2 and 'Gradient norm' not in page
    assert len(re.findall('class="whisker', page)) > 10


def test_runs_that_are_not_over_are_named_and_left_out(tmp_path):
    planned = {'a-0': {'setting': 'a', 'seed': 0, 'tasks': ['rl', 'evaluate']}}
    (tmp_path / 'sweep.json').write_text(json.dumps(planned))
    evaluation = tmp_path / 'runs' / 'a-0' / 'evaluate' / 'evaluation'
    evaluation.mkdir(parents=True)
    (evaluation / 'policy.jsonl').write_text(
        ''.join(json.dumps(t.to_json()) + '\n' for t in evaluated(4))
    )
    assert read_sweep(tmp_path) == ([], ['a-0'])
    for task in ('rl', 'evaluate'):
        (tmp_path / 'runs' / 'a-0' / task / 'stages').mkdir(parents=True)
        (tmp_path / 'runs' / 'a-0' / task / 'stages' / 'run.json').write_text('{}')
    (run,), left = read_sweep(tmp_path)
    assert (run.setting, run.seed, len(run.trajectories), left) == ('a', 0, 10, [])
