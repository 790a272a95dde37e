"""Every field of every config has a reader in its task: none is accepted and then ignored.

So has every chart a writer.
"""

import contextlib
import json
import re
import runpy
from pathlib import Path

import pytest
import toy_runs
from ml_collections import ConfigDict
from PIL import Image
from toy_policy import by_chance

from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.tool_client import ToolClient
from sensesearch_jax.cold_start import spending
from sensesearch_jax.config import checks
from sensesearch_jax.errors import UserError
from sensesearch_jax.evaluation.curves import CHARTS
from sensesearch_jax.pocket import pretraining
from sensesearch_jax.pocket import run as pocket
from sensesearch_jax.recipes import (
    ask,
    ask_page,
    build_benchmark,
    cold_start,
    evaluate,
    evaluated_agents,
    rl,
    sft,
)
from sensesearch_jax.recipes.session import Session
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training.flops import PEAK_FLOPS

CONFIGS = Path(__file__).parents[2] / 'configs'
TASKS = {
    'ask': ask,
    'build_benchmark': build_benchmark,
    'cold_start': cold_start,
    'evaluate': evaluate,
    'pocket': pocket,
    'rl': rl,
    'sft': sft,
}
BY_MAIN = {
    'task',
    'multi_host',
    'meet_timeout_s',
    'peer_timeout_s',
    'scratch',
    'compilation_cache',
}  # which starts the task
SHORT = {
    'agent.turn_tokens': 4, 'agent.max_turns': 2, 'agent.passage_chars': 120, 'rollout.groups': 2, 'rollout.chunk': 4,
    'rollout.prompt_capacity': 384, 'rollout.suffix_capacity': 384, 'rollout.engines': 1, 'rollout.warm_up': False,
    'rollout.extend_lanes': 2, 'tools.config': toy_runs.TOOLS,
    'data.train': toy_runs.pocket('train', search=1, perception=1), 'mine.samples': 2, 'mine.answer_tokens': 4,
    'data.rl': toy_runs.pocket('validation', search=1, perception=1, search_only=1),
    'rl.steps': 1, 'rl.questions_per_step': 4,
    'rl.members': 2, 'rl.micro_batch': 1, 'rl.threads': 1, 'rl.kl_coefficient': 0.1,
    'data.eval': toy_runs.pocket('test', perception=2), 'evaluate.lanes': 2,
    'sft.epochs': 1, 'sft.batch': 2, 'sft.micro_batch': 1, 'sft.threads': 1,
    'sft.validate_every': 1000, 'rl.validate_every': 1000, 'validation.lanes': 2, 'validation.samples': 2,
    'data.validation': toy_runs.pocket('validation', perception=2),
}  # fmt: skip


class Recorded:
    """A config that notes the names of the fields that are read."""

    def __init__(self, config, read, prefix=''):
        self._config, self._read, self._prefix = config, read, prefix

    def __getitem__(self, name):
        value, path = self._config[name], f'{self._prefix}{name}'
        if isinstance(value, ConfigDict):
            return Recorded(value, self._read, f'{path}.')
        self._read.add(path)
        return value

    def __getattr__(self, name):
        return self[name]

    def __contains__(self, name):
        return name in self._config

    def __len__(self):
        return len(self._config)

    def __iter__(self):
        return iter(self._config)

    def keys(self):
        return self._config.keys()

    def items(self):
        return [(name, self[name]) for name in self.keys()]

    def get(self, name, default=None):
        return self[name] if name in self else default

    def to_dict(self):
        if self._prefix:  # the whole config as a dictionary is only written down
            self._read.update(f'{self._prefix}{name}' for name in leaves(self._config))
        return self._config.to_dict()


def config_of(name):
    return runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config']()


def leaves(config):
    """Dotted names of all fields."""
    found = set()
    for name, value in config.items():
        found |= (
            {f'{name}.{inner}' for inner in leaves(value)}
            if isinstance(value, ConfigDict)
            else {name}
        )
    return found


