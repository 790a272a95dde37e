"""Files of trajectories in the chat format, with their images; see `chat_format`."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sensesearch_jax.agent.chat_template import ChatTokenizer, tokenise
from sensesearch_jax.agent.protocol import PROTOCOLS, Protocol
from sensesearch_jax.agent.trajectory import ImageRef, Trajectory
from sensesearch_jax.data.chat_format import BadChat, from_chat, to_chat
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import atomic_write
from tools_server.failures import ToolError
from tools_server.images import kept_file
from tools_server.pictures.folder import PictureFolder

MOST_BYTES = 1 << 50  # of a folder of images: as much as there is
DATASET_INFO = {
    'file_name': 'train.jsonl',
    'formatting': 'sharegpt',
    'columns': {'messages': 'messages', 'images': 'images'},
    'tags': {
        'role_tag': 'role',
        'content_tag': 'content',
        'user_tag': 'user',
        'assistant_tag': 'assistant',
        'observation_tag': 'tool',
        'system_tag': 'system',
    },
}


def run_of(file: Path) -> tuple[dict[str, Any], Path]:
    """The `agent` part of the config of the run that a file of trajectories belongs to, and the
    folder of its images; nothing and '' where it lies elsewhere.
    """
    for folder in file.resolve().parents:
        config = folder / 'config.json'
        if config.is_file():
            fields = json.loads(config.read_text())
            tools = fields.get('tools', {}).get('folder') or folder / 'tools'
            return fields.get('agent', {}), Path(tools)
    return {}, Path()


def open_images(folder: Path) -> PictureFolder:
    """The images of a tool server's folder, as `tools.folder` names it."""
    return PictureFolder(folder / 'images', MOST_BYTES, 0.0)


def export(
    trajectories: Path,
    target: Path,
    images: Path,
    protocol: Protocol,
    tools: Sequence[str],
    style: str,
) -> int:
    """Writes a folder with train.jsonl, the image files and dataset_info.json.

    Args:
        trajectories: a file of them.
        target: the folder.
        images: folder of the tool server that has the images.
        protocol, tools: that the trajectories were made under.
        style: one of `chat_format.STYLES`.

    Returns:
        The number of trajectories.

    Raises:
        UserError: an image is not there.
    """
    (target / 'images').mkdir(parents=True, exist_ok=True)
    stored, names = open_images(images), {}

    def name_of(ref: ImageRef) -> str:
        if ref.sha256 not in names:
            try:
                data = stored.read(ref.sha256)
            except ToolError as error:
                raise UserError(
                    f'{images} has no image {ref.sha256} ({error}); give the tools.folder of the run '
                    'that made the trajectories as --pictures.'
                ) from None
            suffix = 'png' if data.startswith(b'\x89PNG') else 'jpg'
            names[ref.sha256] = f'images/{ref.sha256}.{suffix}'
            (target / names[ref.sha256]).write_bytes(data)
        return names[ref.sha256]

    values, lines = _read(trajectories), []
    with Progress('export', len(values), unit='trajectory') as bar:
        for value in values:
            record = to_chat(Trajectory.from_json(value), protocol, tools, name_of, style)
            lines.append(_line(record))
            bar.update()
    atomic_write(target / 'train.jsonl', ''.join(lines))
    info = json.dumps({target.name: DATASET_INFO}, indent=2)
    atomic_write(target / 'dataset_info.json', info + '\n')
    return len(lines)


def import_(
    chat: Path,
    target: Path,
    images: Path,
    tokenizer: ChatTokenizer,
    protocol: Protocol | None,
    tools: Sequence[str] | None,
) -> int:
    """Writes a file of trajectories, which SFT trains on, and its images where a tool server has
    them.

    Args:
        chat: JSON lines, or one JSON list, of records.
        target: the file.
        images: folder of the tool server, for `tools.folder`.
        tokenizer: of the policy that is to learn.
        protocol, tools: of records that do not say theirs.

    Returns:
        The number of trajectories.

    Raises:
        UserError: a record is no conversation of an agent, or an image is missing.
    """
    picture = keep_images(chat.parent, open_images(images))
    records, lines = _read(chat), []
    with Progress('import', len(records), unit='trajectory') as bar:
        for number, record in enumerate(records, 1):
            try:
                trajectory, system, user = from_chat(
                    record, picture, protocol, tools, f'{chat.stem}-{number}'
                )
            except (BadChat, KeyError, TypeError) as error:
                raise UserError(f'Record {number} of {chat} cannot be read: {error}.') from error
            if not trajectory.prompt_tokens:
                tokenise(trajectory, tokenizer, system, user)
            lines.append(json.dumps(trajectory.to_json()) + '\n')
            bar.update()
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, ''.join(lines))
    return len(lines)


def keep_images(folder: Path, stored: PictureFolder) -> Callable[[str], ImageRef]:
    """Puts image files that records name into a tool server's folder, in the form that it keeps.

    Args:
        folder: that relative paths start from.
        stored: the tool server's.
    """
    known: dict[str, ImageRef] = {}

    def picture(name: str) -> ImageRef:
        if name not in known:
            try:
                data = kept_file((folder / name).read_bytes())
            except (OSError, ToolError) as error:
                raise BadChat(f'the image {name} cannot be read ({error})') from None
            sha256 = hashlib.sha256(data).hexdigest()
            width, height = Image.open(io.BytesIO(data)).size
            stored.write(sha256, data, {'width': width, 'height': height})
            known[name] = ImageRef(sha256, width, height)
        return known[name]

    return picture


def _read(path: Path) -> list[dict[str, Any]]:
    """The objects of JSON lines, or of one JSON list."""
    try:
        text = path.read_text('utf-8')
        if text.lstrip().startswith('['):
            return json.loads(text)
        # Not splitlines, which also splits at signs that stand within JSON texts.
        return [json.loads(line) for line in text.split('\n') if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as JSON lines: {error}.') from None


def _line(record: dict[str, Any]) -> str:
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a UTF-16 pair, which only JSON's escapes can write
        text = json.dumps(record)
    return text + '\n'


def protocol_of(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(f"The protocol '{name}' is unknown; choose from {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
