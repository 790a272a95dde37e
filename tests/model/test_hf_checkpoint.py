"""Hugging Face directories in and out: bit-equal both ways, both naming styles, and clear refusals."""

import json
import math
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import PartitionSpec
from safetensors.torch import load_file, save_file
from tiny_policies import PAD, Conversation, both, hf_config, noise_picture
from transformers import AutoConfig, AutoModelForImageTextToText

from sensesearch_jax.model.config import RELEASED, PolicySizes
from sensesearch_jax.model.families import FAMILIES, module_name
from sensesearch_jax.model.hf_checkpoint import (
    abstract_policy,
    load_policy,
    save_policy,
    tensor_table,
)
from sensesearch_jax.model.safetensors_io import StoredTensor
from sensesearch_jax.runtime.mesh import make_mesh


@pytest.fixture
def folder(tmp_path):
    """A directory as transformers writes it."""
    both('untied')[0].save_pretrained(tmp_path / 'theirs')
    return tmp_path / 'theirs'


def rewrite(folder, change):
    """Applies `change` to the dictionary of tensors of a directory."""
    tensors = load_file(folder / 'model.safetensors')
    change(tensors)
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})


def edit_config(folder, **fields):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | fields))


def parameters(policy):
    return {
        path: np.asarray(value[...])
        for path, value in nnx.to_flat_state(nnx.state(policy, nnx.Param))
    }


def assert_same(one, other):
    one, other = parameters(one), parameters(other)
    assert one.keys() == other.keys()
    for path in one:
        assert one[path].dtype == other[path].dtype
        np.testing.assert_array_equal(one[path], other[path], err_msg=str(path))


@pytest.mark.parametrize('name', ['tied', 'untied', 'deep', 'sparse'])
def test_transformers_reads_what_we_write(name, tmp_path):
    model, policy = both(name)
    save_policy(policy, tmp_path)
    theirs, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    assert ('lm_head.weight' in load_file(tmp_path / 'model.safetensors')) == (
        name not in ('tied', 'deep')
    )
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[key]), key
    inputs = Conversation.build([4, noise_picture(90, 60, 1), 5]).for_reference()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, theirs(**inputs).logits)
    model.save_pretrained(tmp_path / 'theirs')
    written = load_file(tmp_path / 'theirs/model.safetensors')
    assert load_file(tmp_path / 'model.safetensors').keys() == written.keys()
    assert_same(policy, load_policy(tmp_path))
    assert load_policy(tmp_path).sizes == policy.sizes


def test_sizes_say_the_same_as_transformers(tmp_path):
    """Our config.json read by transformers gives the config that ours was read from."""
    for name in ('tied', 'untied', 'grouped', 'deep', 'sparse'):
        config = hf_config(name)
        config.save_pretrained(tmp_path)
        sizes = PolicySizes.from_directory(tmp_path)
        again = type(config)(**sizes.to_hf())
        for part in ('text_config', 'vision_config'):
            ours, theirs = getattr(again, part).to_dict(), getattr(config, part).to_dict()
            ignored = {'dtype', 'tokens_per_second', 'eos_token_id', 'transformers_version'}
            if sizes.language.experts:  # no layer is dense, so nothing reads it
                ignored.add('intermediate_size')
            assert {k: v for k, v in ours.items() if k not in ignored and v != theirs[k]} == {}
        assert again.tie_word_embeddings == config.tie_word_embeddings
        assert again.image_token_id == config.image_token_id == PAD


def test_half_precision(tmp_path):
    """bfloat16 in memory and in the file; reading it as float32 rounds nothing more."""
    model, _ = both('untied')
    model.save_pretrained(tmp_path / 'full')
    half = load_policy(tmp_path / 'full', jnp.bfloat16)
    assert {value.dtype.name for value in parameters(half).values()} == {'bfloat16'}
    save_policy(half, tmp_path / 'half', copy_from=tmp_path / 'full')
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / 'half')
    assert theirs.dtype == torch.bfloat16
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor.bfloat16(), theirs.state_dict()[key]), key
    widened = load_policy(tmp_path / 'half')
    save_policy(widened, tmp_path / 'again', dtype=jnp.bfloat16)
    half, again = (
        (tmp_path / name / 'model.safetensors').read_bytes() for name in ('half', 'again')
    )
    assert half == again


