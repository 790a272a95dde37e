"""Checks a source of questions before a run takes it: `python -m sensesearch_jax.data.check PATH`.

PATH is a file or directory in any layout that docs/data.md lists, or the name of a published set. The
command says how many records are sound and what is wrong with the others, by kind and with the first
ids; shows sizes of images and lengths of prompts, with --config against its rollout.prompt_capacity; and
draws a contact sheet of twelve questions.

    python -m sensesearch_jax.data.check my.jsonl --config=configs/rl_7b.py --policy=DIR

Fields of the config are set as for a run: --config.max_pixels=1000000. Exit status: 0 where every record
is sound and every prompt fits, 1 where one is not or does not, 2 where the source cannot be read at all.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import grain
from absl import flags
from ml_collections import ConfigDict, config_flags
from PIL import Image

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.protocol import PROTOCOLS
from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.contact_sheet import contact_sheet
from sensesearch_jax.data.images import HASH, read_image
from sensesearch_jax.data.source_report import BadImage, Capacity, Measures, counted, sizes_of
from sensesearch_jax.data.sources import Found, read_source
from sensesearch_jax.errors import UserError
from sensesearch_jax.errors import field as of_field
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.runtime.progress import Progress
from tools_server import command
from tools_server.pictures.convert import read_image as decode

BASE_POLICY = Path(__file__).parents[1] / 'pocket' / 'policy'
THREADS, AHEAD = 4, 16  # that open images; questions whose images are opened in advance
SHOWN = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit status: 2 after a UserError, whose sentence it prints."""
    parser = command.parser('sensesearch_jax.data.check', __doc__)
    parser.add_argument('path', metavar='PATH', help='of the source, or name of a published set')
    parser.add_argument('--split', default='', help='part of the source; all of it by default')
    parser.add_argument('--data_dir', default='', help='folder in which converted sets lie')
    parser.add_argument(
        '--config', default='', help='FILE of configs/, whose capacities are checked'
    )
    parser.add_argument('--policy', default='', help="policy directory; else the config's")
    parser.add_argument('--sheet', default='check.png', help='contact sheet (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the twelve questions on it')
    options, rest = parser.parse_known_args(arguments)
    if unknown := [a for a in rest if not a.startswith('--config.')]:
        parser.error(f'{unknown[0]} is no option')
    logging.getLogger('absl').setLevel(logging.WARNING)
    try:
        config = read_config(options.config, rest)
        measures = Measures(*policy_of(options.policy, config))
        found = read_source(options.path, options.split, folder=options.data_dir)
        sound = looked_at(found, measures)
        draw_sheet(sound, options.sheet, options.seed)
    except UserError as error:
        print(f'check: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('check: interrupted', file=sys.stderr)
        return 130
    print('\n'.join(report(options.path, found, sound, measures)))
    if sound:
        print(f'contact sheet: {options.sheet}')
    return 1 if found.faults.count or measures.too_long or not sound else 0


def read_config(file: str, fields: Sequence[str]) -> ConfigDict | None:
    """The config of a file with the command line's fields; None where no file is given.

    Args:
        file: of configs/, perhaps with ':' and an argument.
        fields: '--config.NAME=VALUE' each.

    Raises:
        UserError: there is no such file or field.
    """
    if not file:
        if fields:
            raise UserError(f'{fields[0]} sets a field of no config; give --config=FILE')
        return None
    if not Path(file.partition(':')[0]).is_file():
        raise UserError(f'--config={file} names no file; give one of configs/*.py')
    values, given = flags.FlagValues(), ['check', f'--config={file}', *fields]
    holder = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=given)
    try:
        values(given)
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise UserError(f'--config: {str(error).strip().splitlines()[-1]}') from None
    return holder.value


def policy_of(folder: str, config: ConfigDict | None) -> tuple[ChatTokenizer, Capacity | None]:
    """The tokenizer of a policy with the config's pixel limits, and the capacity that the config allows.

    Args:
        folder: of the policy; '' is the config's, or the project's own.
        config: of a run; None has no limits.

    Raises:
        UserError: no policy directory, or limits that leave no size.
    """
    named = folder or (config.get('policy') if config else '')
    path = Path(named) if named else BASE_POLICY
    preprocessor = Preprocessor.read(path)
    if config is None:
        return ChatTokenizer(path, preprocessor.merged_tokens), None
    with of_field('min_pixels, max_pixels'):
        preprocessor = preprocessor.within(config.min_pixels, config.max_pixels)
    chat = ChatTokenizer(path, preprocessor.merged_tokens)
    if 'agent' not in config or 'prompt_capacity' not in config.get('rollout', {}):
        raise UserError(
            f'a config of the task {config.task} asks no questions; give that of rl, evaluate or cold_start'
        )
    protocol = PROTOCOLS[config.agent.protocol]
    system = protocol.system_prompt(config.agent.tools)
    return chat, Capacity(system, protocol, config.rollout.prompt_capacity)


def looked_at(found: Found, measures: Measures) -> list[Question]:
    """The questions whose images are sound too, measured; the others are added to the faults.

    Args:
        found: of the source; changed.
        measures: to which the sound ones are added.
    """
    sound = []
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    opened = grain.MapDataset.source(found.questions).map(lambda q: (q, sizes_of(q)))
    with Progress('images', len(found.questions), unit='question') as bar:
        for question, sizes in opened.to_iter_dataset(options):
            if isinstance(sizes, BadImage):
                found.faults.add(sizes.kind, question.id, f'{question.id}: {sizes}')
            else:
                measures.add(question, sizes)
                sound.append(question)
            bar.update()
    return sound


def draw_sheet(questions: Sequence[Question], file: str, seed: int) -> None:
    """Draws twelve questions, or all of fewer, in their order.

    Args:
        questions: sound ones.
        file: the PNG to write.
        seed: of the choice.

    Raises:
        UserError: the file cannot be written.
    """
    chosen = random.Random(seed).sample(range(len(questions)), min(SHOWN, len(questions)))
    shown = [(q, _images(q)) for q in (questions[i] for i in sorted(chosen))]
    if not shown:
        return
    try:
        contact_sheet(shown, file)
    except OSError as error:
        raise UserError(f'--sheet={file} cannot be written: {error.strerror}') from None


def _images(question: Question) -> list[Image.Image]:
    return [decode(read_image(i)) for i in question.images if not i.startswith(HASH)]


def report(path: str, found: Found, sound: Sequence[Question], measures: Measures) -> list[str]:
    """The report in lines.

    Args:
        path: of the source, as given.
        found: with all faults.
        sound: its sound questions.
        measures: of these.
    """
    lines = [f'{path}: {len(sound)} of {len(sound) + found.faults.count} records are sound']
    lines += [f'  {line}' for line in found.faults.lines()]
    if not sound:
        return lines
    for name, values in (
        ('category', [q.category for q in sound]),
        ('difficulty', [q.difficulty for q in sound]),
        ('reward', [q.reward for q in sound]),
        ('source', [q.source for q in sound]),
    ):
        lines.append(counted(name, values))
    return [*lines, *measures.lines()]


if __name__ == '__main__':
    sys.exit(main())
