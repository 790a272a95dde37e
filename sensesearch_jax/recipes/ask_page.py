"""A page where a person gives pictures, asks questions and watches the trajectories grow."""

from __future__ import annotations

import itertools
import socket
import threading
import traceback
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Question, SampleState, Trajectory, Turn
from sensesearch_jax.data.images import HASH
from sensesearch_jax.evaluation.page import render_page
from sensesearch_jax.evaluation.trajectory_viewer import linked_data, small_jpeg
from sensesearch_jax.recipes.answering import answer
from sensesearch_jax.recipes.session import LoadedPolicy, Session
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.loopback import address_of, new_app, serve

MOST_BYTES = 64_000_000  # of a picture's file
MOST_SIDE = 2048  # pixels of a picture that is sent to the browser
KEPT = 50  # questions that the page can still ask for
NO_ANSWER = {
    SampleState.TRUNCATED: 'No answer: its turns or tokens ran out.',
    SampleState.INFRA_FAILED: 'No answer: a tool failed.',
    SampleState.TOO_LONG: 'No answer: there was no room for it.',
}


class Asking(BaseModel):
    """A question of the page, about pictures that were uploaded before."""

    question: str = Field(min_length=1, max_length=8000)
    pictures: list[str] = Field(max_length=8)


class Asked:
    """A question and its trajectory so far; written by the thread that answers it.

    Args:
        session: of the run.
        loaded: the policy.
        question: with its images.
        images: the same, as the tool server knows them.
    """

    def __init__(
        self, session: Session, loaded: LoadedPolicy, question: Question, images: list[ImageRef]
    ) -> None:
        self.session, self.loaded, self.question = session, loaded, question
        self.stop = threading.Event()
        # of the page: replaced as a whole, and never changed
        self.state: dict[str, Any] = {'writing': '', 'ended': '', 'seconds': None, 'done': False}
        begun = Trajectory(question, 0, 0, [], SampleState.TRUNCATED, [], images, {}, None)
        self._show(begun)

    def answer(self, features: FeatureStore) -> None:
        """Samples the trajectory, and says how it ended."""
        try:
            found = answer(
                self.session,
                self.loaded,
                features,
                self.question,
                on_turn=lambda trajectory, turn: self._turn(trajectory, turn),
                on_tokens=self._tokens,
                to_stop=self.stop.is_set,
            )
        except Exception as error:  # a fault of the code ends this question, not the page
            traceback.print_exc()
            self._end(f'The question failed: {type(error).__name__}: {error}', None)
            return
        if isinstance(found, ToolFailure):
            self._end(f'The picture cannot be used: {found.message}.', None)
            return
        trajectory, seconds = found
        self._show(trajectory)
        ended = '' if trajectory.answer is not None else NO_ANSWER.get(trajectory.state, '')
        if self.stop.is_set() and trajectory.answer is None:
            ended = 'Stopped.'
        self._end(f'{ended} {trajectory.failure}'.strip(), seconds)

    def _turn(self, trajectory: Trajectory, turn: Turn) -> None:
        self._show(trajectory)

    def _tokens(self, trajectory: Trajectory, tokens: list[int]) -> None:
        self.state = self.state | {'writing': self.loaded.chat.turn_text(tokens)}

    def _show(self, trajectory: Trajectory) -> None:
        data = linked_data(
            [[trajectory]], self.session.protocol, lambda sha, side: f'pictures/{sha}/{side}'
        )
        (question,) = data['questions']
        self.state = self.state | {
            'writing': '',
            'question': question['text'],
            'images': question['images'],
            'trajectory': question['runs']['1'],
            'pictures': data['pictures'],
        }

    def _end(self, ended: str, seconds: float | None) -> None:
        self.state = self.state | {'writing': '', 'ended': ended, 'seconds': seconds, 'done': True}


def create_app(session: Session, loaded: LoadedPolicy, features: FeatureStore) -> FastAPI:
    """The application; it answers one question at a time.

    Args:
        session: of the run.
        loaded: the policy.
        features: of its vision tower.
    """
    app, asked, numbers = new_app('ask'), dict[int, Asked](), itertools.count(1)
    uploaded: dict[str, ImageRef] = {}
    busy = threading.Lock()

    @app.get('/')
    def page() -> HTMLResponse:
        policy = session.config.policy or 'the base policy of the project'
        values = {'policy': policy, 'tools': session.environment().tools}
        scripts = 'trajectory.js', 'ask.js'
        return HTMLResponse(render_page('ask.html', values, scripts=scripts, filters={}))

    # Bodies of these types another site's page can send only after asking, and it is refused.
    @app.post('/pictures')
    async def upload(request: Request) -> dict[str, Any]:
        if request.headers.get('content-type') != 'application/octet-stream':
            raise HTTPException(415, 'a picture is sent as application/octet-stream')
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MOST_BYTES:
                raise HTTPException(413, f'The picture has more than {MOST_BYTES // 10**6} MB.')
        return await run_in_threadpool(take, bytes(data))

    def take(data: bytes) -> dict[str, Any]:
        found = session.client.upload(data)
        if isinstance(found, ToolFailure):
            said = found.message.rstrip('.')
            raise HTTPException(422, f'The picture cannot be used: {said}.')
        uploaded[found.sha256] = found
        return {'sha': found.sha256, 'width': found.width, 'height': found.height}

    @app.get('/pictures/{sha256}/{side}')
    def picture(sha256: str, side: int) -> Response:
        data = small_jpeg(session.client.image(sha256), min(max(side, 1), MOST_SIDE))
        if data is None:
            raise HTTPException(404, 'there is no such picture')
        return Response(data, media_type='image/jpeg', headers={'Cache-Control': 'max-age=86400'})

    @app.post('/questions')
    def ask(asking: Asking) -> dict[str, int]:
        unknown = [sha for sha in asking.pictures if sha not in uploaded]
        if unknown:
            raise HTTPException(404, 'A picture is not there any more; give it again.')
        if not busy.acquire(blocking=False):
            raise HTTPException(409, 'Another question is being answered; wait for it or stop it.')
        number = next(numbers)
        images = [uploaded[sha] for sha in asking.pictures]
        references = tuple(f'{HASH}{sha}' for sha in asking.pictures)
        question = Question(f'asked-{number}', asking.question.strip(), references)
        asked[number] = one = Asked(session, loaded, question, images)
        asked.pop(number - KEPT, None)

        def work() -> None:
            try:
                one.answer(features)
            finally:
                busy.release()

        threading.Thread(target=work, daemon=True, name=question.id).start()
        return {'number': number}

    @app.get('/questions/{number}')
    def state(number: int) -> dict[str, Any]:
        if number not in asked:
            raise HTTPException(404, 'there is no such question')
        return asked[number].state

    @app.post('/questions/{number}/stop')
    def stop(number: int, body: dict[str, Any]) -> dict[str, int]:
        if number not in asked:
            raise HTTPException(404, 'there is no such question')
        asked[number].stop.set()
        return {'number': number}

    return app


def serve_page(
    session: Session, loaded: LoadedPolicy, features: FeatureStore, listener: socket.socket
) -> None:
    """Says where the page is and serves it until Ctrl-C.

    Args:
        session: of the run.
        loaded: the policy.
        features: of its vision tower.
        listener: of the loopback address.
    """
    announcement = f'Ask at {address_of(listener)} (Ctrl-C ends it).'
    serve(create_app(session, loaded, features), listener, announcement)
