"""Published training sets and benchmarks by name, each read from the files that its authors publish.

A set is a class with `name`, `splits`, `record` and so on (see `set_base.PublishedSet`), which is also
its tensorflow-datasets builder. docs/published_sets.md lists them all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sensesearch_jax.errors import UserError

if TYPE_CHECKING:
    from sensesearch_jax.data.published.set_base import PublishedSet

# name -> module of this package and class in it; imported when a set is asked for
_CLASSES = {
    'fvqa': ('fvqa', 'Fvqa'),
    'pixel_reasoner': ('pixel_reasoner', 'PixelReasoner'),
    'deepeyes_4k': ('mini_o3', 'DeepEyes4k'),
    'visual_probe': ('mini_o3', 'VisualProbe'),
    'sensenova_mars': ('sensenova_mars', 'SensenovaMars'),
    'hr_mmsearch': ('hr_mmsearch', 'HrMmsearch'),
    'mmsearch': ('mmsearch', 'Mmsearch'),
    'mmsearch_all': ('mmsearch', 'MmsearchAll'),
    'infoseek': ('infoseek', 'Infoseek'),
    'infoseek_val': ('infoseek', 'InfoseekVal'),
    'simple_vqa': ('simple_vqa', 'SimpleVqa'),
    'livevqa': ('livevqa', 'Livevqa'),
    'mat_search': ('mat_search', 'MatSearch'),
    'vstar': ('vstar', 'Vstar'),
    'vstar_published_order': ('vstar', 'VstarPublishedOrder'),
    'hr_bench_4k': ('hr_bench', 'HrBench4k'),
    'hr_bench_8k': ('hr_bench', 'HrBench8k'),
    'mme_realworld': ('mme_realworld', 'MmeRealworld'),
}
NAMES = tuple(_CLASSES)


def published_set(name: str) -> type[PublishedSet]:
    """The set of a name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in _CLASSES:
        raise UserError(f'there is no published set {name!r}; choose from {", ".join(NAMES)}')
    module, kind = _CLASSES[name]
    return getattr(importlib.import_module(f'{__name__}.{module}'), kind)
