"""Programs compiled for TPUs that are not here, small ones: what they need and move; and how a
program's text is read."""

import ast
import math
import re
import runpy
from pathlib import Path

import pytest
from jax.experimental import topologies
from small_policies import small_policy

from experiments.benchmarks import tpu_table
from experiments.benchmarks.compiled import collectives
from experiments.benchmarks.tpu_memory import CHIPS, measured, shown
from experiments.benchmarks.tpu_programs import (
    Lengths,
    learner_of,
    of_tower,
    per_device,
    sampling,
    training,
)

CONFIGS = Path(__file__).parents[2] / 'configs'
TEXT = """HloModule step
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}
%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %gather = bf16[64,4]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %start = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%y), replica_groups=mesh['x'=2,'y'=4] {'y'}, a={chain_id="7"}
  %again = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%y), replica_groups=mesh['x'=2,'y'=4] {'y'}, a={chain_id="7"}
}
%handed_over (p: bf16[8,4]) -> bf16[16,4] {
  ROOT %gather = bf16[16,4]{1,0} all-gather(%p), channel_id=2, replica_groups={{0,1}}, dimensions={0}
}
ENTRY %main (p: bf16[8,4]) -> f32[16] {
  %call = bf16[16,4]{1,0} custom-call(%p), custom_call_target="sparse core", called_computations={%handed_over}
  %loop = (s32[], bf16[8,4]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"28"}}
  ROOT %reduce = f32[16]{0} all-reduce(%z), replica_groups={{0,1}}, to_apply=%sum
}
"""  # noqa: E501


@pytest.fixture(scope='module')
def slice_of_four():
    pytest.importorskip('libtpu')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
        # tests may run side by side: no device is opened
        monkeypatch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
        yield topologies.get_topology_desc('v5e:2x2', 'tpu').devices


def settings(name, **changes):
    config = runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config']()
    config.update_from_flattened_dict(changes)
    return config


def test_collectives_are_counted_as_often_as_their_loop_runs():
    moved, unknown = collectives(TEXT)
    assert moved == {
        'all-gather': 28 * (64 * 4 * 2 * 3 / 4 + 8 * 4 * 2 * 3 / 4) + 16 * 4 * 2 / 2,
        'all-reduce': 16 * 4 * 2 * 1 / 2,
    }
    assert unknown == 0
    assert collectives(TEXT.replace('known_trip_count', 'none'))[1] == 1
    assert collectives(TEXT.replace('known_trip_count', 'none'), 28) == (moved, 0)
    condition = '%c (p: s32[]) -> pred[] {\n  %n = s32[]{:T(128)} constant(28)\n  ROOT %lt = pred[] compare(%i, %n), direction=LT\n}\n'  # noqa: E501
    assert collectives(condition + TEXT.replace('known_trip_count', 'none')) == (moved, 0)


def test_a_training_step_is_compiled_for_a_small_slice(slice_of_four):
    """The splash kernel, loops over layers, gradients over a mesh of two axes."""
    config = settings('sft_7b', **{'mesh.tensor': 2, 'sft.micro_batch': 2, 'sft.batch': 4})
    words, programs = training(
        config, 'sft', small_policy().sizes, Lengths(64, 32, 120), slice_of_four
    )
    assert words.startswith('2 rows of 384 + 1 × 384 tokens')
    found = {program.name: measured(program, 'training', CHIPS['v5e']) for program in programs}
    gradient = found['sft gradient']
    assert (
        gradient['fits']
        and 0 < gradient['total'] < gradient['limit']
        and gradient['moved']['all-gather'] > 0
    )
    assert gradient['binds'] in gradient['least_s'] and gradient['unknown_loops'] == 0
    assert 'Binds: ' in shown(gradient) and found['sft update']['fits']
    tight = measured(programs[1], 'training', CHIPS['v5e']._replace(size=1.0))
    assert not tight['fits'] and 'take fewer rows (micro_batch)' in tight['sentence']
    described = {'topology': 'v5e:2x2', 'date': '2000-01-01', 'what': words, 'size': '7B'}
    rows = tpu_table.table([{**described, **record} for record in found.values()]).splitlines()
    assert any(row.startswith('| v5e:2x2 | sft gradient |') for row in rows)
    assert len({row.count('|') for row in rows if row.startswith('|')}) == 1


# The tower of a batch of 4K pictures takes longer to compile than all else.
SMALL, LARGE = 28 * 28 * 256, 8_294_400


