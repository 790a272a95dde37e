"""Data of the report's trajectory viewer: a stratified choice of questions and their trajectories.

The result is one JSON object that `trajectory_viewer.js` draws. Pictures are JPEG data URIs, each
distinct one once, by content hash.
"""

import base64
import hashlib
import io
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from PIL import Image

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop
from sensesearch_jax.agent.protocol import TOOLS, Protocol, tool_of
from sensesearch_jax.agent.trajectory import ImageRef, Question, Trajectory
from sensesearch_jax.evaluation.summary import COUNTED, category_order
from sensesearch_jax.rewards.crop_geometry import WHOLE, Box, Region, absolute, relative

# Bytes of an encoded image file by its SHA-256, or anything else (a failure value, None) if there
# is none.
ImageLoader = Callable[[str], Any]

# Longest side in pixels, by the part a picture plays.
SCENE, CROP, THUMBNAIL = 960, 448, 144
JPEG_QUALITY = 78
MEMBER_COLOURS = 'sft', 'rl', 'other0', 'other1', 'other2', 'base'  # by turns


def viewer_data(
    runs: Mapping[str, Sequence[Trajectory]],
    image_loader: ImageLoader,
    protocol: Protocol,
    *,
    shown: int,
    image_budget: int,
) -> dict[str, Any]:
    """Chooses the questions to show and gathers all that is drawn of them.

    The same questions are shown of every run, so that runs can be compared; of several trajectories
    of one question in one run the one with the lowest member number is.

    Args:
      runs: run name to trajectories.
      image_loader: gives the encoded file of a picture by its SHA-256.
      protocol: the text form the trajectories were sampled with.
      shown: at most so many questions.
      image_budget: bytes that the encoded pictures may take together; questions that no longer fit
        are left out.

    Returns:
      {'runs': names, 'labels': {}, 'colours': a CSS class by name, 'total': number of questions there
      are, 'questions': [...], 'pictures': {SHA-256: data URI}}; a question has 'id', 'category',
      'difficulty', 'text', 'choices', 'answers', 'title', 'images' (how many) and 'runs' (run name
      to trajectory), see `_trajectory_view`.
    """
    by_question: dict[str, dict[str, Trajectory]] = defaultdict(dict)
    for name, trajectories in runs.items():
        for trajectory in sorted(trajectories, key=lambda t: t.member):
            by_question[trajectory.question.id].setdefault(name, trajectory)
    encoded: dict[str, str] = {}
    missing: set[str] = set()
    views, spent = [], 0
    for question_id in _stratified(by_question, list(runs))[:shown]:
        of_runs = by_question[question_id]
        sides: dict[str, int] = {}
        for trajectory in of_runs.values():
            _add_sides(trajectory, sides)
        new = {
            sha: _data_uri(image_loader(sha), side)
            for sha, side in sides.items()
            if sha not in encoded and sha not in missing
        }
        missing.update(sha for sha, uri in new.items() if uri is None)
        new = {sha: uri for sha, uri in new.items() if uri is not None}
        cost = sum(map(len, new.values()))
        if spent + cost > image_budget:
            break
        spent += cost
        encoded.update(new)
        views.append(_question_view(of_runs, protocol))
    views.sort(key=lambda view: (category_order(view['category']), view['difficulty'], view['id']))
    return _names(runs) | {'total': len(by_question), 'questions': views, 'pictures': encoded}


def linked_data(
    groups: Sequence[Sequence[Trajectory]], protocol: Protocol, address: Callable[[str, int], str]
) -> dict[str, Any]:
    """The data of `viewer_data` with addresses of pictures in the place of pictures, and the members
    of a group beside one another.

    Args:
        groups: the trajectories of each question, in the order in which they are shown.
        protocol: the text form the trajectories were sampled with.
        address: of a picture, by its SHA-256 and the longest side it is shown with, in pixels.
    """
    sides: dict[str, int] = {}
    for trajectory in itertools.chain.from_iterable(groups):
        _add_sides(trajectory, sides)
    names = [str(member + 1) for member in sorted({t.member for g in groups for t in g})]
    return _names(names) | {
        'first': names[:1],
        'total': len(groups),
        'questions': [_question_view({str(t.member + 1): t for t in g}, protocol) for g in groups],
        'pictures': {sha: address(sha, side) for sha, side in sides.items()},
    }


