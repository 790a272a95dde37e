"""SFT that is validated, its best checkpoint written and evaluated."""

import runpy

import pytest
from memorized import load, write_memorized

from sensesearch_jax.runtime.metrics import read_metrics


@pytest.mark.commands(
    'docs/validation.md', 'configs/sft.py', 'sensesearch_jax.export', 'configs/evaluate.py'
)
@pytest.mark.commands('README.md', 'sensesearch_jax.export')
def test_the_best_checkpoint_is_a_policy(desk):
    config = runpy.run_path(str(desk / 'configs/sft.py'))['get_config']()
    files = desk / 'files'
    files.mkdir()
    tools = config.agent.tools
    kept, held_out = write_memorized(files, load(desk / 'toy', config), tools, 10, 2)
    kept.rename(desk / 'KEPT.jsonl')
    held_out.rename(desk / 'held_out.jsonl')
    steps = {'sft.epochs': 10, 'sft.batch': 2, 'sft.pack_step': 0, 'validation.lanes': 2}
    desk.run('configs/sft.py', steps, PICTURES='pictures')
    records = read_metrics(desk / 'runs/sft/metrics.jsonl', 'sft')
    validated = [r['step'] for r in records if 'validation/accuracy' in r['values']]
    assert validated == [0, 50]
    assert 'the policy after step 50' in desk.run('policies/best')
    assert (desk / 'policies/best/config.json').is_file()
    assert 'the policy after step 50' in desk.run('export WORKDIR', WORKDIR='runs/sft', DST='again')
    desk.run('configs/evaluate.py', {'data.eval': 'held_out.jsonl'})
    assert len((desk / 'runs/at_50/results.jsonl').read_text().splitlines()) == 2
