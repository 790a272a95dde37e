"""Asks a policy one question about one image, and prints the trajectory as it happens; or serves a page
for as many as one likes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ml_collections import ConfigDict

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Question, Trajectory, Turn
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.answering import answer
from sensesearch_jax.recipes.session import load_policy_directory, open_session
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.workdir import Workdir
from tools_server.failures import ToolError
from tools_server.pictures.decoder import Decoder


def run(config: ConfigDict, workdir: Workdir) -> None:
    """Samples one trajectory for `config.question` about the images of `config.image`, if any, or
    serves a page where questions are asked.

    Raises:
        UserError: no question, no such image, or a file that is none or that the tool server does
            not take; or the page's port cannot be used.
    """
    if config.ask.page:
        # Every run imports this module for its checks, and few want a web server.
        from sensesearch_jax.recipes.ask_page import serve_page
        from sensesearch_jax.runtime.loopback import listen

        listener = listen(config.ask.port, 'ask.port')
    elif not config.question:
        raise UserError(
            "There is no question; give --config.question='…', or --config.ask.page=True."
        )
    loaded = load_policy_directory(
        config.policy, config, make_mesh(config.mesh), config.rollout.dtype
    )
    with open_session(config, workdir) as session:
        features = session.features(loaded)
        if config.ask.page:
            serve_page(session, loaded, features, listener)
            return
        question = Question('ask', config.question, tuple(image_files(config.image)))
        print(f'Question: {config.question}\n', flush=True)
        found = answer(session, loaded, features, question, on_turn=print_turn)
    if isinstance(found, ToolFailure):
        raise UserError(f'The tool server does not take {config.image}: {found.message}.')
    print_end(*found)


def check_ask(config: ConfigDict) -> None:
    """Whether the fields of one way to ask are given for the other.

    Raises:
        UserError: they are.
    """
    if config.ask.page and (config.image or config.question):
        raise UserError(
            'image and question are asked on the page (ask.page); leave them out, or ask.page.'
        )
    if config.ask.port and not config.ask.page:
        raise UserError('ask.port is of the page; add --config.ask.page=True, or leave it out.')


def image_files(value: str) -> list[str]:
    """The files of the field `image`, which has commas between them, or names one with a comma.

    Raises:
        UserError: one of them is missing or not readable.
    """
    files = [value] if Path(value).is_file() else [file.strip() for file in value.split(',')]
    files = [file for file in files if file]
    for file in files:
        check_image(file)
    return files


def check_image(path: str) -> None:
    """Whether the tool server will take an image, by its decoder, which survives hostile files.

    Raises:
        UserError: it is missing or not readable.
    """
    if not Path(path).is_file():
        raise UserError(f"There is no image file at '{path}'; give --config.image=FILE.")
    with contextlib.closing(Decoder()) as decoder:
        try:
            decoder.read(Path(path).read_bytes())
        except (OSError, ToolError) as error:
            raise UserError(
                f'{path} is not a readable image: {getattr(error, "strerror", None) or error}.'
            ) from None


def print_turn(trajectory: Trajectory, turn: Turn) -> None:
    """Prints a turn and its observation."""
    print(f'── turn {len(trajectory.turns)} ──\n{turn.text.strip()}')
    if turn.observation is not None:
        shown = (
            p if isinstance(p, str) else f'[image {p.width}×{p.height}, {p.sha256[:8]}]'
            for p in turn.observation.parts
        )
        print('→ ' + ' '.join(shown).strip().replace('\n', '\n  '))
    print(flush=True)


def print_end(trajectory: Trajectory, seconds: float) -> None:
    """Prints the answer, or that there is none."""
    last = trajectory.turns[-1].action if trajectory.turns else None
    answer = last.text if isinstance(last, Answer) else f'none ({trajectory.state.value})'
    print(
        f'Answer: {answer}\n{trajectory.failure}'.rstrip()
        + f'\n({len(trajectory.turns)} turns, {seconds:.1f} s)'
    )
