"""The runs of a sweep: their fields, names and configs, and which of them a job of an array makes."""

import json
import os
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from sensesearch_jax.config.checks import check
from sensesearch_jax.config.fields import check_types
from sensesearch_jax.errors import UserError
from sensesearch_jax.sweep.plan import parse_vary, plan, product, seeds, write_config, write_plan
from sensesearch_jax.sweep.runner import Place, job_of, next_task, parse_places, state_of
from sensesearch_jax.sweep.written_config import get_config

CONFIGS = Path(__file__).parents[2] / 'configs'
SHIPPED = runpy.run_path(str(CONFIGS / 'sweep_algorithms.py'))


def rl():
    return runpy.run_path(str(CONFIGS / 'rl.py'))['get_config']()


def chain():
    evaluate = runpy.run_path(str(CONFIGS / 'evaluate.py'))['get_config']()
    return ConfigDict({'evaluate': evaluate, 'rl': rl()})


def test_a_product_is_every_combination_of_lists_and_fields():
    made = product([{'setting': 'A', 'x': 1}, {'setting': 'B'}], {'y': (1, 2), 'z': (3,)})
    assert made == [
        {'setting': 'A', 'x': 1, 'y': 1, 'z': 3},
        {'setting': 'A', 'x': 1, 'y': 2, 'z': 3},
        {'setting': 'B', 'y': 1, 'z': 3},
        {'setting': 'B', 'y': 2, 'z': 3},
    ]


def test_fields_of_the_command_line_have_their_types():
    made = parse_vary(['rl.algorithm=grpo,gspo', 'rl.learning_rate=1e-4', 'rl.averaged=False'])
    assert [m['rl.algorithm'] for m in made] == ['grpo', 'gspo']
    assert made[0]['rl.learning_rate'] == 1e-4 and made[0]['rl.averaged'] is False
    with pytest.raises(UserError, match="give --vary='FIELD=VALUE,VALUE'"):
        parse_vary(['rl.algorithm'])


def test_settings_are_named_by_their_fields_and_seeds_tell_their_runs_apart():
    runs = plan(rl(), product({'rl.algorithm': ('grpo', 'gspo')}, seeds(2)))
    assert [(run.name, run.setting, run.seed) for run in runs] == [
        ('algorithm-grpo-0', 'algorithm=grpo', 0),
        ('algorithm-grpo-1', 'algorithm=grpo', 1),
        ('algorithm-gspo-0', 'algorithm=gspo', 0),
        ('algorithm-gspo-1', 'algorithm=gspo', 1),
    ]
    assert runs[3].tasks['rl'].rl.algorithm == 'gspo'
    assert runs[3].tasks['rl'].seed == runs[3].tasks['rl'].data.seed == 1
    assert plan(rl(), [])[0].name == 'all-0'


def test_a_chain_hands_its_policy_on_and_a_run_without_training_begins_with_the_same(tmp_path):
    config = chain()
    config.rl.policy = 'runs/sft/policy'
    start, tuned = plan(config, [{'setting': 'start', 'tasks': ('evaluate',)}, *seeds(1)])
    assert list(tuned.tasks) == ['rl', 'evaluate'] and list(start.tasks) == ['evaluate']
    assert start.tasks['evaluate'].policy == tuned.tasks['rl'].policy == 'runs/sft/policy'
    written = get_config(write_config(tuned, 'evaluate', tmp_path))
    assert written.policy == str(tmp_path.resolve() / 'runs' / 'all-0' / 'rl' / 'rl' / 'policy')
    check_types(written)
    assert get_config(write_config(tuned, 'rl', tmp_path)).to_dict() == json.loads(
        json.dumps(tuned.tasks['rl'].to_dict())
    )


@pytest.mark.parametrize(
    'overrides, words',
    [
        ([{'rl.nonsense': 1}], 'sets rl.nonsense, but no task'),
        ([{'rl.steps': 'many'}], "rl.steps is 'many'; give a value of type int"),
        ([{'evaluate:rl.steps': 3}], 'sets evaluate:rl.steps, but no task'),
        ([{'tasks': ('sft',)}], "no task sft; it has .'rl', 'evaluate'."),
        ([{'rl.steps': 2}, {'setting': 'steps=2'}], 'Two runs of the sweep are called steps-2-0'),
    ],
)
def test_what_no_run_can_have_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        plan(chain(), overrides)