def benchmark_items(folder):
    """The file of two items, each with a picture of its own."""
    lines = []
    for name, colour in (('a', 'green'), ('b', 'red')):
        picture = Image.new('RGB', (80, 60), colour)
        picture.paste('white', (0, 0, 30, 20) if name == 'a' else (50, 30, 80, 60))
        picture.save(folder / f'{name}.png')
        item = {'id': name, 'image': f'{name}.png', 'box': [9, 9, 19, 19], 'answer': 'it'}
        lines.append(json.dumps(item | {'question': 'What?'}))
    (folder / 'items.jsonl').write_text('\n'.join(lines))
    return str(folder / 'items.jsonl')


def documented_metrics():
    """A pattern of the names in the tables of docs/metrics.md, where capitals stand for any text."""
    text = (CONFIGS.parent / 'docs' / 'metrics.md').read_text()
    cells = re.findall(r'(?m)^\| (`[^|]*`) \|', text)
    names = [name for cell in cells for name in re.findall('`([^`]+)`', cell)]
    return '|'.join(re.sub('[A-Z]+', '.+', re.escape(name)) for name in names)


@pytest.fixture(scope='module')
def demonstrations(policy_folder, tmp_path_factory):
    """The folder of a cold start, of which every trajectory is kept."""
    return tmp_path_factory.mktemp('cold_start')


@pytest.mark.parametrize(
    'name', ['pocket', 'sft', 'cold_start', 'rl', 'evaluate', 'ask', 'build_benchmark']
)
def test_every_field_is_read(name, policy_folder, tmp_path, monkeypatch, demonstrations):
    monkeypatch.setattr(Environment, 'parse', by_chance)
    monkeypatch.setitem(PEAK_FLOPS, 'cpu', 1e12)  # so that the utilization is written here too
    config, read = config_of(name), set()
    config.policy = str(policy_folder)
    for field, value in SHORT.items():
        part, _, last = field.rpartition('.')
        if part in config and last in config[part]:
            config[part][last] = value
    Image.new('RGB', (80, 60), 'green').save(tmp_path / 'picture.png')
    record = {'id': 'a', 'question': 'What?', 'image': 'picture.png', 'answer': 'it'}
    (tmp_path / 'mine.jsonl').write_text(json.dumps(record) + '\n')
    for stage in set(config.get('data', {})) & {'train', 'rl', 'validation', 'eval'}:
        config.data[stage] = [*config.data[stage], {'path': str(tmp_path / 'mine.jsonl')}]
    if name == 'ask':
        config.image, config.question = str(tmp_path / 'picture.png'), 'What colour is it?'
    if name == 'build_benchmark':
        config.benchmark.data = benchmark_items(tmp_path)
        config.benchmark.update(min_width=80, min_height=60, samples=2)
    if name == 'sft':
        config.sft.data = str(demonstrations / 'run' / 'cold_start' / 'kept.jsonl')
        config.tools.folder = str(demonstrations / 'run' / 'tools')
    folder = demonstrations if name == 'pocket' else tmp_path
    checks.check(config)
    with Workdir.open(folder / 'run', config) as workdir:
        TASKS[name].run(Recorded(config, read), workdir)
    if name in ('rl', 'sft', 'pocket'):
        report = (folder / 'run' / 'report.html').read_text()
        assert 'id="curves"' in report and 'id="trajectories"' in report
    if name == 'pocket':
        records = read_metrics(folder / 'run' / 'metrics.jsonl')
        written = {
            stage: {name for r in records if r['stage'].split()[0] == stage for name in r['values']}
            for stage in CHARTS
        }
        trained = [
            r['values'] for r in records if r['stage'] in ('sft', 'rl') and 'step_s' in r['values']
        ]
        assert all(values['mfu'] > 0 for values in trained if values.get('trained_share', 1))
        drawn = {
            stage: {metric for chart in charts for metric in chart.metrics}
            for stage, charts in CHARTS.items()
        }
        assert {stage: drawn[stage] - written[stage] for stage in CHARTS} == {
            stage: set() for stage in CHARTS
        }
        described = documented_metrics()
        assert not [
            metric
            for names in written.values()
            for metric in names
            if not re.fullmatch(described, metric)
        ]
    if name in ('cold_start', 'pocket'):  # the other expert
        recorded = Recorded(config, read)
        for stage in ('mine', 'expert', 'validate'):
            config[stage].update(kind='openai', url='http://localhost:1', model='any')
        with spending.paid_requests(recorded, tmp_path / 'ledger.jsonl', 1) as paid:
            spending.cost(recorded, paid)
        session = Session(recorded, None, ToolClient(''), None, None)
        cold_start.served_answers(session, None)
        cold_start.make_reviewer(session, None)
        cold_start.make_expert(recorded, ToolClient(''), None, 0)
    if name == 'ask':  # the other way
        recorded = Recorded(config, read)
        config.ask.page = True
        without_tools = Session(recorded, None, ToolClient(''), None, make_mesh({}))
        monkeypatch.setattr(ask, 'open_session', lambda *_: contextlib.nullcontext(without_tools))
        monkeypatch.setattr(ask_page, 'serve_page', lambda *_: None)
        ask.run(recorded, None)
    if name == 'evaluate':  # the other agent
        recorded = Recorded(config, read)
        config.evaluate.agent.update(kind='openai', url='http://localhost:1', model='any')
        with evaluated_agents.paid_requests(recorded, tmp_path / 'paid.jsonl') as paid:
            session = Session(recorded, None, ToolClient(''), None, None)
            served = evaluated_agents.ServedAgent(session, paid)
            assert served.cost() == {'usd': '0.00', 'calls': '0'} and served.described()
    if name in ('rl', 'pocket'):  # the other ratio
        config.rl.algorithm = 'grpo'
        rl.make_objective(Recorded(config, read).rl)
    assert leaves(config) - read == BY_MAIN


