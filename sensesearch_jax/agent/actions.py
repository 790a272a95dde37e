"""The four actions of the agent, and the value that stands in for an action when a turn held none."""

import dataclasses
from typing import Any, TypeAlias


@dataclasses.dataclass(frozen=True)
class TextSearch:
    """Search the text corpus for `query`."""

    query: str


@dataclasses.dataclass(frozen=True)
class ImageSearch:
    """Find pictures like image `image_index` (from 1; 1 is the original, crops count up)."""

    image_index: int = 1


@dataclasses.dataclass(frozen=True)
class ImageCrop:
    """Cut `bbox` = (x0, y0, x1, y1), fractions of width and height, out of image `image_index`."""

    bbox: tuple[float, float, float, float]
    image_index: int = 1


@dataclasses.dataclass(frozen=True)
class Answer:
    """End the trajectory with `text`."""

    text: str


@dataclasses.dataclass(frozen=True)
class FormatError:
    """A turn without a valid action: `kind` names the mistake, `message` tells the model."""

    kind: str
    message: str


Action: TypeAlias = TextSearch | ImageSearch | ImageCrop | Answer

_CLASSES = {cls.__name__: cls for cls in (TextSearch, ImageSearch, ImageCrop, Answer, FormatError)}


def action_to_json(action: Action | FormatError) -> dict[str, Any]:
    """The action as a JSON object: its fields and, under 'type', the name of its class."""
    return {'type': type(action).__name__, **dataclasses.asdict(action)}


def action_from_json(value: dict[str, Any]) -> Action | FormatError:
    """The action that `action_to_json` wrote; ValueError for a type that is none."""
    fields = dict(value)
    name = fields.pop('type', None)
    if name not in _CLASSES:
        raise ValueError(f'unknown action type {name!r}; expected one of {sorted(_CLASSES)}')
    if 'bbox' in fields:
        fields['bbox'] = tuple(fields['bbox'])
    return _CLASSES[name](**fields)
