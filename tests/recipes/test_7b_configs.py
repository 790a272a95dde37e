"""The configs of the 7B and of SenseNova-MARS as they are shipped, through the command line, on
tiny policies in the layout of Qwen2.5-VL-7B and Qwen3-VL-8B.

Their own dtype, protocol, template, mesh axes and data: FVQA and HR-MMSearch, converted from
self-made records in their published layouts. Capacities, counts and the tools' back ends by fields
of the command line.
"""

import json
import math

import numpy as np
import published_files
import pytest
import toy_runs
from chat_stand_in import chat_stand_in
from flax import nnx
from layout_7b import write_policy
from ml_collections import ConfigDict
from PIL import Image
from released_files import write_release
from safetensors import safe_open

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.data import chat_files
from sensesearch_jax.data.published import published_set
from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.lora import Lora, add_adapters, is_adapter
from sensesearch_jax.recipes.session import load_policy_directory, read_trajectories
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import read_metrics

SHORT = {
    'tools.config': toy_runs.TOOLS,
    'min_pixels': 28 * 28,
    'max_pixels': 28 * 28 * 12,
    'agent.max_turns': 3,
    'agent.turn_tokens': 4,
    'agent.passage_chars': 120,
    'rollout.groups': 2,
    'rollout.prompt_capacity': 1024,
    'rollout.suffix_capacity': 1536,
    'rollout.chunk': 4,
    'rollout.tool_threads': 4,
    'rollout.judge_threads': 2,
    'rollout.extend_lanes': 2,
    'rollout.extend_tokens': 128,
    'rollout.tower_batch': 2,
    'rl.micro_batch': 2,
    'rl.members': 2,
}


@pytest.fixture(scope='module')
def policy_7b(tmp_path_factory):
    folder = tmp_path_factory.mktemp('7b') / 'policy'
    write_policy(folder)
    return folder


@pytest.fixture(scope='module')
def mars(tmp_path_factory):
    """A policy, and fields with the files of a release."""
    folder = tmp_path_factory.mktemp('mars')
    write_policy(folder / 'policy', 'Qwen3-VL-8B')
    write_release(folder, 'Look closely, then answer.')
    fields = {'system_file': folder / 'manifest.json', 'tools_file': folder / 'tools.yaml'}
    return folder / 'policy', {f'agent__released__{k}': v for k, v in fields.items()}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """FVQA and HR-MMSearch as tensorflow-datasets directories."""
    folder = tmp_path_factory.mktemp('sets')
    for name, write in (
        ('fvqa', published_files.fvqa),
        ('hr_mmsearch', published_files.hr_mmsearch),
    ):
        write(folder / name)
        published_set(name)(
            folder=str(folder / name), data_dir=str(folder / 'data')
        ).download_and_prepare()
    return folder / 'data'


@pytest.fixture(scope='module')
def run(policy_7b, data, tmp_path_factory):
    """Runs a config to a good end; gives its workdir and what it said."""
    folder = tmp_path_factory.mktemp('runs')

    def run(config, devices, policy=policy_7b, **fields):
        workdir = folder / f'{len(list(folder.iterdir()))}-{config}'  # a config may run twice
        output = workdir.with_name(f'{workdir.name}.txt')
        chosen = {name.replace('__', '.'): value for name, value in fields.items()}
        there = toy_runs.fields_of(config, SHORT | {'data.dir': data}) | chosen
        toy_runs.finish(
            toy_runs.start(
                config, workdir, policy, there, output, JAX_NUM_CPU_DEVICES=str(devices)
            ),
            output,
        )
        return workdir, output.read_text()

    return run


def went_on_after_a_tool(trajectories):
    return any(
        turn.observation is not None and turn.observation.ok
        for t in trajectories
        for turn in t.turns[:-1]
    )


def is_7b_directory(folder):
    """bfloat16 under the released names, and what a server of the policy needs."""
    config = json.loads((folder / 'config.json').read_text())
    with safe_open(next(folder.glob('*.safetensors')), 'numpy') as file:
        names = list(file.keys())
        assert all(file.get_slice(name).get_dtype() == 'BF16' for name in names)
    assert 'model.embed_tokens.weight' in names and any(
        name.startswith('visual.blocks.0') for name in names
    )
    return (
        config['dtype' if 'dtype' in config else 'torch_dtype'] == 'bfloat16'
        and (folder / 'tokenizer.json').is_file()
    )