def test_every_field_of_the_base_policy_is_read():
    source = ''.join(file.read_text() for file in Path(pretraining.__path__[0]).glob('*.py'))
    assert {name for name in config_of('base').keys() if f'config.{name}' not in source} == {
        'task',
        'compilation_cache',
    }


def test_the_7b_configs_have_the_fields_of_their_tasks():
    for task in ('ask', 'cold_start', 'sft', 'rl', 'evaluate'):
        assert leaves(config_of(f'{task}_7b')) == leaves(config_of(task))


@pytest.mark.parametrize(
    'name, fields, words',
    [
        (
            'cold_start',
            {'expert.url': 'http://localhost:1'},
            "expert.url is of expert.kind 'openai'",
        ),
        (
            'cold_start',
            {'expert.kind': 'openai', 'expert.url': 'http://localhost:1'},
            'needs expert.model',
        ),
        (
            'evaluate',
            {'tools.url': 'http://localhost:1', 'tools.mode': 'record'},
            'tools.mode is of a server that is started',
        ),
        ('evaluate', {'data.eval': []}, 'name a source'),
        ('rl', {'data.rl': [{'name': 'pocket', 'limit': -1}]}, 'give 0 .all. or more'),
        ('rl', {'rl.lora.rank': 4, 'rl.freeze_embedding': False}, 'set it to True'),
        ('evaluate', {'evaluate.mode': 'chat'}, "evaluate.mode 'chat' is unknown"),
        ('evaluate', {'evaluate.samples': 4}, 'at evaluate.temperature 0 all samples'),
        ('evaluate', {'evaluate.samples': 0}, 'evaluate.samples is 0; give 1 or more'),
        ('evaluate', {'evaluate.agent.kind': 'gpt'}, "evaluate.agent.kind 'gpt' is unknown"),
        ('evaluate', {'evaluate.agent.kind': 'openai'}, 'needs evaluate.agent.url'),
        ('evaluate', {'evaluate.agent.model': 'x'}, "is of evaluate.agent.kind 'openai'"),
        ('evaluate', {'budget.calls': 5}, 'budget.calls is for served models'),
        (
            'evaluate',
            {
                'evaluate.agent.kind': 'openai',
                'evaluate.agent.url': 'http://localhost:1',
                'evaluate.agent.model': 'x',
                'budget.usd': 5.0,
            },
            'so that nothing counts',
        ),
        (
            'evaluate',
            {
                'evaluate.agent.kind': 'openai',
                'evaluate.agent.url': 'http://localhost:1',
                'evaluate.agent.model': 'x',
                'evaluate.top_k': 5,
            },
            'no served model is sent them',
        ),
        (
            'evaluate',
            {'tools.url': 'http://localhost:1', 'tools.port': 7},
            'tools.port is of a server that is started',
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(name, fields, words, policy_folder):
    config = config_of(name)
    config.policy = str(policy_folder)
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=words):
        checks.check(config)
