"""SFT as a task: the same policy from any mesh, and from a run that went on on another one."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from scripted_tools import ScriptedTools, noise_file

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory, Turn
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.recipes import rows, sft
from sensesearch_jax.recipes.session import Session, load_policy_directory, unsampled
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import MetricWriter, read_metrics
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training.checkpointing import Checkpoints, Kept

CONFIG = Path(__file__).parents[2] / 'configs' / 'sft.py'


def trajectory(loaded, tools, folder, number):
    """One turn about a picture of its own, as a cold start leaves it."""
    image = tools.upload(noise_file(folder / f'{number}.png', 56 + 28 * number, 56, number))
    tokens = loaded.chat.assistant(f'<answer>{number}</answer>')
    question = Question(
        f'q{number}', 'What is it?', ('a.png',), ('it',), category='perception', difficulty='1'
    )
    turn = Turn(tokens, [], '', Answer('it'), None, [])
    prompt = loaded.chat.prompt('Look.', [image, question.text])
    return Trajectory(question, 0, 0, [turn], SampleState.OK, prompt, [image], {}, 'it')


@pytest.fixture(scope='module')
def train(policy_folder, tmp_path_factory):
    """A function that runs SFT in a folder, on a mesh, perhaps to be interrupted before a step."""
    folder, tools = tmp_path_factory.mktemp('pictures'), ScriptedTools()
    config = runpy.run_path(str(CONFIG))['get_config']()
    loaded = load_policy_directory(
        policy_folder, config, make_mesh({}, jax.devices()[:1]), 'float32'
    )
    kept = [trajectory(loaded, tools, folder, number) for number in range(3)]
    config.sft.update(
        epochs=1, batch=1, micro_batch=2, checkpoint_every=1, warmup=0, max_skipped_updates=2
    )

    def run(path, mesh, stop=None, broken=(), **fields):
        step, changed = sft.Learner.sft_step, config.copy_and_resolve_references()
        changed.sft.update(fields)

        def interrupted(self, batches, tokens):
            done = len(read_metrics(path / 'metrics.jsonl', 'sft'))
            if done == stop:
                raise KeyboardInterrupt
            if done in broken:
                batches = (b._replace(features=np.full_like(b.features, np.nan)) for b in batches)
            return step(self, batches, tokens)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(sft.Learner, 'sft_step', interrupted)
            with (
                Workdir.open(path, changed) as workdir,
                MetricWriter(path / 'metrics.jsonl') as metrics,
            ):
                session = Session(changed, workdir, tools, metrics, mesh=make_mesh(mesh))
                return sft.sft(session, loaded, session.features(loaded), kept)

    return run


def test_a_run_goes_on_on_another_mesh(train, tmp_path):
    whole = train(tmp_path / 'whole', {})
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'torn', {}, stop=2)
    torn = train(tmp_path / 'torn', {'fsdp': 2})
    ours, theirs = (
        nnx.to_flat_state(nnx.state(load_policy(folder), nnx.Param)) for folder in (torn, whole)
    )
    for (path, one), (_, other) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one[...], other[...], atol=2e-5, err_msg=str(path))
    losses = [
        [m['values']['loss'] for m in read_metrics(tmp_path / name / 'metrics.jsonl', 'sft')]
        for name in ('torn', 'whole')
    ]
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert train(tmp_path / 'torn', {}) == torn  # done: nothing is trained again


def test_trajectories_in_one_row_are_trained_on_as_in_rows_of_their_own(train, tmp_path):
    alone, together, packed = (
        train(tmp_path / name, {}, batch=3, micro_batch=1, row_trajectories=members, pack_step=step)
        for name, members, step in (('alone', 1, 0), ('together', 3, 0), ('packed', 3, 16))
    )
    losses, padded = (
        [
            read_metrics(tmp_path / name / 'metrics.jsonl', 'sft')[0]['values'][metric]
            for name in ('alone', 'together', 'packed')
        ]
        for metric in ('loss', 'padding_share')
    )
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    assert padded[2] < padded[1]
    first = nnx.to_flat_state(nnx.state(load_policy(alone), nnx.Param))
    for folder in (together, packed):
        ours = nnx.to_flat_state(nnx.state(load_policy(folder), nnx.Param))
        for (path, one), (_, other) in zip(ours, first, strict=True):
            np.testing.assert_allclose(one[...], other[...], atol=2e-5, err_msg=str(path))


def test_updates_that_are_not_finite_end_the_run_with_the_last_good_state(train, tmp_path):
    """Two in a row, behind a step that is good; the run that goes on without them ends where one
    that never had them does."""
    whole = train(tmp_path / 'whole', {})
    with pytest.raises(
        UserError,
        match=r'last 2 updates were not finite, from step 2 on \(sft.max_skipped_updates\)',
    ):
        train(tmp_path / 'torn', {}, broken=(1, 2))
    assert not (tmp_path / 'torn' / 'sft' / 'policy').exists()
    with Checkpoints(
        tmp_path / 'torn' / 'sft' / 'checkpoints', Kept(last=1, every=0, best=0)
    ) as checkpoints:
        assert checkpoints.steps() == [1]
    steps = read_metrics(tmp_path / 'torn' / 'metrics.jsonl', 'sft')
    assert [m['values']['skipped_updates'] for m in steps] == [0, 1, 1]
    torn = train(tmp_path / 'torn', {})
    ours, theirs = (
        nnx.to_flat_state(nnx.state(load_policy(folder), nnx.Param)) for folder in (torn, whole)
    )
    for (path, one), (_, other) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one[...], other[...], atol=2e-5, err_msg=str(path))


def test_one_update_that_is_not_finite_is_left_out(train, tmp_path):
    folder = train(tmp_path / 'run', {}, broken=(1,))
    assert all(
        np.isfinite(leaf[...]).all()
        for _, leaf in nnx.to_flat_state(nnx.state(load_policy(folder), nnx.Param))
    )
    steps = read_metrics(tmp_path / 'run' / 'metrics.jsonl', 'sft')
    assert [m['values']['skipped_updates'] for m in steps] == [0, 1, 0]
    assert np.isfinite([m['values']['learning_rate'] for m in steps]).all()


def test_control_tokens_are_in_neither_distribution(policy_folder):
    """The sampler's and the trainer's leave out the same ids: control tokens and rows that are no
    token."""
    config, device = runpy.run_path(str(CONFIG))['get_config'](), jax.local_devices()[:1]
    loaded = load_policy_directory(policy_folder, config, make_mesh(devices=device), 'float32')
    mask, chat = rows.suppressed_mask(loaded), loaded.chat
    assert np.flatnonzero(mask).tolist() == sorted(set(unsampled(loaded)))
    allowed = {chat.tokenizer.id_to_token(int(i)) for i in np.flatnonzero(~mask)}
    assert {name for name in allowed if name.startswith('<|')} == {'<|im_end|>', '<|endoftext|>'}
    assert {'<tool_call>', '</tool_call>'} <= allowed and None not in allowed
