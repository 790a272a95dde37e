"""A saved policy is a whole one: transformers reads its processor, and its template gives the ids
of the training."""

import json

import numpy as np
import pytest
from tiny_policies import both, noise_picture
from transformers import AutoProcessor, GenerationConfig
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.utils import is_torchvision_available

from sensesearch_jax.agent.actions import Answer, ImageCrop, TextSearch
from sensesearch_jax.agent.chat_template import CHAT_TEMPLATE, ChatTokenizer
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.hf_checkpoint import save_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.processor_files import companions
from sensesearch_jax.pocket.pretraining.train_tokenizer import train_tokenizer

# As the released Qwen2.5-VL has it, in short: a system turn of its own, and roles as they come.
RELEASED_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part.text }}{% endif -%}
{%- endfor %}{% endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
TEXTS = [
    DEFAULT.system_prompt(TOOLS),
    DEFAULT.render_action('I crop it.', ImageCrop((0.1, 0.2, 0.4, 0.5))),
] * 3
SETTINGS = {
    'image_processor_type': 'Qwen2VLImageProcessor',
    'size': {'shortest_edge': 3136, 'longest_edge': 50_000},
}


@pytest.fixture
def source(tmp_path):
    """A directory as a released Qwen2.5-VL is laid out, with its template."""
    folder = tmp_path / 'source'
    train_tokenizer(TEXTS, folder, vocab_size=600)
    config = json.loads((folder / 'tokenizer_config.json').read_text())
    (folder / 'tokenizer_config.json').write_text(
        json.dumps(config | {'chat_template': RELEASED_TEMPLATE, 'extra': 1})
    )
    (folder / 'chat_template.json').write_text(json.dumps({'chat_template': RELEASED_TEMPLATE}))
    (folder / 'preprocessor_config.json').write_text(json.dumps(SETTINGS))
    generation = {'do_sample': True, 'eos_token_id': [1, 2], 'pad_token_id': 1, 'top_p': 0.5}
    (folder / 'generation_config.json').write_text(json.dumps(generation))
    return folder


@pytest.fixture
def auto(monkeypatch):
    """AutoProcessor.from_pretrained with the PIL image processor; the one for videos needs
    torchvision."""
    if not is_torchvision_available():
        without_videos = staticmethod(lambda: ['image_processor', 'tokenizer'])
        monkeypatch.setattr(Qwen2_5_VLProcessor, 'get_attributes', without_videos)
    return lambda folder: AutoProcessor.from_pretrained(folder, use_fast=False)


def conversation(*pictures):
    """The same for transformers and for the rollouts' tokenizer."""
    parts = [
        ['Look: ', pictures[0], 'Which flag is it?'],
        ['Image 2:', pictures[1]],
        ['1. Chad: Capital'],
    ]
    calls = ImageCrop((0.1, 0.2, 0.4, 0.5)), TextSearch('Chad capital')
    messages = [
        {'role': 'system', 'content': DEFAULT.system_prompt(TOOLS)},
        {'role': 'user', 'content': parts[0]},
    ]
    for call, seen in zip(calls, parts[1:]):
        messages += [
            {'role': 'assistant', 'content': DEFAULT.render_action('I look.', call)},
            {'role': 'tool', 'content': seen},
        ]
    messages += [
        messages[-1],
        {'role': 'assistant', 'content': DEFAULT.render_action('So.', Answer('Paris'))},
    ]
    return messages


def written(messages):
    """Parts as transformers reads them."""

    def part(one):
        return (
            {'type': 'text', 'text': one}
            if isinstance(one, str)
            else {'type': 'image', 'image': one}
        )

    def parts(content):
        return content if isinstance(content, str) else list(map(part, content))

    return [{**message, 'content': parts(message['content'])} for message in messages]


@pytest.mark.parametrize('nested', [False, True])
def test_the_processor_of_a_saved_policy_gives_the_ids_and_patches_of_the_training(
    source, tmp_path, auto, nested
):
    # as transformers 5 writes it, with a template that would go before the file of its own
    if nested:
        processor = {
            'processor_class': 'Qwen2_5_VLProcessor',
            'image_processor': SETTINGS,
            'chat_template': 'x',
            'video_processor': SETTINGS | {'video_processor_type': 'Qwen2VLVideoProcessor'},
        }
        (source / 'processor_config.json').write_text(json.dumps(processor))
        (source / 'preprocessor_config.json').unlink()
    save_policy(both('untied')[1], tmp_path / 'saved', copy_from=source)
    processor = auto(tmp_path / 'saved')
    preprocessor = Preprocessor.read(tmp_path / 'saved')
    assert preprocessor == Preprocessor.read(source) and preprocessor.max_pixels == 50_000
    pictures = noise_picture(200, 120, 1), noise_picture(90, 60, 2)
    refs = [ImageRef(str(i), *picture.size) for i, picture in enumerate(pictures)]
    for generate in (False, True):
        batch = processor.apply_chat_template(
            written(conversation(*pictures)),
            tokenize=True,
            return_dict=True,
            add_generation_prompt=generate,
        )
        chat = ChatTokenizer(tmp_path / 'saved', preprocessor.merged_tokens)
        assert np.ravel(batch['input_ids']).tolist() == chat.render(conversation(*refs), generate)
    patches = np.concatenate([preprocessor.patches(picture)[0] for picture in pictures])
    np.testing.assert_array_equal(np.asarray(batch['pixel_values']), patches)
    stops = GenerationConfig.from_pretrained(tmp_path / 'saved')
    assert stops.eos_token_id == list(chat.stop_ids) and stops.top_p == 0.5


def test_a_template_that_renders_as_the_rollouts_do_stays(source, tmp_path):
    kept = CHAT_TEMPLATE + '{#- a comment of its own -#}'
    (source / 'chat_template.json').unlink()
    (source / 'chat_template.jinja').write_text(kept)
    files = companions(source)
    assert files['chat_template.jinja'].decode() == kept
    assert json.loads(files['tokenizer_config.json'])['chat_template'] == kept
    assert json.loads(files['tokenizer_config.json'])['extra'] == 1


@pytest.mark.parametrize('own', [RELEASED_TEMPLATE, '{% if %}', '{{ messages + 1 }}', None])
def test_other_templates_give_way_to_that_of_the_training(source, own):
    (source / 'chat_template.json').unlink()
    config = json.loads((source / 'tokenizer_config.json').read_text()) | {'chat_template': own}
    (source / 'tokenizer_config.json').write_text(json.dumps(config))
    files = companions(source)
    assert (
        files['chat_template.jinja'].decode() == CHAT_TEMPLATE and 'chat_template.json' not in files
    )
    assert json.loads(files['tokenizer_config.json'])['chat_template'] == CHAT_TEMPLATE


def test_saving_in_place_leaves_no_template_that_would_go_before(source):
    save_policy(both('untied')[1], source, copy_from=source)
    assert not (source / 'chat_template.json').exists()
    assert (source / 'chat_template.jinja').read_text() == CHAT_TEMPLATE


def test_files_that_cannot_be_read_are_told(source):
    (source / 'generation_config.json').write_text('{')
    with pytest.raises(UserError, match='generation_config.json is not JSON'):
        companions(source)