def test_released_directory_in_shards(folder):
    """As Qwen released the 7B: flat config, shards with an index."""
    expected = load_policy(folder)
    tensors = load_file(folder / 'model.safetensors')
    shards = {
        f'model-{number:05}-of-00003.safetensors': list(tensors)[number::3] for number in range(3)
    }
    for name, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / name, metadata={'format': 'pt'})
    (folder / 'model.safetensors').unlink()
    index = {
        'metadata': {},
        'weight_map': {key: name for name, keys in shards.items() for key in keys},
    }
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    config = json.loads((folder / 'config.json').read_text())
    text, vision = config.pop('text_config'), config['vision_config']
    rope = text.pop('rope_parameters')
    text.update(
        model_type='qwen2_5_vl',
        rope_theta=rope['rope_theta'],
        rope_scaling={'type': 'mrope', 'mrope_section': rope['mrope_section']},
    )
    vision.update(in_chans=vision.pop('in_channels'), spatial_patch_size=14)
    del vision['rope_parameters']
    (folder / 'config.json').write_text(json.dumps(config | text))
    policy = load_policy(folder)
    assert_same(policy, expected)
    assert policy.sizes == expected.sizes
    _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))


def test_both_styles_of_names(folder):
    model, expected = both('untied')[0], load_policy(folder)
    released, modules = list(load_file(folder / 'model.safetensors')), list(model.state_dict())
    assert {'lm_head.weight', 'visual.merger.ln_q.weight', 'model.norm.weight'} < set(released)
    assert (
        sorted(map(module_name, released)) == sorted(map(module_name, modules)) == sorted(modules)
    )
    assert sorted(map(FAMILIES['qwen2_5_vl'].released_name, modules)) == sorted(released)
    save_file(model.state_dict(), folder / 'model.safetensors', metadata={'format': 'pt'})
    assert_same(load_policy(folder), expected)


def test_a_policy_goes_straight_to_its_shards(folder, monkeypatch):
    """Equal to the one on one device; of a tensor that is cut only the parts are read, each once."""
    seen = []
    read = StoredTensor.read

    def spy(self, index=()):
        value = read(self, index)
        seen.append((self.key, value.size))
        return value

    monkeypatch.setattr(StoredTensor, 'read', spy)
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
    policy = load_policy(folder, mesh=mesh)
    kernel = policy.language.layers.mlp.gate.kernel[...]
    assert kernel.sharding.spec == PartitionSpec(None, 'fsdp', 'tensor')
    name = 'model.layers.0.mlp.gate_proj.weight'
    assert [size for key, size in seen if key == name] == [kernel[0].size // 4] * 4
    assert_same(policy, load_policy(folder))
    save_policy(policy, folder.parent / 'again')
    assert_same(policy, load_policy(folder.parent / 'again'))


def test_shards_that_transformers_reads(tmp_path):
    """Bit-equal after a round trip; a later, smaller write leaves nothing of the shards."""
    model, policy = both('untied')
    save_policy(policy, tmp_path, shard_bytes=40_000)
    files = sorted(path.name for path in tmp_path.glob('*.safetensors'))
    assert len(files) > 3 and files[0] == f'model-00001-of-{len(files):05}.safetensors'
    for name in files:
        tensors = load_file(tmp_path / name)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 40_000
    theirs, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    assert all(
        torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in model.state_dict().items()
    )
    assert_same(policy, load_policy(tmp_path))
    save_policy(policy, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.json', 'model.safetensors']
    save_policy(policy, tmp_path, shard_bytes=40_000)
    assert_same(policy, load_policy(tmp_path))


@pytest.mark.parametrize('name', RELEASED)
def test_released_sizes_have_transformers_parameters(name):
    """Names, shapes and count, without any numbers."""
    sizes = RELEASED[name]
    policy = abstract_policy(sizes)
    ours = {
        key: row.shape
        for row in tensor_table(policy, nnx.state(policy, nnx.Param))
        for key in row.names
    }
    with torch.device('meta'):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**sizes.to_hf()))
    theirs = {key: tuple(tensor.shape) for key, tensor in model.named_parameters()}
    for key, shape in theirs.items():
        # A file has an expert's matrices the other way round than transformers 5.
        in_file = (shape[0], *shape[:0:-1]) if 'experts' in key else shape
        assert ours.pop(key) == in_file, key
    assert not ours
    billions = {
        '3B': 3.75,
        '7B': 8.29,
        '32B': 33.45,
        '72B': 73.41,
        'Qwen3-VL-2B': 2.13,
        'Qwen3-VL-4B': 4.44,
        'Qwen3-VL-8B': 8.77,
        'Qwen3-VL-32B': 33.36,
        'Qwen3-VL-30B-A3B': 31.07,
        'Qwen3-VL-235B-A22B': 235.67,
    }[name]
    assert sum(map(math.prod, theirs.values())) / 1e9 == pytest.approx(billions, abs=0.01)


