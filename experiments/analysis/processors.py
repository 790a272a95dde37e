"""Our patches beside those of transformers' two image processors, in levels of 0 to 255.

The one on PIL gives the same to the last bit. The one on torchvision, which transformers takes
where torchvision is installed, resizes in another precision: a policy served with it sees other
pixels than it was trained on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from sensesearch_jax.model.image_processor import Preprocessor


class Difference(NamedTuple):
    """`share` of the pixels that differ in any colour, and by how many levels at `most`."""

    share: float
    most: int


def differences(preprocessor: Preprocessor, image: Image.Image) -> dict[str, Difference | None]:
    """The difference from our patches by processor, 'PIL' and 'torchvision'; None for one that is
    not installed.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.utils import is_torchvision_available

    kinds = {'PIL': Qwen2VLImageProcessorPil}
    if is_torchvision_available():
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

        kinds['torchvision'] = Qwen2VLImageProcessor
    ours = levels(preprocessor, preprocessor.patches(image)[0])
    edges = {'shortest_edge': preprocessor.min_pixels, 'longest_edge': preprocessor.max_pixels}
    same = ('patch_size', 'merge_size', 'temporal_patch_size', 'image_mean', 'image_std')
    options = {name: getattr(preprocessor, name) for name in (*same, 'rescale_factor')}
    found: dict[str, Difference | None] = {'PIL': None, 'torchvision': None}
    for name, kind in kinds.items():
        patches = kind(size=edges, **options)(image, return_tensors='pt')['pixel_values']
        apart = np.abs(ours - levels(preprocessor, np.asarray(patches))).max(axis=1)  # over colours
        found[name] = Difference(float(np.mean(apart > 0)), int(apart.max()))
    return found


def levels(preprocessor: Preprocessor, patches: np.ndarray) -> np.ndarray:
    """Patches as whole levels, [patches, colours, pixels of every frame]."""
    values = patches.astype(np.float64).reshape(len(patches), 3, -1)
    std, mean = (np.asarray(x)[:, None] for x in (preprocessor.image_std, preprocessor.image_mean))
    return np.rint((values * std + mean) / preprocessor.rescale_factor).astype(int)


def sentences(found: dict[str, Difference | None]) -> list[str]:
    """One line per processor."""
    said = '{0.share:.2%} of the pixels differ, by at most {0.most} of 255 levels'
    none = 'not compared: torchvision is not installed'
    return [f'patches, processor on {n}: {said.format(x) if x else none}' for n, x in found.items()]