def _names(runs: Collection[str]) -> dict[str, Any]:
    colours = dict(zip(runs, itertools.cycle(MEMBER_COLOURS)))
    return {'runs': list(runs), 'labels': {}, 'colours': colours}


def script_json(value: Any) -> str:
    """JSON for the inside of a <script> element: text from tools can neither close it nor open a
    comment.
    """
    text = json.dumps(value, separators=(',', ':'), allow_nan=False)
    for character in '<>&':
        text = text.replace(character, f'\\u{ord(character):04x}')
    return text


def _stratified(
    by_question: Mapping[str, Mapping[str, Trajectory]], names: Sequence[str]
) -> list[str]:
    """Question ids, one of each stratum (category, difficulty, outcome per run) in turn; the order
    is repeatable.
    """
    strata: dict[tuple, list[str]] = defaultdict(list)
    for question_id in sorted(by_question, key=lambda i: hashlib.sha256(i.encode()).digest()):
        of_runs = by_question[question_id]
        question = next(iter(of_runs.values())).question
        outcomes = tuple(str(_right(of_runs[name])) if name in of_runs else '' for name in names)
        strata[question.category, question.difficulty, outcomes].append(question_id)
    rounds = defaultdict(list)
    for stratum in sorted(strata):
        for place, question_id in enumerate(strata[stratum]):
            rounds[place].append((stratum, question_id))
    chosen: list[str] = []
    for place in sorted(rounds):
        # Categories take turns within a round too, so that a small limit still shows each of them.
        by_category = defaultdict(list)
        for stratum, question_id in rounds[place]:
            by_category[stratum[0]].append(question_id)
        longest = max(map(len, by_category.values()))
        chosen += [ids[i] for i in range(longest) for ids in by_category.values() if i < len(ids)]
    return chosen


def _right(trajectory: Trajectory) -> bool | None:
    """Whether the answer was right; None if the trajectory does not count."""
    return trajectory.reward.get('accuracy', 0) == 1 if trajectory.state in COUNTED else None


def _add_sides(trajectory: Trajectory, sides: dict[str, int]) -> None:
    """Notes for each picture that is shown of `trajectory` the longest side it is shown with."""

    def add(ref: ImageRef, side: int) -> None:
        sides[ref.sha256] = max(side, sides.get(ref.sha256, 0))

    for ref in trajectory.own_images:
        add(ref, SCENE)
    for ref in trajectory.retrieved_images:
        add(ref, THUMBNAIL)
    for turn in trajectory.turns:
        if turn.observation:
            crops = {ref.sha256 for ref in turn.observation.new_images}
            for part in turn.observation.parts:
                if isinstance(part, ImageRef):
                    add(part, CROP if part.sha256 in crops else THUMBNAIL)


def _data_uri(file: Any, side: int) -> str | None:
    """The picture as a data URI; None if there is no readable picture."""
    found = small_jpeg(file, side)
    return found and 'data:image/jpeg;base64,' + base64.b64encode(found).decode()


def small_jpeg(file: Any, side: int) -> bytes | None:
    """The picture as a JPEG file of at most `side` pixels; None if there is no readable picture.

    Args:
        file: bytes of an encoded image file; anything else is no picture.
        side: longest side in pixels.
    """
    if not isinstance(file, (bytes, bytearray)):
        return None
    try:
        with Image.open(io.BytesIO(file)) as opened:
            opened.draft('RGB', (side, side))
            image = opened.convert('RGB')
    except (OSError, Image.DecompressionBombError):
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=JPEG_QUALITY, optimize=True, progressive=True)
    return buffer.getvalue()


def _question_view(of_runs: Mapping[str, Trajectory], protocol: Protocol) -> dict[str, Any]:
    question = next(iter(of_runs.values())).question
    return {
        'id': question.id,
        'category': question.category,
        'difficulty': question.difficulty,
        'text': question.text,
        'choices': list(question.choices),
        'answers': list(question.answers),
        'images': len(question.images),
        'title': str(question.truth.get('title', '')),
        'runs': {
            name: _trajectory_view(trajectory, question, protocol)
            for name, trajectory in of_runs.items()
        },
    }


