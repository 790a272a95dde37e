"""The command line, given what is wrong: one sentence, no traceback, a code other than 0, nothing
written."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensesearch_jax import main
from sensesearch_jax.config.checks import check
from sensesearch_jax.errors import UserError, field
from sensesearch_jax.recipes.ask import check_image

ROOT = Path(__file__).parents[2]
# An answer of few programs, by tools that are there at once.
SHORT = (
    '--config.tools.config=tests/shared/toy_tools/tools.yaml',
    '--config.agent.turn_tokens=8',
    '--config.agent.max_turns=1',
    '--config.rollout.chunk=4',
    '--config.rollout.suffix_capacity=384',
)


def start(*arguments, where=ROOT):
    environment = {
        name: value for name, value in os.environ.items() if name != 'SENSESEARCH_TRACEBACK'
    }
    environment |= {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [sys.executable, '-m', 'sensesearch_jax.main', *map(str, arguments)],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def refused(done, *words):
    """One sentence on stderr with the words in it, nothing on stdout."""
    assert done.returncode not in (0, None) and done.stdout == ''
    said, *rest = done.stderr.strip().splitlines()
    assert said.startswith('sensesearch_jax: ') and 'Traceback' not in done.stderr
    assert all(line.startswith('(SENSESEARCH_TRACEBACK') for line in rest)
    for word in words:
        assert str(word) in said, said


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--config=configs/rl.py', '--config.nonsense=1'], ['no field', 'nonsense']),
        (['--config=configs/rl.py', '--config.rl.nonsense=1'], ['no field', 'nonsense']),
        (['--config=configs/rl.py', '--config.seed=many'], ['config.seed=many']),
        (['--config=configs/none.py'], ['configs/none.py names no file', 'configs/*.py']),
        (
            ['--config=configs/pocket.py:huge'],
            ['configs/pocket.py:huge is unknown', "'full', 'long' or 'smoke'"],
        ),
        (
            ['--config=configs/cold_start.py:few'],
            ['configs/cold_start.py:few is unknown', "'all' or 'search'"],
        ),
        (['--config=configs/rl.py', 'stray'], ["'stray' is no option"]),
        (['--workdir=x'], ['There is no --config']),
        (['--confg=configs/rl.py'], ['confg']),
    ],
)
def test_what_is_wrong_with_the_command_itself(arguments, words, tmp_path):
    refused(
        start(
            *arguments, *(['--workdir', tmp_path / 'w'] if '--workdir=x' not in arguments else [])
        ),
        *words,
    )
    assert not list(tmp_path.iterdir())


def test_only_errors_made_for_users_lose_their_traceback(monkeypatch, capsys):
    def fails(error):
        def main(arguments):
            raise error

        return main

    monkeypatch.delenv('SENSESEARCH_TRACEBACK', raising=False)
    monkeypatch.setattr(main, 'main', fails(ValueError('cannot reshape array of size 3')))
    with pytest.raises(ValueError, match='cannot reshape'):
        main.guarded([])
    monkeypatch.setattr(main, 'main', fails(UserError('There is no question.')))
    with pytest.raises(SystemExit) as end:
        main.guarded([])
    assert (
        end.value.code == 2 and 'sensesearch_jax: There is no question.' in capsys.readouterr().err
    )


def test_an_error_about_a_value_names_its_field_and_other_errors_pass():
    with pytest.raises(UserError, match='^agent.tools: no hammer$'), field('agent.tools'):
        raise ValueError('no hammer')
    with pytest.raises(UserError, match='^no hammer$'), field('agent.tools'):
        raise UserError('no hammer')
    with pytest.raises(TypeError), field('agent.tools'):
        raise TypeError('a fault')


@pytest.mark.parametrize(
    'fault', ["int('many')", "{}['none']", "open('none')", 'None.none', 'len(3)']
)
def test_a_fault_of_a_config_file_keeps_its_traceback(fault, tmp_path):
    (tmp_path / 'own.py').write_text(f'def get_config():\n    return {fault}\n')
    done = start(f'--config={tmp_path}/own.py', f'--workdir={tmp_path}/w')
    assert done.returncode and 'Traceback' in done.stderr and f'return {fault}' in done.stderr


def test_no_policy_directory(tmp_path):
    refused(
        start(
            '--config=configs/rl.py', f'--workdir={tmp_path}/w', f'--config.policy={tmp_path}/none'
        ),
        f'{tmp_path}/none is not a policy directory',
    )
    assert not list(tmp_path.iterdir())


def test_a_directory_of_another_model_type(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'llama'}))
    refused(
        start(
            '--config=configs/evaluate.py', f'--workdir={tmp_path}/w', f'--config.policy={tmp_path}'
        ),
        "config.json: 'llama' is no family of policies that is known",
        'qwen2_5_vl',
        'qwen3_vl',
    )
    assert not (tmp_path / 'w').exists()


def test_a_corrupt_image(tmp_path, policy_folder):
    picture = tmp_path / 'picture.jpg'
    picture.write_bytes(
        (ROOT / 'sensesearch_jax/pocket/world/files/relief.jpg').read_bytes()[:2000]
    )
    refused(
        start(
            '--config=configs/ask.py',
            f'--workdir={tmp_path}/w',
            f'--config.policy={policy_folder}',
            f'--config.image={picture}',
            '--config.question=What is this?',
        ),
        picture,
        'not a readable image',
    )
    assert not (tmp_path / 'w').exists()


def test_a_second_start_compiles_nothing(tmp_path, policy_folder):
    """Programs of the first one are in the folder that the config names, and nothing comes to it."""
    kept, picture = tmp_path / 'compiled', tmp_path / 'picture.png'
    Image.new('RGB', (80, 60), 'green').save(picture)

    def ask():
        done = start(
            '--config=configs/ask.py',
            f'--config.policy={policy_folder}',
            f'--config.image={picture}',
            '--config.question=What is this?',
            f'--config.compilation_cache={kept}',
            *SHORT,
        )
        assert done.returncode == 0, done.stderr
        return {file.name for file in kept.glob('*-cache')}

    first = ask()
    names = {name.rpartition('-')[0].rpartition('-')[0] for name in first}
    assert {'jit__prefill_program', 'jit__decode_program'} <= names
    assert ask() == first


def test_pictures_that_no_policy_can_see(tmp_path):
    picture = tmp_path / 'picture.png'
    Image.new('RGB', (4000, 10)).save(picture)
    with pytest.raises(
        UserError, match='more than 200 times as long as wide; give one that is less narrow'
    ):
        check_image(str(picture))
    with pytest.raises(ValueError, match=r"no image file at 'none.png'; give --config.image=FILE"):
        check_image('none.png')
    Image.new('RGB', (40, 10)).save(picture)
    check_image(str(picture))


def test_a_png_with_a_spoiled_chunk_is_told_in_a_sentence(tmp_path):
    """Pillow raises a SyntaxError for one."""
    picture = tmp_path / 'picture.png'
    Image.frombytes('RGB', (300, 300), np.random.default_rng(0).bytes(270_000)).save(picture)
    data = picture.read_bytes()
    second = data.index(b'IDAT', data.index(b'IDAT') + 1)
    picture.write_bytes(data[:second] + b'I\0AT' + data[second + 4 :])
    with pytest.raises(UserError, match='not a readable image: the image is damaged'):
        check_image(str(picture))


@pytest.mark.parametrize(
    'field, value, words',
    [
        ('agent.protocol', 'own', "agent.protocol 'own' is unknown"),
        ('agent.tools', ('hammer',), 'hammer'),
        ('expert.kind', 'oracle', "expert.kind 'oracle' is unknown"),
        ('sft.schedule', 'linear', "'linear' is unknown"),
        ('sft.remat', 'some', "sft.remat 'some' is unknown; choose from none"),
        ('rl.dtype', 'float8', "rl.dtype 'float8' is unknown"),
        ('rl.lora.rank', -1, 'rl.lora: rank is -1; give 0'),
        ('sft.lora.alpha', 0.0, 'sft.lora: alpha is 0.0; give more than 0'),
        ('sft.lora.targets', ('lm_head',), "sft.lora: targets name .'lm_head'.; choose from"),
        ('rollout.engines', 0, 'rollout.engines is 0; give 1 or more'),
        ('sft.threads', -1, 'sft.threads is -1; give 1 or more'),
        ('mesh.fsdp', 3, 'does not fit 8 devices'),
        ('mesh.tensor', 2, "mesh.tensor 2 does not divide the policy's 1 key/value heads"),
        ('mesh.data', 2, 'sft.micro_batch 1 cannot be sharded over'),
        ('rl.batch_scope', 'world', "rl.batch_scope 'world' is unknown"),
        ('rl.clip_low', 2.0, 'rl: clip_low must lie in'),
        ('rl.temperature', 0.0, 'rl.temperature is 0'),
        (
            'rl.tool_prices.text_search',
            -1.0,
            "rl.tool_prices: tool prices .'text_search'. are wrong",
        ),
        ('rl.price_from_step', 2, 'rl.price_from_step is 2, but all rl.tool_prices are 0'),
        ('rl.price_from_step', 25, 'and the run has rl.steps 2; give 0'),
        ('rl.members', 0, 'rl.members is 0; give 1 or more'),
        (
            'rl.max_staleness',
            -1,
            r'rl.max_staleness is -1; give 0 .sampling awaits training. or more',
        ),
        ('rl.max_failed_steps', 0, 'rl.max_failed_steps is 0; give 1 or more'),
        ('sft.max_skipped_updates', 0, 'sft.max_skipped_updates is 0; give 1 or more'),
        ('rl.steps', 0, 'rl.steps is 0'),
        ('sft.epochs', 0, 'sft.epochs is 0'),
        ('mine.temperature', -1.0, 'mine.temperature, .* temperature -1.0 is negative'),
        ('evaluate.top_p', 0.0, 'evaluate.top_p: top_p 0.0 is out of range'),
        ('data.eval', 'pocket@exam', "data.eval: The pocket world has no split 'exam'"),
        ('data.eval', 'my.jsonl', 'data.eval: There is no file or directory my.jsonl'),
        ('data.eval', [{'name': 'pokcet'}], "data.eval: there is no source 'pokcet'"),
        ('agent.text_results', 0, 'agent: text_results, .* at least 1'),
        ('rollout.cache_dtype', 'int4', "rollout.cache_dtype 'int4' is unknown"),
        ('rollout.chunk', 0, 'rollout.chunk is 0'),
    ],
)
def test_names_that_do_not_exist_are_refused_whichever_stage_they_belong_to(
    field, value, words, policy_folder
):
    config = runpy.run_path(str(ROOT / 'configs' / 'pocket.py'))['get_config']('smoke')
    config.policy = str(policy_folder)
    check(config)
    with config.unlocked(), pytest.raises(UserError, match=words):
        config.update_from_flattened_dict({field: value})
        check(config)


def test_an_unknown_algorithm_is_refused_before_the_stages_that_do_not_need_it(
    tmp_path, policy_folder
):
    refused(
        start(
            '--config=configs/pocket.py',
            f'--workdir={tmp_path}/w',
            f'--config.policy={policy_folder}',
            '--config.rl.algorithm=ppo',
        ),
        "rl.algorithm 'ppo' is unknown",
        'bn_gspo',
    )
    assert not (tmp_path / 'w').exists()


def test_rows_that_the_sequence_axis_does_not_divide_are_refused(policy_folder):
    config = runpy.run_path(str(ROOT / 'configs' / 'pocket.py'))['get_config']('smoke')
    config.policy, config.mesh.sequence = str(policy_folder), 4
    check(config)
    config.rl.pack_step = 130
    with pytest.raises(UserError, match='multiples of 2 tokens, which mesh.sequence 4 × mesh.tens'):
        check(config)


@pytest.mark.parametrize(
    'arguments', [('configs/ask.py', '--workdir=somewhere'), ('configs/sft.py',)]
)
def test_several_hosts_where_they_are_of_no_use(arguments):
    config, *others = arguments
    refused(
        start(f'--config={config}', '--config.multi_host=True', *others),
        'multi_host is for cold_start, sft, rl, evaluate with a --workdir that all hosts see',
    )


def test_the_7b_configs_are_whole(policy_folder):
    """They have every field that their task's pocket config has, and they pass its checks."""
    for task in ('sft', 'rl', 'evaluate'):
        pocket, large = (
            runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))['get_config']()
            for name in (task, f'{task}_7b')
        )
        assert set(large.keys()) == set(pocket.keys())
        if task != 'sft':  # which wants trajectories
            # a small policy has one key/value head
            large.policy, large.mesh.tensor = (str(policy_folder), 1)
            with pytest.raises(UserError, match='data.convert (fvqa|hr_mmsearch) FILES'):
                check(large)
            stage = {'rl': 'rl', 'evaluate': 'eval'}[task]
            large.data[stage] = pocket.data[stage]
            check(large)


