"""Patches equal those of transformers' image processor bit by bit, for every size and mode of
picture."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

from sensesearch_jax.errors import UserError
from sensesearch_jax.model.image_processor import Preprocessor, smart_resize, to_rgb


def noise(width, height, mode='RGB', seed=0):
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode=mode)


def reference_processor(preprocessor):
    return reference.Qwen2VLImageProcessorPil(
        min_pixels=preprocessor.min_pixels,
        max_pixels=preprocessor.max_pixels,
        patch_size=preprocessor.patch_size,
        merge_size=preprocessor.merge_size,
        temporal_patch_size=preprocessor.temporal_patch_size,
        image_mean=list(preprocessor.image_mean),
        image_std=list(preprocessor.image_std),
    )


def assert_same_patches(preprocessor, image):
    patches, grid = preprocessor.patches(image)
    theirs = reference_processor(preprocessor)(image, return_tensors='np')
    assert grid == tuple(theirs['image_grid_thw'][0]) == preprocessor.grid(*image.size)
    assert patches.dtype == np.float32 and patches.flags['C_CONTIGUOUS']
    np.testing.assert_array_equal(patches, theirs['pixel_values'])
    assert preprocessor.merged_tokens(*image.size) == len(patches) // preprocessor.merge_size**2


@pytest.mark.parametrize(
    'size', [(448, 252), (28, 28), (1, 1), (5, 700), (333, 97), (640, 479), (1999, 10)]
)
@pytest.mark.parametrize('max_pixels', [28 * 28 * 16, 112_896])
def test_patches_equal_the_reference(size, max_pixels):
    assert_same_patches(Preprocessor(max_pixels=max_pixels), noise(*size))


@pytest.mark.parametrize(
    'preprocessor',
    [
        Preprocessor(patch_size=8, merge_size=3, max_pixels=50_000),
        Preprocessor(temporal_patch_size=1, merge_size=1),
        # as released for Qwen3-VL
        Preprocessor(65_536, 16_777_216, 16, image_mean=(0.5,) * 3, image_std=(0.5,) * 3),
        Preprocessor(image_mean=(0.1, 0.2, 0.3), image_std=(0.9, 0.7, 0.5), min_pixels=100_000),
    ],
)
def test_other_settings_equal_the_reference(preprocessor):
    assert_same_patches(preprocessor, noise(301, 187))


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'CMYK', 'YCbCr'])
def test_other_modes_equal_the_reference(mode):
    assert_same_patches(Preprocessor(), noise(60, 90, mode))


def test_palette_and_bilevel_equal_the_reference():
    palette = noise(60, 90).quantize(16)
    assert_same_patches(Preprocessor(), palette)
    palette.info['transparency'] = 3
    assert_same_patches(Preprocessor(), palette)
    assert_same_patches(Preprocessor(), noise(60, 90).convert('1'))


def test_four_k_scene_fits_the_pocket_budget():
    preprocessor = Preprocessor(max_pixels=112_896)
    assert preprocessor.grid(3840, 2160) == (1, 18, 32)
    assert preprocessor.merged_tokens(3840, 2160) == 144
    assert_same_patches(preprocessor, noise(3840, 2160))


def test_transparency_lies_on_white():
    clear = Image.new('RGBA', (40, 40), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((5, 5)) == (255, 255, 255)


def test_deep_grey_keeps_its_shades():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(ramp)))[..., 0], ramp >> 8)
    assert np.array_equal(
        np.asarray(to_rgb(Image.fromarray(ramp.astype(np.int32))))[..., 1], ramp >> 8
    )
    shallow = (ramp >> 8).astype(np.int32)
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(shallow)))[..., 2], shallow)
    unit = Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    assert np.asarray(to_rgb(unit)).max() == 255 and 100 < np.asarray(to_rgb(unit)).mean() < 150


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 9000),
    width=st.integers(1, 9000),
    factor=st.sampled_from([14, 28, 32]),
    budget=st.tuples(st.integers(1, 20_000), st.integers(0, 13_000_000)),
)
def test_smart_resize_equals_the_reference(height, width, factor, budget):
    low, high = budget[0], budget[0] + budget[1]
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match='aspect ratio'):
            smart_resize(height, width, factor, low, high)
    else:
        assert smart_resize(height, width, factor, low, high) == reference.smart_resize(
            height, width, factor, low, high
        )


def test_extreme_shapes_are_refused():
    with pytest.raises(ValueError, match='aspect ratio of 201'):
        Preprocessor().patches(Image.new('RGB', (201, 1)))
    with pytest.raises(ValueError, match='empty'):
        Preprocessor().grid(0, 10)


@pytest.mark.parametrize(
    'written',
    [
        {'min_pixels': 3136, 'max_pixels': 112_896},
        {'size': {'shortest_edge': 3136, 'longest_edge': 112_896}},
        {
            'size': {'shortest_edge': 1, 'longest_edge': 2},
            'min_pixels': 3136,
            'max_pixels': 112_896,
        },
    ],
)
def test_budget_in_either_spelling(tmp_path, written):
    file = tmp_path / 'preprocessor_config.json'
    file.write_text(
        json.dumps(written | {'image_mean': [0.5, 0.5, 0.5], 'resample': 3, 'merge_size': None})
    )
    expected = Preprocessor(min_pixels=3136, max_pixels=112_896, image_mean=(0.5, 0.5, 0.5))
    assert Preprocessor.read(file) == Preprocessor.read(tmp_path) == expected


def test_reads_what_the_reference_writes(tmp_path):
    preprocessor = Preprocessor(max_pixels=90_000, image_std=(0.5, 0.25, 0.125))
    reference_processor(preprocessor).save_pretrained(tmp_path)
    assert Preprocessor.read(tmp_path) == preprocessor


def test_the_file_that_transformers_takes_is_read(tmp_path):
    """processor_config.json, the only file that transformers 5 writes, goes before
    preprocessor_config.json."""
    ours, other = (
        Preprocessor(max_pixels=90_000, image_std=(0.5, 0.25, 0.125)),
        Preprocessor(max_pixels=50_000),
    )
    nested = {'image_processor': json.loads(reference_processor(ours).to_json_string())}
    (tmp_path / 'processor_config.json').write_text(
        json.dumps({'processor_class': 'Qwen2_5_VLProcessor'} | nested)
    )
    assert (
        Preprocessor.read(tmp_path) == Preprocessor.read(tmp_path / 'processor_config.json') == ours
    )
    reference_processor(other).save_pretrained(tmp_path)
    assert (tmp_path / 'preprocessor_config.json').is_file()
    theirs = reference.Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert Preprocessor.read(tmp_path) == ours and theirs.size['longest_edge'] == ours.max_pixels
    # not nested
    (tmp_path / 'processor_config.json').write_text('{"processor_class": "Qwen2_5_VLProcessor"}')
    theirs = reference.Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert Preprocessor.read(tmp_path) == other and theirs.size['longest_edge'] == other.max_pixels
    for text, complaint in (
        ('{', 'not JSON'),
        ('[]', 'no JSON object'),
        ('{"image_processor": 1}', 'no JSON object'),
    ):
        (tmp_path / 'processor_config.json').write_text(text)
        with pytest.raises(UserError, match=complaint):
            Preprocessor.read(tmp_path)


@pytest.mark.parametrize('nested', [True, False])
def test_a_budget_is_written_where_it_is_read(tmp_path, nested):
    """By transformers and here; a processor_config.json that says nothing of images stays as it is."""
    before = Preprocessor(max_pixels=90_000)
    reference_processor(before).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / 'preprocessor_config.json').read_text())
    processor = {'processor_class': 'Qwen2_5_VLProcessor'} | (
        {'image_processor': settings} if nested else {}
    )
    (tmp_path / 'processor_config.json').write_text(json.dumps(processor))
    budget = before.within(4000, 60_000)
    budget.write_budget(tmp_path)
    theirs = reference.Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert Preprocessor.read(tmp_path) == budget
    assert dict(theirs.size) == {'shortest_edge': 4000, 'longest_edge': 60_000}
    assert nested or json.loads((tmp_path / 'processor_config.json').read_text()) == processor


@pytest.mark.parametrize(
    ('text', 'complaint'),
    [
        ('{', 'not JSON'),
        ('{"do_normalize": false}', 'do_normalize'),
        ('{"resample": 2}', 'bicubic'),
        ('{"min_pixels": 5000, "max_pixels": 4000}', 'leave no size'),
        ('{"image_mean": [0.5]}', 'three numbers'),
    ],
)
def test_unusable_files_are_refused(tmp_path, text, complaint):
    file = tmp_path / 'preprocessor_config.json'
    file.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        Preprocessor.read(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match='cannot read'):
        Preprocessor.read(tmp_path / 'absent')


def test_cutting_is_cheap():
    preprocessor, image = Preprocessor(max_pixels=112_896), noise(448, 252)
    best = min(timed(preprocessor.patches, image) for _ in range(20))
    assert best < 0.02  # about 2 ms when the machine is idle


def timed(function, argument):
    start = time.perf_counter()
    function(argument)
    return time.perf_counter() - start
