"""SFT that is validated, its best checkpoint written and evaluated."""

import runpy

import pytest
from memorized import load, write_memorized

from sensesearch_jax.runtime.metrics import read_metrics


@pytest.mark.commands(
    'docs/validation.md', 'configs/sft.py', 'sensesearch_jax.export', 'configs/evaluate.py'
)
@pytest.mark.commands('README.md', 'sensesearch_jax.export')
def test_the_best_checkpoint_is_a_policy(workspace):
    config = runpy.run_path(str(workspace / 'configs/sft.py'))['get_config']()
    files = workspace / 'files'
    files.mkdir()
    tools = config.agent.tools
    kept, held_out = write_memorized(files, load(workspace / 'toy', config), tools, 10, 2)
    kept.rename(workspace / 'KEPT.jsonl')
    held_out.rename(workspace / 'held_out.jsonl')
    steps = {'sft.epochs': 10, 'sft.batch': 2, 'sft.pack_step': 0, 'validation.lanes': 2}
    workspace.run('configs/sft.py', steps, PICTURES='pictures')
    records = read_metrics(workspace / 'runs/sft/metrics.jsonl', 'sft')
    validated = [r['step'] for r in records if 'validation/accuracy' in r['values']]
    assert validated == [0, 50]
    assert 'the policy after step 50' in workspace.run('policies/best')
    assert (workspace / 'policies/best/config.json').is_file()
    assert 'the policy after step 50' in workspace.run(
        'export WORKDIR', WORKDIR='runs/sft', DST='again'
    )
    workspace.run('configs/evaluate.py', {'data.eval': 'held_out.jsonl'})
    assert len((workspace / 'runs/at_50/results.jsonl').read_text().splitlines()) == 2