def test_companion_files_go_along(folder, tmp_path):
    """Those of a directory without a tokenizer as they are; see test_companions.py for the others."""
    for name in ('merges.txt', 'preprocessor_config.json'):
        (folder / name).write_text(name)
    (folder / 'optimizer.bin').write_text('not part of a policy')
    policy = load_policy(folder)
    save_policy(policy, tmp_path / 'copy', copy_from=folder)
    names = {path.name for path in (tmp_path / 'copy').iterdir()}
    assert names == {
        'config.json',
        'model.safetensors',
        'merges.txt',
        'preprocessor_config.json',
        'generation_config.json',
    }
    save_policy(policy, folder, copy_from=folder)  # in place: nothing lost
    assert (folder / 'merges.txt').read_text() == 'merges.txt'
    assert_same(load_policy(folder), policy)
    with pytest.raises(ValueError, match='not a directory'):
        save_policy(policy, tmp_path / 'copy', copy_from=tmp_path / 'absent')


def test_a_tied_head_may_be_stored_but_not_differ(tmp_path):
    both('tied')[0].save_pretrained(tmp_path)
    embedding = 'model.embed_tokens.weight'
    rewrite(
        tmp_path, lambda tensors: tensors.update({'lm_head.weight': tensors[embedding].clone()})
    )
    assert_same(load_policy(tmp_path), both('tied')[1])
    rewrite(tmp_path, lambda tensors: tensors['lm_head.weight'].add_(1))
    with pytest.raises(ValueError, match="'lm_head.weight' differs"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        (
            lambda t: t.pop('visual.blocks.1.attn.qkv.bias'),
            "'visual.blocks.1.attn.qkv.bias' is missing",
        ),
        (lambda t: t.pop('lm_head.weight'), "'lm_head.weight' is missing"),
        (
            lambda t: t.update({'model.visual.extra': torch.ones(2)}),
            "'model.visual.extra' is no part",
        ),
        (
            lambda t: t.update({'model.layers.3.mlp.up_proj.weight': torch.ones(80, 64)}),
            "layers.3.mlp.up_proj.weight' is no part",
        ),
        (
            lambda t: t.update({'lm_head.weight': torch.ones(95, 64)}),
            r"lm_head.weight' has shape \(95, 64\)",
        ),
        (
            lambda t: t.update({'lm_head.weight': torch.ones(64, 96)}),
            r'config.json asks for \(96, 64\)',
        ),
        (
            lambda t: t.update({'lm_head.weight': torch.ones(96, 64, dtype=torch.int8)}),
            'is of type I8',
        ),
        (
            lambda t: t.update({'model.visual.merger.ln_q.weight': torch.ones(48)}),
            "ln_q.weight' is in the checkpoint twice",
        ),
    ],
)
def test_wrong_tensors_are_refused_by_name(folder, change, complaint):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=complaint):
        load_policy(folder)


