"""Finished runs are compared, exported for other tools, and watched."""

import json

import pytest
import requests
from evaluated import answered, question
from toy_runs import ROOT

from sensesearch_jax.evaluation.result_files import write_rows
from sensesearch_jax.evaluation.results import result_row


@pytest.mark.commands('docs/evaluation.md', 'sensesearch_jax.sweep', 'evaluation.export')
@pytest.mark.commands('docs/sweeps.md', 'runs/evaluate_1')
def test_evaluations_are_compared_and_exported(workspace):
    said = {'sft': ('Paris', 'Rome'), 'rl': ('Paris', 'Paris'), '0': ('Rome', 'Paris')}
    said |= {'1': ('Paris', 'Paris')}
    for name, answers in said.items():
        folder = workspace / f'runs/evaluate_{name}/evaluation'
        folder.mkdir(parents=True)
        trajectories = [answered(question(i), text) for i, text in enumerate(answers)]
        lines = (json.dumps(t.to_json()) + '\n' for t in trajectories)
        (folder / 'policy.jsonl').write_text(''.join(lines))
        write_rows(folder.parent, [result_row(t, 10, 2) for t in trajectories])
    told = workspace.run('--runs=rl=runs/evaluate_rl')
    assert 'gained' in told and '+50.00' in told and 'q1' in told
    assert (workspace / 'runs/compared/sweep.html').is_file()
    assert '+25.00' in workspace.run('runs/evaluate_1')
    workspace.link('runs/evaluate', 'runs/evaluate_rl')
    workspace.run('evaluation.export')
    files = {file.name for file in (workspace / 'runs/evaluate/export').rglob('*.*')}
    assert {'results.json', 'sensesearch_hr_mmsearch.tsv'} <= files


@pytest.mark.commands('docs/watch.md', 'sensesearch_jax.watch runs/rl')
@pytest.mark.commands('README.md', 'sensesearch_jax.watch')
def test_a_run_and_a_folder_of_runs_are_watched(workspace):
    (workspace / 'runs/rl').mkdir(parents=True)
    (workspace / 'runs/rl/config.json').write_text('{"task": "rl"}')
    healthy = ROOT / 'tests' / 'runtime' / 'healthy_rl.jsonl'
    (workspace / 'runs/rl/metrics.jsonl').write_text(healthy.read_text())
    for words, names in ('runs/rl', {}), ('WORKDIR', {'WORKDIR': 'runs'}):
        with workspace.served(words, **names) as address:
            (run,) = requests.get(f'{address}/state', timeout=60).json()['runs']
            assert run['name'] == 'rl'
