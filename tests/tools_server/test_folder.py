"""The folder of pictures: removed files come back, a size limit that spares what is in use, nothing
half written."""

import hashlib
import io
import os
import time
from pathlib import Path

import pytest
from picture_bombs import saved
from PIL import Image
from small_world import encoded, picture

from tools_server.backend_config import LocalImages
from tools_server.backends.image_local import LocalImageSearch
from tools_server.config import ConfigError, ImageStoreConfig
from tools_server.failures import ToolError
from tools_server.images import ImageStore
from tools_server.pictures import folder as module
from tools_server.pictures.folder import PictureFolder


@pytest.fixture
def store(tmp_path):
    store = ImageStore(ImageStoreConfig(directory=tmp_path / 'images'))
    yield store
    store.close()


def remove_all(folder: Path, *, only: str = ''):
    for path in folder.glob('*/*'):
        if path.name.endswith(only):
            path.unlink()


@pytest.mark.parametrize('only', ['', '.json'])
def test_a_picture_that_was_removed_is_taken_again(store, tmp_path, only):
    """Somebody cleans the folder while the server runs: it must not go on believing that it has the
    files."""
    data = encoded(picture(1))
    image = store.add(data)[0]
    part = store.crop(image.sha256, (0.0, 0.0, 0.5, 0.5))[0]
    remove_all(tmp_path / 'images', only=only)
    for name in (image.sha256, part.sha256):
        with pytest.raises(ToolError) as error:
            store.get(name)
        assert error.value.status == 404
    assert store.add(data)[0] == image and store.get(image.sha256).encoded() == data
    assert (
        store.crop(image.sha256, (0.0, 0.0, 0.5, 0.5))[0] == part
        and store.get(part.sha256).pixels().any()
    )


def test_thumbnails_of_the_gallery_come_back(store, tmp_path, world):
    search = LocalImageSearch(LocalImages.model_validate(
        {'backend': 'local', 'gallery': str(world / 'gallery.jsonl'), 'min_similarity': 0.9}), store)  # fmt: skip
    image = store.add(encoded(picture(3)))[0]
    before = search.search(image, 1)
    remove_all(tmp_path / 'images')
    image = store.add(encoded(picture(3)))[0]
    assert search.search(image, 1) == before and store.get(before[0].thumbnail.sha256).encoded()


def keep(folder, number, size=1000):
    data = bytes([number]) * size
    name = hashlib.sha256(data).hexdigest()
    folder.write(name, data, {'width': 1, 'height': 1})
    return name


def age(folder, name, seconds):
    path = folder._path(name)
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_oldest_go_first_and_nothing_that_is_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'PAUSE_S', 0.0)
    folder = PictureFolder(tmp_path, max_bytes=11_000, keep_s=3600)
    names = [keep(folder, number) for number in range(10)]
    for number, name in enumerate(names):
        age(folder, name, 7200 - number if number < 6 else 60)
    assert folder.has(names[0])  # which counts as a use
    last = keep(folder, 10)
    kept = [name for name in (*names, last) if folder.has(name)]
    assert names[1] not in kept and {names[0], *names[6:], last} <= set(kept)
    assert (
        sum(path.stat().st_size for path in tmp_path.glob('*/*')) <= 11_000
        and folder.statistics()['removed']
    )


def test_a_folder_full_of_what_is_in_use_takes_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'PAUSE_S', 0.0)
    folder = PictureFolder(tmp_path, max_bytes=5_600, keep_s=3600)
    names = [keep(folder, number) for number in range(5)]
    with pytest.raises(ToolError) as error:
        keep(folder, 5)
    assert error.value.kind == 'unavailable' and 'images.folder_bytes' in error.value.message
    assert all(folder.has(name) for name in names)
    age(folder, names[2], 7200)
    assert folder.has(keep(folder, 5)) and not folder.has(names[2])


def test_another_server_with_the_same_folder_sees_what_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'PAUSE_S', 0.0)
    mine, theirs = (PictureFolder(tmp_path, max_bytes=4_000, keep_s=3600) for _ in range(2))
    names = [keep(mine, number) for number in range(3)]
    for name in names:
        age(mine, name, 7200)
    assert theirs.has(names[1])
    keep(mine, 3)
    assert mine.has(names[1]) and not mine.has(names[0])


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    folder = PictureFolder(tmp_path, max_bytes=10**6, keep_s=3600)

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module.os, 'replace', full)
    with pytest.raises(ToolError) as error:
        keep(folder, 1)
    assert error.value.kind == 'unavailable' and 'No space left' in error.value.message
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
    monkeypatch.undo()
    left = tmp_path / 'ab' / f'{module.PART}x'
    left.parent.mkdir()
    left.write_bytes(b'half')
    os.utime(left, (0, 0))
    keep(folder, 1)
    folder._remove_old(0)
    assert not left.exists()


def test_an_unusable_folder_gives_a_sentence(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(
        ConfigError, match=r'images\.directory: .*file.* cannot be used: .*; give a folder'
    ):
        ImageStore(ImageStoreConfig(directory=tmp_path / 'file'))


def jpeg_with_a_place():
    exif = Image.Exif()
    exif[0x010E] = 'a secret description'
    exif.get_ifd(0x8825)[1] = 'N'
    return (
        saved(Image.fromarray(picture(1)), 'JPEG', exif=exif, comment=b'secret', quality=95)
        + b'secret film'
    )


def test_what_others_fetch_shows_neither_place_nor_text(store):
    for data in (jpeg_with_a_place(), encoded(picture(1))):
        image = store.add(data)[0]
        assert image.encoded() == data  # kept as it came
        shown = store.bare(image.sha256)
        assert b'secret' not in shown and b'Exif' not in shown
        assert (Image.open(io.BytesIO(shown)).size) == (360, 270)
        assert store.add(shown)[0].pixels().tobytes() == image.pixels().tobytes()