def _trajectory_view(
    trajectory: Trajectory, question: Question, protocol: Protocol
) -> dict[str, Any]:
    """One trajectory as drawn.

    'images' lists the pictures with an image_index in that order, each with its size and what is
    drawn on it: 'boxes' (turn number and fractions; 'own' if the turn cropped this very picture,
    else the box is that of a crop of a crop) and 'truth', the true box as far as it lies in the
    picture. A turn's 'parts' are text, {'image': index} or {'thumbnail': SHA-256}.
    """
    # Regions are places in the question's images; a crop also has its turn and the image_index it
    # was cut from.
    own = len(trajectory.own_images)
    shown = list(trajectory.own_images)
    regions = [Region(index, WHOLE) for index in range(1, own + 1)]
    crops: list[tuple[int, int, Region]] = []
    turns = []
    for number, turn in enumerate(trajectory.turns, start=1):
        observation, action = turn.observation, turn.action
        new = observation.new_images if observation else ()
        place = Region(0, WHOLE)
        if new and isinstance(action, ImageCrop) and 1 <= action.image_index <= len(regions):
            source = regions[action.image_index - 1]
            place = Region(source.image, absolute(action.bbox, source.box))
            crops.append((number, action.image_index, place))
        first = len(shown) + 1
        shown += new
        regions += [place] * len(new)
        index_of = {ref.sha256: first + i for i, ref in enumerate(new)}
        view: dict[str, Any] = {'thought': protocol.parse(turn.text, TOOLS).thought}
        if isinstance(action, FormatError):
            view |= {'error': action.kind, 'raw': turn.text}
        elif isinstance(action, Answer):
            view |= {'answer': action.text}
        else:
            view |= {'tool': tool_of(action), 'arguments': _arguments(action)}
        if observation:
            view |= {
                'ok': observation.ok,
                'seconds': round(observation.latency_s, 3),
                'parts': [
                    part
                    if isinstance(part, str)
                    else {'image': index_of[part.sha256]}
                    if part.sha256 in index_of
                    else {'thumbnail': part.sha256}
                    for part in observation.parts
                ],
            }
        turns.append(view)
    truth = _box(question.truth.get('box'))
    return {
        'state': trajectory.state.value,
        'right': _right(trajectory),
        'answer': trajectory.answer,
        'failure': trajectory.failure,
        'reward': {
            name: round(value, 4)
            for name, value in trajectory.reward.items()
            if math.isfinite(value)
        },
        'retrieved': [ref.sha256 for ref in trajectory.retrieved_images],
        'turns': turns,
        'images': [
            {
                'sha': ref.sha256,
                'width': ref.width,
                'height': ref.height,
                'boxes': [
                    {'turn': turn, 'box': _relative(place.box, region.box), 'own': source == index}
                    for turn, source, place in crops
                    if source == index or (index <= own and place.image == index)
                ],
                'truth': _relative(truth, region.box) if truth and region.image == 1 else None,
            }
            for index, (ref, region) in enumerate(zip(shown, regions), start=1)
        ],
    }


def _arguments(action: Any) -> str:
    if isinstance(action, ImageCrop):
        return f'[{", ".join(f"{x:g}" for x in action.bbox)}] of image {action.image_index}'
    return action.query if hasattr(action, 'query') else f'image {action.image_index}'


def _box(value: Any) -> Box | None:
    return tuple(float(x) for x in value) if value is not None and len(value) == 4 else None


def _relative(box: Box, region: Box) -> list[float] | None:
    """The part of `box` within `region` as fractions of `region`, if any."""
    if region[2] <= region[0] or region[3] <= region[1]:
        return None
    inside = [min(max(x, 0.0), 1.0) for x in relative(box, region)]
    return (
        [round(x, 4) for x in inside] if inside[2] > inside[0] and inside[3] > inside[1] else None
    )