def test_a_config_that_is_neither_task_nor_chain_is_refused():
    with pytest.raises(UserError, match="'optimizer' is neither"):
        plan(ConfigDict({'optimizer': {'lr': 1}}), [])


@pytest.mark.parametrize(
    'variant, count',
    [
        ('algorithms', 16),
        ('no_sft', 10),
        ('data', 10),
        ('price', 7),
        ('means', 16),
        ('staleness', 7),
        ('all', 47),
    ],
)
def test_the_shipped_variants_are_settings_times_seeds_and_the_policy_before(variant, count):
    config = SHIPPED['get_config'](variant)
    config.rl.policy = 'sft'
    runs = plan(config, SHIPPED['get_hyper'](variant))
    rl_runs = [run.tasks['rl'] for run in runs if 'rl' in run.tasks]
    before = [run for run in runs if 'rl' not in run.tasks]
    assert len(runs) == count and before == runs[: len(before)] and before
    assert {run.setting for run in before} <= {'start', 'base'}
    assert len({json.dumps(config.to_dict(), sort_keys=True) for config in rl_runs}) == len(rl_runs)
    assert all(not run.tasks['rl'].policy for run in runs if run.setting.endswith('no SFT'))
    for task in (task for run in runs for task in run.tasks.values()):
        task.policy = ''  # such as is there
        check(task)
    with pytest.raises(UserError, match='is unknown; choose from algorithms'):
        SHIPPED['get_config']('speed')


def test_a_sweep_may_be_given_more_seeds(tmp_path):
    write_plan(plan(rl(), seeds(1)), tmp_path)
    assert list(write_plan(plan(rl(), seeds(2))[1:], tmp_path)) == ['all-0', 'all-1']


def test_a_run_is_finished_when_all_of_its_tasks_are_and_reach_as_far_as_wanted(tmp_path):
    (run,) = plan(chain(), [{'rl.steps': 2}])
    assert next_task(run, tmp_path) == 'rl' and state_of(run, tmp_path) == 'rl to be started'
    for task, result in (('rl', {'rl.steps': 2}), ('evaluate', {})):
        marker = run.folder(tmp_path) / task / 'stages' / 'run.json'
        marker.parent.mkdir(parents=True)
        marker.write_text(json.dumps({'result': result}))
    assert next_task(run, tmp_path) is None and state_of(run, tmp_path) == 'finished'
    (more,) = plan(chain(), [{'setting': run.setting, 'rl.steps': 3}])
    assert next_task(more, tmp_path) == 'rl'


def test_jobs_of_an_array_share_out_the_runs():
    assert job_of({}, 0, 15) == (0, 1)
    assert job_of({'SLURM_ARRAY_TASK_ID': '3'}, 0, 15) == (3, 15)
    assert job_of({'JOB_COMPLETION_INDEX': '3'}, 4, 15) == (3, 4)
    with pytest.raises(
        UserError, match='JOB_COMPLETION_INDEX is 15, but 15 jobs .* number them 0 to 14'
    ):
        job_of({'JOB_COMPLETION_INDEX': '15'}, 0, 15)
    with pytest.raises(UserError, match='--jobs is 4, but neither SLURM_ARRAY_TASK_ID nor'):
        job_of({}, 4, 15)


def test_places_are_cores_and_devices_or_a_count():
    assert len(parse_places(3, [], [])) == 3
    core = min(os.sched_getaffinity(0))
    one, two = parse_places(1, [f'{core}', f'{core}-{core}'], ['0,1', '2'])
    assert one.cores == two.cores == (core,) and one.devices == (0, 1)
    assert two.environment() == {
        'CUDA_VISIBLE_DEVICES': '2',
        'ROCR_VISIBLE_DEVICES': '2',
        'TPU_VISIBLE_CHIPS': '2',
        'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1',
        'TPU_PROCESS_BOUNDS': '1,1,1',
    }
    assert Place().environment() == {} and Place() != Place()


@pytest.mark.parametrize(
    'given, words',
    [
        ((0, [], []), '--at_once is 0; give 1 or more'),
        ((1, ['0', '0'], ['1']), '--cores is given 2 times and --devices 1 times'),
        ((3, [], ['0', '1']), '--at_once is 3, but --cores or --devices name 2 places'),
        ((1, ['a-b'], []), '--cores=a-b is no list of numbers'),
        ((1, ['99999'], []), '--cores names core 99999, which this process may not use'),
    ],
)
def test_places_that_the_machine_does_not_have_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        parse_places(*given)
