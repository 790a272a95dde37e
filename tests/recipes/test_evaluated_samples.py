"""An evaluation that goes on in fewer processes than it was begun with."""

import runpy
from pathlib import Path
from types import SimpleNamespace

from evaluated import answered, question

from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.evaluation.modes import AGENT
from sensesearch_jax.recipes.evaluated_samples import Setting, evaluate
from sensesearch_jax.recipes.session import append_trajectories, read_trajectories
from sensesearch_jax.runtime.workdir import Workdir

CONFIG = Path(__file__).parents[2] / 'configs' / 'evaluate.py'


def test_samples_of_the_other_processes_are_not_asked_again(tmp_path):
    """But for one that had failed; the file of this process has all of them."""
    questions = [question(i) for i in range(5)]
    append_trajectories(tmp_path / 'run/samples/it.jsonl', [answered(questions[0], 'here')])
    of_other = [
        answered(questions[1], 'there'),
        answered(questions[3], None, state=SampleState.INFRA_FAILED),
    ]
    append_trajectories(tmp_path / 'run-process-1/samples/it.jsonl', of_other)
    asked = []

    def play(left, conditions):
        for sample, member in left:
            asked.append(sample.id)
            conditions.on_sample(answered(sample, 'now', member=member))

    agent = SimpleNamespace(play=play, cost=dict)
    config = runpy.run_path(str(CONFIG))['get_config']()
    (tmp_path / 'run/config.json').write_text('{}')
    with Workdir.open(tmp_path / 'run', {}) as workdir:
        session = SimpleNamespace(
            config=config, workdir=workdir, scorer=lambda: None, environment=lambda tools: None
        )
        found = evaluate(session, agent, questions, 'samples', 'it', Setting(AGENT, 1, ()))
    assert asked == ['q2', 'q3', 'q4']
    assert [t.answer for t in found] == ['here', 'there', 'now', 'now', 'now']
    on_disk = read_trajectories(tmp_path / 'run/samples/it.jsonl')
    assert sorted(t.question.id for t in on_disk) == [q.id for q in questions]
