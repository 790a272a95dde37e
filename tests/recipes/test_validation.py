"""Validation during training: what it measures, the checkpoint it keeps, and a run that is killed in
the middle of it."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import toy_runs
from flax import nnx
from memorized import config_of_sft, load, write_memorized
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from scripted_tools import ScriptedTools

from sensesearch_jax import export
from sensesearch_jax.config.validation_checks import check_validation
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes import evaluated_samples, sft, validation
from sensesearch_jax.recipes.checkpoint_policy import policy_files
from sensesearch_jax.recipes.session import Session, read_trajectories
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import MetricWriter, read_metrics
from sensesearch_jax.runtime.workdir import Workdir


@pytest.fixture(scope='module')
def train(policy_folder, tmp_path_factory):
    """A function that runs SFT with validation in a folder; perhaps it is killed in the middle of
    one, after so many trajectories of a file."""
    config, tools = config_of_sft(), ScriptedTools()
    loaded = load(policy_folder, config)
    kept, held = write_memorized(
        tmp_path_factory.mktemp('files'), loaded, config.agent.tools, demonstrated=6, held_out=3
    )
    config.data.validation = str(held)
    config.sft.update(
        epochs=1, batch=2, micro_batch=1, pack_step=0, warmup=0, checkpoint_every=1000,
        validate_every=1, held_out=2,
    )  # fmt: skip
    config.agent.update(turn_tokens=6, max_turns=2)
    config.rollout.update(prompt_capacity=384, suffix_capacity=128, engines=1, chunk=4)
    config.validation.update(lanes=4, samples=2, temperature=1.0, without=('image_crop',))
    samplers = {}

    def run(path, killed=None):
        write = evaluated_samples.append_trajectories

        def torn(file, trajectories):
            if killed and str(file).endswith(killed[0]) and file.exists():
                if file.read_text().count('\n') == killed[1]:
                    raise KeyboardInterrupt
            write(file, trajectories)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(evaluated_samples, 'append_trajectories', torn)
            with (
                Workdir.open(path, config) as workdir,
                MetricWriter(path / 'metrics.jsonl') as metrics,
            ):
                session = Session(config, workdir, tools, metrics, make_mesh({}), samplers)
                return sft.sft(session, loaded, session.features(loaded), read_trajectories(kept))

    return run


def test_a_run_that_is_killed_in_a_validation_goes_on_in_it(train, tmp_path):
    train(tmp_path / 'whole')
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'torn', killed=('000001/sampled.jsonl', 4))
    assert (tmp_path / 'torn' / 'sft' / 'checkpoints' / '1').is_dir()
    before = [r['time'] for r in read_metrics(tmp_path / 'torn' / 'metrics.jsonl', 'sft')]
    train(tmp_path / 'torn')

    found = []
    for name in ('whole', 'torn'):
        records = read_metrics(tmp_path / name / 'metrics.jsonl', 'sft')
        steps = [r['step'] for r in records if 'loss' in r['values']]
        validated = [r for r in records if 'validation/accuracy' in r['values']]
        assert steps == [1, 2] and [r['step'] for r in validated] == [0, 1, 2]
        for record in validated:
            assert record['values'].pop('validation/seconds') > 0
        found.append([record['values'] for record in validated])
        folder = tmp_path / name / 'validation' / 'sft' / '000001'
        for file, count in (('greedy', 3), ('sampled', 6), ('without_image_crop', 3)):
            samples = [
                evaluated_samples.sample_of(t) for t in read_trajectories(folder / f'{file}.jsonl')
            ]
            assert len(samples) == len(set(samples)) == count
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    names = {
        'validation/accuracy', 'validation/avg@2', 'validation/pass@2', 'validation/loss',
        'validation/without_image_crop/accuracy', 'validation/usable_share',
    }  # fmt: skip
    assert names <= found[0][0].keys()
    # The loss on rows that are held out falls, and nothing that was done is done again.
    assert found[0][2]['validation/loss'] < found[0][0]['validation/loss']
    after = [r['time'] for r in read_metrics(tmp_path / 'torn' / 'metrics.jsonl', 'sft')]
    assert after[: len(before)] == before


def test_a_rising_rate_spoils_the_last_policy_and_the_best_is_saved(
    policy_folder, tmp_path, capsys
):
    """Through the command line: the policy that SFT writes answers as the best checkpoint does."""
    loaded = load(policy_folder, config_of_sft())
    kept, held = write_memorized(
        tmp_path, loaded, config_of_sft().agent.tools, demonstrated=8, held_out=4
    )
    fields = {
        'policy': policy_folder, 'sft.data': kept, 'data.validation': held, 'sft.validate_every': 4,
        'sft.result': 'best', 'sft.epochs': 5, 'sft.batch': 2, 'sft.micro_batch': 1,
        'sft.schedule': 'constant', 'sft.warmup': 20, 'sft.learning_rate': 0.2,
        'rollout.prompt_capacity': 384, 'rollout.suffix_capacity': 128, 'rollout.engines': 1,
        'agent.turn_tokens': 24, 'agent.max_turns': 2, 'validation.lanes': 4,
    }  # fmt: skip
    workdir = tmp_path / 'run'

    def command(*arguments):
        done = subprocess.run(
            [sys.executable, '-m', *map(str, arguments)],
            cwd=toy_runs.ROOT, env=os.environ | toy_runs.QUICK, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    command(
        'sensesearch_jax.main', '--config=configs/sft.py', f'--workdir={workdir}',
        *(f'--config.{name}={value}' for name, value in fields.items()),
    )  # fmt: skip
    accuracy = {
        r['step']: r['values']['validation/accuracy']
        for r in read_metrics(workdir / 'metrics.jsonl', 'sft')
        if 'validation/accuracy' in r['values']
    }
    assert list(accuracy) == [0, 4, 8, 12, 16, 20]
    best = max((step for step in accuracy if step), key=lambda step: (accuracy[step], step))
    assert accuracy[best] == 1.0 > accuracy[20] and accuracy[0] == 0.0
    checkpoints = {int(path.name) for path in (workdir / 'sft' / 'checkpoints').iterdir()}
    assert checkpoints == {best, 20}

    # What is saved is what the best checkpoint exports, and what is read where it lies.
    def arrays(folder):
        return load_file(folder / 'model.safetensors')

    def same(one, other):
        return all(np.array_equal(one[name], other[name]) for name in one)

    saved = arrays(workdir / 'sft' / 'policy')
    for step in ('best', 'last'):
        assert export.main([str(workdir), str(tmp_path / step), f'--step={step}']) == 0
    assert same(saved, arrays(tmp_path / 'best')) and not same(saved, arrays(tmp_path / 'last'))
    config = config_of_sft()
    read, from_saved = (
        jax.tree.leaves(nnx.state(load(folder, config).policy))
        for folder in (workdir / 'sft' / 'checkpoints' / str(best), workdir / 'sft' / 'policy')
    )
    assert all(map(np.array_equal, read, from_saved))
    assert export.main([str(workdir), str(tmp_path / 'none'), '--step=7']) == 2
    assert f'--step=7 is not kept; {workdir / "sft"} has [{best}, 20]' in capsys.readouterr().err
    with pytest.raises(UserError, match='7 is not kept'):
        policy_files(workdir / 'sft' / 'checkpoints' / '7')


def settings(**fields):
    """A config's parts that validation is checked by."""
    stage = {'validate_every': 2, 'result': 'best'}
    config = ConfigDict(
        {
            'agent': {'tools': ('text_search', 'image_crop')},
            'checkpoint': {'keep_best': 1},
            'sft': stage | {'held_out': 3},
            'rl': stage,
            'validation': {
                'samples': 2, 'temperature': 1.0, 'without': ('image_crop',), 'best_by': 'accuracy',
            },
        }
    )  # fmt: skip
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
    return config


