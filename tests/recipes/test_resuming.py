"""A run that is over, one that goes on with other fields, and addresses that are no folders."""

import os
import runpy
from pathlib import Path

import pytest
import toy_runs
from safetensors.numpy import load_file
from toy_policy import write_toy_policy

from sensesearch_jax.config.resuming import OPERATIONAL, check_paths, may_change
from sensesearch_jax.errors import UserError
from sensesearch_jax.pocket.pretraining.stages import Stages
from sensesearch_jax.runtime.metrics import read_metrics

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.py'))
RL = {
    'data.rl': toy_runs.pocket('validation', search=3, perception=1, search_only=1),
    'rl.questions_per_step': 2,
    'rl.averaged': False,
}


def config_of(name):
    return runpy.run_path(str(CONFIGS[0].with_name(f'{name}.py')))['get_config']()


def state_of(folder):
    """Every file with its time, but for the lock, which each start writes."""
    return {
        path.relative_to(folder): path.stat().st_mtime_ns
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != '.lock'
    }


def test_a_finished_run_is_left_alone_and_goes_on_with_more_steps_on_another_machine(
    policy_folder, tmp_path
):
    output, workdir = tmp_path / 'output.txt', tmp_path / 'run'

    def run(folder, **more):
        return toy_runs.finish(
            toy_runs.start(
                'rl',
                folder,
                policy_folder,
                RL | {name.replace('__', '.'): v for name, v in more.items()},
                output,
            ),
            output,
        )

    run(workdir, rl__steps=1, rl__micro_batch=1)
    before = state_of(workdir)
    output.write_text('')
    run(workdir, rl__steps=1, rl__micro_batch=2, rl__remat='full', rollout__engines=1)
    assert (
        'is finished, and nothing in it was changed' in output.read_text()
        and state_of(workdir) == before
    )
    run(workdir, rl__steps=2, rl__micro_batch=2, rl__remat='full', rollout__engines=1)
    run(tmp_path / 'whole', rl__steps=2, rl__micro_batch=1)
    ours, theirs = (
        read_metrics(folder / 'metrics.jsonl', 'rl') for folder in (workdir, tmp_path / 'whole')
    )
    assert [r['step'] for r in ours] == [1, 2]
    for name in ('reward', 'turns', 'loss', 'entropy', 'grad_norm'):
        assert ours[1]['values'][name] == pytest.approx(
            theirs[1]['values'][name], rel=2e-3, abs=1e-5
        ), name
    assert load_file(workdir / 'rl' / 'policy' / 'model.safetensors').keys()
    before = state_of(workdir)
    run(workdir, rl__steps=1)
    assert state_of(workdir) == before


def test_more_steps_pin_a_workdir_where_the_rate_comes_down_over_them():
    config = config_of('rl')
    assert 'rl.steps' in may_change(config)
    config.rl.schedule = 'cosine'
    assert 'rl.steps' not in may_change(config) and 'rl.steps' not in may_change(
        config_of('pocket')
    )


def test_every_field_that_may_change_is_one():
    """A field that is not named pins the workdir, so a new one does until someone thinks of it."""
    configs = [config_of(path.stem) for path in CONFIGS if not path.stem.startswith('common')]
    for name in OPERATIONAL:
        assert any(toy_runs.has(config, name) for config in configs), name
    for pinned in (
        'seed',
        'data.seed',
        'rl.learning_rate',
        'rl.dtype',
        'rollout.suffix_capacity',
        'agent.protocol',
    ):
        assert any(toy_runs.has(config, pinned) for config in configs) and pinned not in OPERATIONAL


def test_the_weights_of_a_base_policy_are_not_made_anew(tmp_path):
    write_toy_policy(tmp_path)
    trained = tmp_path / 'model.safetensors'
    os.utime(trained, (1, 1))
    write_toy_policy(tmp_path)
    assert trained.stat().st_mtime == 1


def test_each_stage_of_the_base_policys_curriculum_has_a_rate_that_rises_and_falls():
    config = config_of('base')

    def stage(steps, rate):
        return dict(config.stages[0]) | {'steps': steps, 'learning_rate': rate}

    rate = Stages([stage(300, 1e-3), stage(300, 1e-4)]).learning_rate(warmup=100)
    assert 0 < rate(20) < rate(100) > rate(290) > 0 and rate(400) == pytest.approx(1e-4, rel=1e-3)
    with pytest.raises(UserError, match='stages: .* one or more of steps'):
        Stages([stage(0, 1e-3)])


def test_addresses_of_stores_are_taken_where_they_are_fetched_or_mirrored():
    config = config_of('sft')
    config.tools.url, config.compilation_cache = 'http://localhost:8080', 'gs://bucket/compiled'
    config.policy, config.sft.data = 'gs://bucket/policy', 's3://bucket/kept.jsonl'
    config.tools.folder = 's3://bucket/tools'
    check_paths(config, 's3://bucket/run')
    check_paths(config, 'runs/sft')
    asked = config_of('rl')
    asked.data.rl = 's3://bucket/questions.jsonl'
    check_paths(asked, 'gs://bucket/run')


@pytest.mark.parametrize(
    'field, value, words',
    [
        (
            '--workdir',
            'https://bucket/run',
            r'is in no store that is known; choose from gs://, s3://',
        ),
        ('policy', 'az://bucket/run', 'is in no store that is known'),
        ('tools.config', 'gs://bucket/tools.yaml', 'is no path'),
        ('tools.folder', 'gs://bucket/tools', 'is no path'),
    ],
)
def test_other_addresses_are_refused_where_folders_are_wanted(field, value, words):
    config, workdir = config_of('rl'), value if field == '--workdir' else 'runs/rl'
    if field != '--workdir':
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f'{field} {value} {words}'):
        check_paths(config, workdir)


def test_several_hosts_want_a_folder_that_all_see():
    config = config_of('rl')
    config.multi_host = True
    with pytest.raises(UserError, match='multi_host wants a folder that all hosts see'):
        check_paths(config, 'gs://bucket/run')