def test_wrong_directories_are_refused(folder, tmp_path):
    def complaint(text):
        return pytest.raises(ValueError, match=text)

    with complaint('is not a directory'):
        load_policy(tmp_path / 'absent')
    with complaint('no config.json'):
        load_policy(tmp_path)
    edit_config(folder, model_type='qwen2_vl')
    with complaint(
        "'qwen2_vl' is no family of policies that is known; choose from qwen2_5_vl, qwen3"
    ):
        load_policy(folder)
    edit_config(folder, model_type='qwen2_5_vl')
    weights, index = folder / 'model.safetensors', folder / 'model.safetensors.index.json'
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], 'little')])
    last = max(
        (entry['data_offsets'][1], key) for key, entry in header.items() if key != '__metadata__'
    )[1]
    with complaint(f"is truncated: tensor '{last}' is not whole"):
        load_policy(folder)
    weights.write_bytes(whole[:100])
    with complaint('cannot be read as safetensors'):
        load_policy(folder)
    weights.unlink()
    with complaint('neither model.safetensors nor'):
        load_policy(folder)
    index.write_text('[]')
    with complaint('is not an index'):
        load_policy(folder)
    shutil.copy(folder / 'config.json', tmp_path / 'outside.safetensors')
    index.write_text(json.dumps({'weight_map': {'lm_head.weight': '../outside.safetensors'}}))
    with complaint("names the file '../outside.safetensors'"):
        load_policy(folder)


def test_released_and_later_files_of_experts(tmp_path):
    """Released files have an expert's matrices the other way round than those of transformers 5; ours
    are as the released ones."""
    model, policy = both('sparse')
    model.save_pretrained(tmp_path / 'theirs')
    save_policy(policy, tmp_path / 'ours')
    for folder, shape in (('theirs', (6, 48, 40)), ('ours', (6, 40, 48))):
        written = load_file(tmp_path / folder / 'model.safetensors')
        assert written['model.language_model.layers.0.mlp.experts.gate_up_proj'].shape == shape
        assert_same(policy, load_policy(tmp_path / folder))
    mesh = make_mesh({'fsdp': 2, 'expert': 2, 'tensor': 2})
    assert_same(policy, load_policy(tmp_path / 'ours', mesh=mesh))
    assert_same(policy, load_policy(tmp_path / 'theirs', mesh=mesh))


@pytest.mark.parametrize(
    'part, change, complaint',
    [
        ('text_config', {'rope_parameters': {'rope_type': 'default'}}, 'gives no rope_theta'),
        ('text_config', {'attention_bias': True}, 'attention_bias is true'),
        ('text_config', {'mlp_only_layers': [0]}, 'only all layers may have experts'),
        ('text_config', {'moe_intermediate_size': 20}, 'which way round the matrices are'),
        ('text_config', {'num_experts_per_tok': 9}, 'num_experts_per_tok 9 exceeds the 6 experts'),
        ('vision_config', {'deepstack_visual_indexes': [0, 9]}, 'must name blocks of 4'),
        ('vision_config', {'num_position_embeddings': 50}, '50 is no square'),
        ('vision_config', {'hidden_act': 'gelu'}, "hidden_act is 'gelu'"),
    ],
)
def test_what_the_second_family_cannot_be_is_refused(tmp_path, part, change, complaint):
    hf_config('sparse').save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    config[part] |= change
    with pytest.raises(ValueError, match=complaint):
        PolicySizes.from_hf(config)


def test_both_spellings_of_the_towers_type_are_read():
    """Released files call it by the policy's type, transformers 5 by its own."""
    config = hf_config('deep').to_dict()
    read = PolicySizes.from_hf(config)
    config['vision_config']['model_type'] = 'qwen3_vl'
    assert PolicySizes.from_hf(config) == read and read.vision.position_side == 12