@pytest.mark.parametrize(
    'fields, sentence',
    [
        ({'sft__validate_every': -1}, 'sft.validate_every is -1; give 0'),
        ({'rl__result': 'mean'}, "rl.result 'mean' is unknown"),
        (
            {'rl__validate_every': 0},
            "rl.result 'best' is by validation, and rl.validate_every is 0",
        ),
        ({'checkpoint__keep_best': 0}, 'checkpoint.keep_best is 0; give 1'),
        ({'sft__validate_every': 0, 'sft__result': 'last'}, 'nobody looks at their loss'),
        ({'validation__samples': -2}, 'validation.samples is -2'),
        ({'validation__temperature': 0.0}, 'at validation.temperature 0 all are equal'),
        ({'validation__without': ('crop',)}, r"validation.without names \['crop'\]"),
        ({'validation__best_by': 'f1'}, "validation.best_by 'f1' is unknown"),
        ({'validation__best_by': 'avg@k', 'validation__samples': 0}, 'needs validation.samples'),
        ({'validation__best_by': 'loss'}, 'validate no RL by it'),
    ],
)
def test_what_cannot_be_validated_is_refused(fields, sentence):
    check_validation(settings())
    with pytest.raises(UserError, match=sentence):
        check_validation(settings(**fields))


def test_the_score_is_of_what_counts():
    """A lower loss is the better one; where tools failed on many questions there is no score."""
    values = {
        'validation/accuracy': 0.5, 'validation/avg@2': 0.25, 'validation/loss': 3.0,
        'validation/usable_share': 1.0,
    }  # fmt: skip
    scores = [
        validation.score_of(values, settings(validation__best_by=name).validation)
        for name in ('accuracy', 'avg@k', 'loss')
    ]
    assert scores == [0.5, 0.25, -3.0]
    failed = values | {'validation/usable_share': 0.8}
    assert validation.score_of(failed, settings().validation) is None
    assert validation.score_of({}, settings().validation) is None


def test_trajectories_of_one_question_are_held_out_together(policy_folder, tmp_path):
    kept, _ = write_memorized(tmp_path, load(policy_folder, config_of_sft()), (), 6, 0)
    kept.write_text(
        ''.join(line + '\n' for line in kept.read_text().splitlines() for _ in range(2))
    )
    trajectories = read_trajectories(kept)
    trained, held = sft.hold_out(trajectories, 3, seed=0)
    assert (len(trained), len(held)) == (8, 4)
    assert not {t.question.id for t in trained} & {t.question.id for t in held}
    assert sft.hold_out(trajectories, 0, seed=0) == (trajectories, [])
    with pytest.raises(UserError, match='sft.held_out is 12, which leaves none of the 12'):
        sft.hold_out(trajectories, 12, seed=0)
