"""Flags that can be joined to a place and told apart, drawn from vector paths."""

import io
import json
import re
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use('Agg')
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as VectorPath

from sensesearch_jax.pocket.world.make_files.places import place_facts, place_name

FLAG_SIZE = (360, 270)
# Flags that cannot be told apart in a small picture: both are left out, so that a question has one
# right answer.
CONFUSABLE = ({'ID', 'MC'}, {'RO', 'TD'}, {'NL', 'LU'}, {'IE', 'CI'})
# Flags that are another place's flag: the place it belongs to comes first and is kept.
SHARED = (('FR', 'BL', 'MF', 'PM', 'WF'), ('AU', 'HM'), ('NO', 'SJ', 'BV'), ('US', 'UM'))


def draw_flag(arrays, code: str) -> Image.Image:
    """One flag from its vector paths (viewbox 480 x 360), anti-aliased by drawing it larger."""
    scale, (width, height) = 3, FLAG_SIZE
    figure = Figure(figsize=(width * scale / 100, height * scale / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 480), ylim=(0, 360))
    axes.axis('off')
    cuts = arrays[f'{code}_split_index']
    for vertices, codes, colour in zip(
        np.split(arrays[f'{code}_vertices'], cuts),
        np.split(arrays[f'{code}_codes'], cuts),
        arrays[f'{code}_facecolors'],
    ):
        axes.add_patch(PathPatch(VectorPath(vertices, codes), facecolor=colour, edgecolor='none'))
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor='white')
    return Image.open(buffer).convert('RGB').resize(FLAG_SIZE, Image.Resampling.LANCZOS)


def make_flags(
    wheel: zipfile.ZipFile, places: dict, texts: dict[str, str], folder: Path
) -> list[dict]:
    """Draws the flags that can be joined to a place and told apart; returns their entity records.

    Args:
        wheel: of mpl-flags.
        places: Factbook code -> record.
        texts: passage id -> text.
        folder: that gets the pictures.
    """
    arrays = np.load(io.BytesIO(wheel.read('mpl_flags/data/flags_4x3.npz')))
    codes = sorted(json.loads(wheel.read('mpl_flags/data/flags_4x3.json')))
    by_domain = {}
    for code, place in places.items():
        domain = re.search(
            r'\.([a-z]{2})\b',
            place.get('Communications', {}).get('Internet country code', {}).get('text', ''),
        )
        if domain:
            by_domain.setdefault({'uk': 'gb'}.get(domain[1], domain[1]), []).append(code)
    # AQ, EU: no country's flag
    left_out = set().union(*CONFUSABLE, *(set(group[1:]) for group in SHARED), {'AQ', 'EU'})
    records, thumbs = [], {}
    for iso in codes:
        joined = by_domain.get(iso.lower(), [])
        if iso in left_out or len(joined) != 1:
            continue
        picture = draw_flag(arrays, iso)
        thumb = np.asarray(picture.resize((48, 36), Image.Resampling.BOX), np.float32)
        twin = next(
            (other for other, seen in thumbs.items() if np.abs(seen - thumb).mean() < 3), None
        )
        if twin:
            print(f'flag {iso} left out: looks like {twin}')
            continue
        known = place_facts(joined[0], places[joined[0]], texts)
        if len(known['facts']) < 2:
            print(f'flag {iso} left out: fewer than two facts')
            continue
        thumbs[iso] = thumb
        name = place_name(joined[0], places[joined[0]])
        file = f'gallery/flag-{iso.lower()}.png'
        picture.quantize(128, dither=Image.Dither.NONE).save(folder / file, optimize=True)
        noun = (
            'territory'
            if 'Dependency status' in places[joined[0]].get('Government', {})
            else 'country'
        )
        records.append(
            {
                'id': f'flag-{iso.lower()}',
                'kind': 'flag',
                'title': f'Flag of {name}',
                'subject': name,
                'noun': noun,
                'group': iso,
                'file': file,
                'size': picture.size,
                **known,
            }
        )
    return records