def test_the_workdir_of_another_run(tmp_path, policy_folder):
    """Also one beside it, and a folder with files of one's own, which is left alone."""
    (tmp_path / 'config.json').write_text(json.dumps({'task': 'evaluate', 'seed': 7}))
    before = sorted(tmp_path.iterdir())
    refused(
        start(
            '--config=configs/evaluate.py',
            f'--workdir={tmp_path}',
            f'--config.policy={policy_folder}',
        ),
        f'{tmp_path} belongs to another run',
    )
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != '.lock'] == before
    (tmp_path / 'config.json').rename(tmp_path / 'letters.txt')
    refused(
        start(
            '--config=configs/evaluate.py',
            f'--workdir={tmp_path}',
            f'--config.policy={policy_folder}',
        ),
        'holds letters.txt but no run',
    )
    (tmp_path / 'run-process-3').mkdir()
    (tmp_path / 'letters.txt').rename(tmp_path / 'run-process-3' / 'config.json')
    refused(
        start(
            '--config=configs/evaluate.py',
            f'--workdir={tmp_path}/run',
            f'--config.policy={policy_folder}',
        ),
        f'{tmp_path}/run-process-3 belongs to another run',
    )


def test_a_port_in_use(tmp_path, policy_folder):
    """No question is drawn; with another port the same workdir is as good as new."""
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(
            start(
                '--config=configs/evaluate.py',
                f'--workdir={tmp_path}/w',
                f'--config.policy={policy_folder}',
                f'--config.tools.port={port}',
            ),
            f'127.0.0.1:{port}',
            'in use',
        )
    assert sorted(p.name for p in (tmp_path / 'w').iterdir()) == ['.lock', 'config.json', 'tools']
    refused(
        start(
            '--config=configs/evaluate.py',
            f'--workdir={tmp_path}/w',
            f'--config.policy={policy_folder}',
            '--config.tools.url=http://127.0.0.1:9',
        ),
        'No tool server answers at http://127.0.0.1:9',
    )