@pytest.mark.slow
@pytest.mark.parametrize('max_pixels', [SMALL, LARGE])
def test_experts_and_deepstack_are_compiled_for_eight_chips(slice_of_four, max_pixels):
    """Ragged products over the mesh's expert axis, gradients and the sampler."""
    devices = topologies.get_topology_desc('v5e:2x4', 'tpu').devices
    sizes, lengths = small_policy().sizes.adapted('qwen3_vl_moe'), Lengths(64, 32, 120)
    mesh = {'mesh.tensor': 2, 'mesh.expert': 2}
    config = settings('sft_7b', **mesh, **{'sft.micro_batch': 4, 'sft.batch': 8})
    _, programs = training(config, 'sft', sizes, lengths, devices)
    found = {program.name: measured(program, 'training', CHIPS['v5e']) for program in programs}
    assert found['sft gradient']['fits'] and found['sft gradient']['moved']['reduce-scatter'] > 0
    rollout = {'groups': 2, 'prompt_capacity': 64, 'suffix_capacity': 128, 'chunk': 4}
    config = settings('rl_mars', **{f'rollout.{k}': v for k, v in rollout.items()})
    config.update_from_flattened_dict({'mesh.tensor': 2, 'rl.members': 2, 'max_pixels': max_pixels})
    _, programs = sampling(config, 'rl', sizes, lengths, devices)
    assert all(measured(program, 'sampling', CHIPS['v5e'])['fits'] for program in programs)


@pytest.mark.parametrize(
    'max_pixels, patches', [(SMALL, 1008), pytest.param(LARGE, 42_196, marks=pytest.mark.slow)]
)
def test_the_sampler_is_compiled_for_a_small_slice(slice_of_four, max_pixels, patches):
    config = settings(
        'rl_7b',
        **{
            'mesh.tensor': 2,
            'rollout.groups': 2,
            'rollout.prompt_capacity': 64,
            'rollout.suffix_capacity': 128,
            'rollout.chunk': 4,
            'rl.members': 2,
            'max_pixels': max_pixels,
        },
    )
    _, programs = sampling(config, 'rl', small_policy().sizes, Lengths(64, 32, 120), slice_of_four)
    found = [measured(program, 'sampling', CHIPS['v5e']) for program in programs]
    names = [record['program'] for record in found]
    assert names == ['prefill', 'extend', 'decode', f'tower, 8 pictures of {patches} patches']
    assert all(record['fits'] and not record['unknown_loops'] for record in found)
    assert all(record['moved'] for record in found[:3]) and found[3]['beside'] > 0


def test_frozen_matrices_stay_beside_the_sampler_and_the_update(slice_of_four):
    """Adapters are trained and sampled on the same devices; in bytes of a device."""
    config = settings(
        'rl_7b',
        **{
            'mesh.tensor': 2,
            'rl.micro_batch': 2,
            'rl.members': 2,
            'rl.freeze_embedding': True,
            'rl.lora.rank': 2,
            'rollout.groups': 2,
            'rollout.prompt_capacity': 64,
            'rollout.suffix_capacity': 128,
            'rollout.chunk': 4,
        },
    )
    case = config, 'rl', small_policy().sizes, Lengths(64, 32, 120), slice_of_four
    learner = learner_of(*case)
    held, kept, moments = map(per_device, (learner.parameters, learner.kept, learner.moments))
    words, programs = sampling(*case)
    assert words.endswith('beside adapters')
    assert {p.beside for p in programs[:3]} == {held + kept + moments + of_tower(learner)}
    words, (gradient, update) = training(*case)
    assert words.endswith('adapters of rank 2')
    reference = held + of_tower(learner)  # beside the sum of gradients
    assert (gradient.beside, update.beside) == (moments + held + reference, reference + kept)


@pytest.mark.parametrize('stage', ['sft', 'rl'])
def test_a_7b_config_fits_the_slices_that_it_names(stage):
    """By topology, which tells the chips: the number in an accelerator type of v5p counts
    TensorCores."""
    path = CONFIGS / f'{stage}_7b.py'
    config = runpy.run_path(str(path))['get_config']()
    text = ast.get_docstring(ast.parse(path.read_text()))
    slices = re.findall(r'\b(v5e|v6e|v5p|tpu7x):(\d+(?:x\d+)+)', text)
    assert len(slices) >= 2 and not re.search(r'\bv\d\w*-\d+', text)
    for kind, topology in slices:
        devices = math.prod(map(int, topology.split('x'))) * (2 if kind == 'tpu7x' else 1)
        assert config[stage].micro_batch == devices // config.mesh.tensor
    adapters = runpy.run_path(str(path))['get_config']('lora')  # for eight devices
    assert adapters[stage].micro_batch == 8 // adapters.mesh.tensor