def test_rl(run):
    workdir = rl_of_two_steps(run, 'rl_7b')
    assert is_7b_directory(workdir / 'rl' / 'policy')


@pytest.mark.slow
def test_rl_of_adapters(run, policy_7b):
    """Merged into the policy, which the last checkpoint gives as well, and beside matrices that stay; the
    KL term's reference, the policy without them, is where training begins."""
    workdir = rl_of_two_steps(run, 'rl_7b:lora')
    assert is_7b_directory(workdir / 'rl' / 'policy')
    first, second = (r['values']['kl'] for r in read_metrics(workdir / 'metrics.jsonl', 'rl'))
    assert first == 0 < second
    policy, start = (load_policy(f, 'bfloat16') for f in (workdir / 'rl' / 'policy', policy_7b))
    again = load_policy_directory(
        workdir / 'rl' / 'checkpoints' / '2', settings_of(workdir), make_mesh({}), 'bfloat16'
    ).policy
    ours, theirs, restored = (
        dict(nnx.to_flat_state(nnx.state(p, nnx.Param))) for p in (policy, start, again)
    )
    adapted = {path[:-2] for path, _ in nnx.to_flat_state(nnx.state(add_adapters(
        start, Lora.of(settings_of(workdir).rl.lora), 0), is_adapter))}  # fmt: skip
    for path, parameter in ours.items():
        assert np.array_equal(parameter[...], restored[path][...]), path
        same = np.array_equal(parameter[...], theirs[path][...])
        assert same == (path[-1] != 'kernel' or path[:-1] not in adapted), path
    assert (workdir / 'rl' / 'adapter' / 'adapter_model.safetensors').is_file()


def settings_of(workdir):
    return ConfigDict(json.loads((workdir / 'config.json').read_text()))


@pytest.mark.slow
def test_rl_and_sft_with_a_sequence_axis(run, demonstrations):
    rl_of_two_steps(run, 'rl_7b', devices=8, mesh__sequence=2)
    sft_of(run, 'sft_7b', demonstrations, mesh__sequence=2)


@pytest.mark.slow
def test_rl_of_mars(run, mars):
    policy, files = mars
    workdir = rl_of_two_steps(run, 'rl_mars', policy=policy, **files)
    config = json.loads((workdir / 'rl' / 'policy' / 'config.json').read_text())
    assert config['model_type'] == 'qwen3_vl' and config['dtype'] == 'bfloat16'


def rl_of_two_steps(run, config, devices=4, **fields):
    """Its workdir; all numbers are finite, and the sampler's are those of training."""
    few = {'rl__steps': 2, 'rl__questions_per_step': 2, 'rl__pack_step': 1024}
    workdir, _ = run(config, devices, **few, **fields)
    trajectories = [
        t
        for step in range(2)
        for t in read_trajectories(workdir / 'rl' / 'trajectories' / f'{step:05d}.jsonl')
    ]
    assert {t.question.source for t in trajectories} == {'fvqa'}
    assert len(trajectories) == 2 * 2 * 2 and went_on_after_a_tool(trajectories)
    for record in read_metrics(workdir / 'metrics.jsonl', 'rl'):
        values = record['values']
        assert all(map(math.isfinite, values.values())) and 0 < values['sampler_gap'] < 0.05
    return workdir


def answers_at_once(request):
    """A served expert that knows."""
    return DEFAULT.render_action('I know this building.', Answer('Cheshire'))


