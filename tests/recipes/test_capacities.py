"""Prompts, pictures and responses beside the sampler's room: told before any work, and followed by
a single question."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from toy_policy import by_chance

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.config.checks import check
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.recipes import ask, capacities
from sensesearch_jax.recipes.capacities import feature_cache_bytes, room_for
from sensesearch_jax.recipes.session import load_policy_directory, save_policy_directory
from sensesearch_jax.runtime.machine import host_memory
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.workdir import Workdir

CONFIGS = Path(__file__).parents[2] / 'configs'


def load(folder, config):
    return load_policy_directory(folder, config, make_mesh(config.mesh), 'float32')


def config_of(name, policy, **fields):
    config = runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config']()
    config.policy = str(policy)
    config.update_from_flattened_dict(
        {field.replace('__', '.'): value for field, value in fields.items()}
    )
    return config


@pytest.mark.parametrize('name', ['evaluate', 'rl', 'cold_start', 'pocket'])
def test_capacities_as_they_come_need_no_word(name, capsys):
    check(config_of(name, ''))
    assert capsys.readouterr().err == ''


def test_pictures_that_would_be_left_out_are_told_before_any_work(policy_folder, capsys):
    chat = ChatTokenizer(policy_folder, None)
    around = len(chat.prompt(DEFAULT.system_prompt(TOOLS), [''])) + 2
    check(config_of('evaluate', policy_folder, max_pixels=12_845_056))
    prompts, crops = capsys.readouterr().err.splitlines()
    assert (
        f'a picture of max_pixels 12845056 is 16384 tokens, which with {around} of the prompt'
        in prompts
    )
    assert (
        'rollout.prompt_capacity 416' in prompts
        and f'rollout.prompt_capacity above {around + 16384}' in prompts
    )
    assert 'a crop of max_pixels 12845056' in crops and 'rollout.suffix_capacity 1152' in crops
    # With what is advised there is nothing to say.
    check(
        config_of(
            'evaluate',
            policy_folder,
            max_pixels=12_845_056,
            rollout__prompt_capacity=around + 16384,
            rollout__suffix_capacity=17_000,
        )
    )
    check(config_of('evaluate', policy_folder, max_pixels=(416 - around) * 28 * 28))
    assert capsys.readouterr().err == ''


def test_capacities_that_hold_no_prompt_are_refused(policy_folder):
    with pytest.raises(
        UserError, match='rollout.prompt_capacity 64 holds no prompt at all.*raise it'
    ):
        check(config_of('evaluate', policy_folder, rollout__prompt_capacity=64))
    with pytest.raises(
        UserError, match='min_pixels, max_pixels: min_pixels 90000 and max_pixels 100 leave no size'
    ):
        check(config_of('evaluate', policy_folder, min_pixels=90_000, max_pixels=100))


def test_the_7b_configs_keep_the_papers_pictures():
    for task in ('sft', 'rl', 'evaluate'):
        config = config_of(f'{task}_7b', '')
        assert (config.min_pixels, config.max_pixels) == (65_536, 8_294_400)


def test_a_run_s_pixels_are_the_policy_s_that_it_writes(policy_folder, tmp_path):
    own = load(policy_folder, config_of('sft', policy_folder))
    assert own.preprocessor == Preprocessor.read(policy_folder)
    loaded = load(policy_folder, config_of('sft', policy_folder, max_pixels=28 * 28 * 6))
    assert (
        loaded.preprocessor.max_pixels == 28 * 28 * 6
        and loaded.preprocessor.min_pixels == own.preprocessor.min_pixels
    )
    assert (
        loaded.chat.visual_tokens(1000, 1000) == loaded.preprocessor.merged_tokens(1000, 1000) <= 6
    )
    (tmp_path / 'policy').mkdir()
    nested = {
        'image_processor': {'size': {'shortest_edge': 1, 'longest_edge': 2}},
        'processor_class': 'x',
    }
    (tmp_path / 'policy' / 'processor_config.json').write_text(json.dumps(nested))
    save_policy_directory(loaded.policy, loaded, tmp_path / 'policy', 'float32')
    assert Preprocessor.read(tmp_path / 'policy') == loaded.preprocessor
    written = json.loads((tmp_path / 'policy' / 'processor_config.json').read_text())
    assert written['image_processor']['size'] == {
        'shortest_edge': own.preprocessor.min_pixels,
        'longest_edge': 28 * 28 * 6,
    }
    assert written['processor_class'] == 'x'


def test_ask_has_room_for_a_long_question(policy_folder, tmp_path, monkeypatch, capsys):
    """Longer than any prompt of the pocket runs; its turns and crops have room as well."""
    monkeypatch.setattr(Environment, 'parse', by_chance)
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    question = 'What is the capital of the country whose flag is in the picture? ' * 12
    config = config_of(
        'ask',
        policy_folder,
        image=str(tmp_path / 'a.png'),
        question=question,
        agent__turn_tokens=4,
        agent__max_turns=2,
        rollout__chunk=4,
        rollout__extend_lanes=1,
        rollout__suffix_capacity=256,
    )
    assert 'prompt_capacity' not in config.rollout
    check(config)
    with Workdir.open(tmp_path / 'run', config) as workdir:
        ask.run(config, workdir)
    said = capsys.readouterr().out
    assert '── turn 1 ──' in said and 'too_long' not in said
    loaded, config.rollout.suffix_capacity = load(policy_folder, config), 16
    image = ImageRef('0' * 64, 600, 400)
    prompt = len(loaded.chat.prompt(DEFAULT.system_prompt(TOOLS), [image, question]))
    room = room_for(prompt, [image], config, loaded.chat, loaded.preprocessor)
    response = loaded.chat.observation(['Image 2:', image])
    assert (
        prompt > 416
        and prompt <= room.prompt < prompt + 128
        and room.suffix >= len(response) + 2 * 4 > 16
    )


def test_the_feature_cache_fits_the_config(policy_folder, monkeypatch):
    """One picture of the largest size for each question of a step, twice; not more than half of the
    host's memory."""
    gib = 1 << 30
    config = config_of('rl_7b', policy_folder)
    loaded = load(policy_folder, config)

    def wanted(config, replicas=1):
        return feature_cache_bytes(config, loaded.policy, loaded.preprocessor, replicas)

    monkeypatch.setattr(capacities, 'host_memory', lambda: 1 << 50)
    each = 8_294_400 // 28**2 * loaded.policy.sizes.language.width * 4
    assert wanted(config) == max(gib, 2 * 128 * each)
    config.rl.questions_per_step = 12_800
    assert wanted(config) == 2 * 12_800 * each > gib
    evaluation = config_of('evaluate_7b', policy_folder, evaluate__lanes=1600)
    assert wanted(evaluation, 4) == 2 * 4 * 1600 * each > gib
    monkeypatch.setattr(capacities, 'host_memory', lambda: 6 * gib)
    assert wanted(config) == 3 * gib
    config.rollout.feature_cache_gib = 7.5
    assert wanted(config) == 7.5 * gib
    config = config_of('sft', policy_folder)  # a few small pictures
    assert wanted(config) == gib
    sizes = loaded.policy.sizes.adapted('qwen3_vl')  # with what deepstack adds
    wide = SimpleNamespace(sizes=sizes, language=loaded.policy.language)
    config = config_of('rl_7b', policy_folder, rl__questions_per_step=12_800)
    monkeypatch.setattr(capacities, 'host_memory', lambda: 1 << 50)
    kept = feature_cache_bytes(config, wide, loaded.preprocessor, 1)
    assert kept == 2 * 12_800 * each * (1 + len(sizes.vision.deepstack_blocks)) > 2 * 12_800 * each
    with pytest.raises(UserError, match='rollout.feature_cache_gib is -1.0; give 0'):
        check(config_of('evaluate', policy_folder, rollout__feature_cache_gib=-1.0))
    assert 2**28 < host_memory() < 2**50
