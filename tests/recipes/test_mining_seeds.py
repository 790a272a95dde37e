"""Mining's seeds are of the question, the same after a restart."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

from scripted_tools import ScriptedTools

from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.recipes import cold_start
from sensesearch_jax.recipes.session import Session
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.runtime.workdir import Workdir


def test_mining_that_was_interrupted_goes_on_with_the_seeds_that_it_would_have_had(
    tmp_path, monkeypatch
):
    config = runpy.run_path(str(Path(__file__).parents[2] / 'configs' / 'cold_start.py'))[
        'get_config'
    ]()
    questions = [
        Question(f'q{i}', 'What?', (), ('it',), category='search', difficulty='1') for i in range(4)
    ]
    seen = []
    monkeypatch.setattr(Session, 'engines', lambda *_, **__: [])

    def sampled(tasks, scorer, on_group):
        seen.append({t.question.id: t.seeds for t in tasks})
        for task in tasks:
            wrong = {'accuracy': 0.0}
            on_group([Trajectory(task.question, 0, 0, [], SampleState.OK, [], [], wrong, None)])

    stream = SimpleNamespace(sample=sampled)
    monkeypatch.setattr(Session, 'stream', lambda *_, **__: stream)

    def mine(folder, mined):
        with (
            Workdir.open(folder, config) as workdir,
            MetricWriter(workdir / 'metrics.jsonl') as metrics,
        ):
            (workdir / 'cold_start').mkdir()
            (workdir / 'cold_start' / 'mined.jsonl').write_text(
                ''.join(json.dumps({'id': i, 'right': 0}) + '\n' for i in mined)
            )
            loaded = type('LoadedPolicy', (), {'chat': None})
            session = Session(config, workdir, ScriptedTools(), metrics, make_mesh(config.mesh))
            answers = cold_start.policy_answers(session, loaded, None)
            cold_start.mine(session, answers, questions, [], None)

    mine(tmp_path / 'whole', [])
    mine(tmp_path / 'torn', ['q0', 'q2'])
    assert set(seen[1]) == {'q1', 'q3'} and seen[1].items() <= seen[0].items()
    assert len({seed for seeds in seen[0].values() for seed in seeds}) == 4 * config.mine.samples