@pytest.fixture(scope='module')
def demonstrations(run, policy_7b, tmp_path_factory):
    """Fields of an SFT on what a cold start kept: a stand-in for the served expert, rules for the served
    reviewer. It has been through the chat format of PyTorch trainers.
    """
    with chat_stand_in() as service:
        service.replies = answers_at_once
        cold, _ = run(
            'cold_start_7b',
            2,
            expert__url=service.url,
            expert__questions=4,
            expert__threads=2,
            validate__kind='rules',
            validate__url='',
            validate__model='',
            budget__usd=0.0,
            mine__samples=2,
            mine__answer_tokens=4,
            mine__most_right=2,
        )
    assert len(service.requests) == 3 and service.requests[0].body['model'] == 'gemini-2.5-flash'
    folder = tmp_path_factory.mktemp('demonstrations')
    path, chats, back = cold / 'cold_start' / 'kept.jsonl', folder / 'chats', folder / 'back.jsonl'
    kept = read_trajectories(path)
    assert {t.question.id for t in kept} == {f'fvqa_train_{n}' for n in range(3)}
    preprocessor = Preprocessor.read(policy_7b).within(SHORT['min_pixels'], SHORT['max_pixels'])
    chat_files.export(path, chats, cold / 'tools', DEFAULT, TOOLS, 'messages')
    chat_files.import_(
        chats / 'train.jsonl',
        back,
        folder / 'pictures',
        ChatTokenizer(policy_7b, preprocessor.merged_tokens),
        None,
        None,
    )
    assert read_trajectories(back) == kept
    return {'sft__data': back, 'tools__folder': folder / 'pictures'}


def test_cold_start_and_sft(run, demonstrations):
    sft_of(run, 'sft_7b', demonstrations)


@pytest.mark.slow
def test_sft_of_adapters(run, demonstrations, policy_7b):
    workdir = sft_of(run, 'sft_7b:lora', demonstrations)
    assert (workdir / 'sft' / 'adapter' / 'adapter_model.safetensors').is_file()
    policy, start = (load_policy(f, 'bfloat16') for f in (workdir / 'sft' / 'policy', policy_7b))
    moved = {
        path[-1]
        for (path, ours), (_, theirs) in zip(
            nnx.to_flat_state(nnx.state(policy, nnx.Param)),
            nnx.to_flat_state(nnx.state(start, nnx.Param)),
            strict=True,
        )
        if not np.array_equal(ours[...], theirs[...])
    }
    assert moved == {'kernel'}


def sft_of(run, config, demonstrations, **fields):
    """Its workdir, with a policy in the 7B's layout."""
    few = {'sft__batch': 2, 'sft__micro_batch': 2, 'sft__epochs': 1}
    workdir, _ = run(config, 4, **few, **demonstrations, **fields)
    losses = [record['values']['loss'] for record in read_metrics(workdir / 'metrics.jsonl', 'sft')]
    assert losses and all(map(math.isfinite, losses))
    assert is_7b_directory(workdir / 'sft' / 'policy')
    return workdir


def test_evaluation(run):
    evaluation_of(run, 'evaluate_7b')


@pytest.mark.slow
def test_evaluation_of_mars(run, mars):
    policy, files = mars
    workdir = evaluation_of(run, 'evaluate_mars', policy=policy, **files)
    card = json.loads((workdir / 'card.json').read_text())
    assert 'Look closely, then answer.' in json.dumps(card)


def evaluation_of(run, config, **fields):
    """Its workdir, with a trajectory for each question of HR-MMSearch."""
    # two replicas of the sampler, each with programs of its own
    workdir, said = run(config, 2, evaluate__lanes=2, agent__max_turns=6, **fields)
    trajectories = read_trajectories(workdir / 'evaluation' / 'policy.jsonl')
    assert {t.question.difficulty for t in trajectories} == {'easy', 'hard'}
    assert len(trajectories) == 3 and went_on_after_a_tool(trajectories)
    assert 'HR-MMSearch' in said
    return workdir


def test_build_benchmark(run, tmp_path):
    Image.new('RGB', (300, 200), 'green').save(tmp_path / 'a.png')
    item = {'id': 'a', 'image': 'a.png', 'question': 'What is the name of the shop?'}
    item |= {'box': [10, 10, 30, 30], 'answer': 'Cheshire'}
    (tmp_path / 'items.jsonl').write_text(json.dumps(item))
    workdir, _ = run(
        'build_benchmark:7b',
        4,
        benchmark__data=tmp_path / 'items.jsonl',
        benchmark__min_width=300,
        benchmark__min_height=200,
        benchmark__samples=2,
    )
    (line,) = (workdir / 'benchmark' / 'candidates.jsonl').read_text().splitlines()
    assert json.loads(line)['difficulty'] in ('easy', 'hard')


def test_ask(run, tmp_path):
    Image.new('RGB', (300, 200), 'green').save(tmp_path / 'picture.png')
    _, said = run('ask_7b', 2, image=tmp_path / 'picture.png', question='What is this?')
    assert '── turn 1 ──' in said and 'Answer:' in said
