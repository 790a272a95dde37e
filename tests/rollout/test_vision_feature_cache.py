"""Features of pictures: encoded once, kept within bounds, and freed with what was not shown."""

import functools
import io

import numpy as np
import pytest
from acts_by_chance import PREPROCESSOR, by_chance
from PIL import Image
from scripted_tools import DOWN, ScriptedTools, noise_file
from small_policies import small_policy

from sensesearch_jax.agent.actions import ImageSearch
from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore


def test_pictures_are_encoded_once(store_for, questions):
    """A store gives each picture's features whatever came before, and again after they had to go."""
    client = ScriptedTools()
    refs = [client.upload(q.images[0]) for q in questions]
    store = store_for(client)
    first = store.table([*refs, refs[0]])
    assert store.images_encoded == store.distinct_images == 4
    store.table(refs)
    assert store.images_encoded == 4 and len([c for c in client.calls if c[0] == 'image']) == 4
    tight = store_for(client, capacity_bytes=1)
    alone = [tight.table([ref]) for ref in refs]
    assert tight.table([refs[0]]).features.keys() == {refs[0].sha256} and tight.images_encoded == 5
    for ref, table in zip(refs, alone, strict=True):
        assert np.allclose(table.features[ref.sha256], first.features[ref.sha256], atol=1e-5)
        assert table.grids == {ref.sha256: PREPROCESSOR.grid(ref.width, ref.height)}
    with pytest.raises(ValueError, match='cannot be fetched'):
        store_for(ScriptedTools(fails=lambda *_: DOWN)).table(refs[:1])


def test_what_deepstack_adds_is_kept_and_counted_beside_the_features(questions):
    """Three vectors a token in a tower of two deepstack mergers."""
    policy = small_policy(family='qwen3_vl')
    sizes = policy.sizes
    client = ScriptedTools()
    refs = [client.upload(q.images[0]) for q in questions]
    store = FeatureStore(policy, PREPROCESSOR, client, capacity_bytes=1 << 20, batch=2)
    features = store.table(refs).features
    for ref in refs:
        tokens = PREPROCESSOR.merged_tokens(ref.width, ref.height)
        assert features[ref.sha256].shape == (tokens, 3 * sizes.language.width)
        own, first, second = np.split(features[ref.sha256], 3, axis=-1)
        assert np.abs(own - first).max() > 0.01 and np.abs(first - second).max() > 0.01
    assert store.step_bytes == sum(f.nbytes for f in features.values())


def test_what_a_step_wants_stays_if_it_fits(store_for, questions, capsys):
    """Also what an earlier step has left behind and this one has only got ready so far; and a store
    too small says so."""
    client = ScriptedTools()
    a, b, c, d = [client.upload(q.images[0]) for q in questions]
    sizes = {
        ref: PREPROCESSOR.merged_tokens(ref.width, ref.height) * 32 * 4 for ref in (a, b, c, d)
    }
    store = store_for(client, capacity_bytes=sum(sizes.values()) - 1)  # one of them has to go
    store.begin_step()
    for ref in (a, b, c):
        store.table([ref])
    store.begin_step()
    assert store.prepare(a) is None  # a question about it is about to be asked
    store.table([d])
    store.table([a, c, d])
    assert (store.images_encoded, store.encoded_again) == (4, 0) and capsys.readouterr().err == ''
    assert store.step_bytes == sizes[a] + sizes[c] + sizes[d]
    for ref in (b, a, c, d):  # in turn: each comes when it has just gone
        store.table([ref])
    assert store.encoded_again == 3 and store.images_encoded == 8
    said = capsys.readouterr().err
    assert (
        said.count('rollout.feature_cache_gib') == 1
        and 'Set it to more.' in said
        and said.count('\n') == 1
    )
    store.begin_step()
    store.table([b])
    assert store.encoded_again == 0


def test_patches_of_what_was_not_shown_are_freed(run, engine, questions, monkeypatch):
    """Of lanes that end before their tool's answer: it has no room, or its second picture is gone."""
    monkeypatch.setattr(engine, 'suffix_capacity', 256 - engine.chunk)
    _, _, features, _ = run(
        ScriptedTools(), act=functools.partial(by_chance, answers=False), max_turns=50
    )
    assert not features._patches
    tools = ScriptedTools()

    def gone(method, what):
        return DOWN if method == 'image' and tools._open(what).size == (56, 56) else None

    tools.fails = gone  # the second thumbnail
    groups, _, features, _ = run(
        tools, act=lambda text: ImageSearch(1), max_turns=3, asked=questions[:1]
    )
    assert all(t.state is SampleState.INFRA_FAILED and len(t.images) == 1 for t in groups[0])
    assert not features._patches


def test_places_left_in_a_pass_are_filled_with_what_comes_next(store_for, tmp_path, monkeypatch):
    """Later pictures of like size ride along and are not computed again; one that is gone stops
    nobody."""
    client, paths = ScriptedTools(), [tmp_path / f'{i}.png' for i in range(5)]
    for i, path in enumerate(paths):
        noise_file(path, *((84, 56) if i < 4 else (280, 224)), i)
    *alike, other = [client.upload(str(path)) for path in paths]
    store, plain = store_for(client, batch=4), store_for(client)
    store.table(alike[:2], ahead=[alike[0], *alike[2:], other])
    assert store.images_encoded == len(alike) and store.distinct_images == 2
    found, wanted = store.table(alike), plain.table(alike)
    assert store.images_encoded == store.distinct_images == len(alike)
    for ref in alike:
        assert np.allclose(found.features[ref.sha256], wanted.features[ref.sha256], atol=1e-5)
    store.clear()
    prepare = store.prepare
    monkeypatch.setattr(
        store, 'prepare', lambda image: DOWN if image == alike[2] else prepare(image)
    )
    assert len(store.table(alike[:2], ahead=alike[2:]).features) == 2
    assert store.images_encoded == 2 * len(alike) - 1
    assert store.encoded_again == 0  # for another tower, and not for lack of room


def test_warm_up_compiles_the_tower_for_every_form_of_picture(policy, tmp_path):
    client = ScriptedTools()
    store = FeatureStore(policy, PREPROCESSOR, client, capacity_bytes=1 << 30, batch=2)
    store.warm_up()
    compiled = store.compiles
    sizes = [
        (28, 28),
        (28, 1400),
        (1400, 28),
        (84, 56),
        (300, 300),
        (56, 280),
        (170, 90),
        (28, 300),
        (300, 28),
        (1000, 800),
    ]
    refs = [client.upload(noise_file(tmp_path / f'{w}x{h}.png', w, h, 1)) for w, h in sizes]
    store.table(refs)
    for ref in refs:
        store.clear()
        store.table([ref])
    assert store.compiles == compiled > 3


def test_turned_photographs_are_turned_back(store_for, tmp_path):
    """The orientation tag is applied, so that boxes and patches share one frame."""
    upright = Image.open(noise_file(tmp_path / 'a.png', 84, 56, 1))
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # stored on its side
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, 'PNG', exif=exif)
    client = ScriptedTools()
    ref = client.upload(str(tmp_path / 'a.png'))
    plain = store_for(client).table([ref])
    client._files[ref.sha256] = turned.getvalue()
    again = store_for(client).table([ref])
    assert np.allclose(plain.features[ref.sha256], again.features[ref.sha256], atol=1e-5)
