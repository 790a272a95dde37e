"""The web application of a review: the page, the questions, their images and the decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from sensesearch_jax.data.images import HASH, NoImage, read_image
from sensesearch_jax.data.review.decisions import Decisions, Verdict
from sensesearch_jax.runtime.loopback import new_app
from tools_server.failures import ToolError
from tools_server.pictures.convert import read_rgb
from tools_server.pictures.encode import encode
from tools_server.pictures.outline import outline

HERE = Path(__file__).parent


class Decision(BaseModel):
    """A verdict of the page."""

    id: str
    verdict: Verdict
    note: str = Field('', max_length=2000)


def create_app(decisions: Decisions, name: str) -> FastAPI:
    """The application.

    Args:
        decisions: about the questions that are shown.
        name: of the set, the page's title.
    """
    app = new_app(name)
    questions = list(decisions.questions.values())

    @app.get('/')
    def page() -> HTMLResponse:
        text = (HERE / 'page.html').read_text(encoding='utf-8')
        for part in ('page.css', 'page.js'):
            text = text.replace(f'/*{part}*/', (HERE / part).read_text(encoding='utf-8'))
        return HTMLResponse(text)

    @app.get('/items')
    def items() -> dict[str, Any]:
        return {
            'name': name,
            'accepted': str(decisions.accepted),
            'items': [
                {
                    'id': q.id,
                    'question': q.text,
                    'answers': q.answers,
                    'choices': q.choices,
                    'category': q.category,
                    'difficulty': q.difficulty,
                    'images': len(q.images),
                    'box': q.truth.get('box'),
                    'right': q.truth.get('right'),
                    'samples': q.truth.get('samples'),
                    'verdict': decisions.verdict(q.id),
                    'note': decisions.note(q.id),
                }
                for q in questions
            ],
        }

    @app.get('/items/{item}/images/{number}')
    def image(item: int, number: int) -> Response:
        if not (0 <= item < len(questions) and 0 <= number < len(questions[item].images)):
            raise HTTPException(404, 'there is no such image')
        reference = questions[item].images[number]
        if reference.startswith(HASH):
            raise HTTPException(404, 'the image is a content hash, which only a tool server knows')
        try:
            data, kind = shown(read_image(reference))
        except (NoImage, ToolError) as error:
            raise HTTPException(404, str(error)) from None
        return Response(data, media_type=kind, headers={'Cache-Control': 'max-age=3600'})

    @app.post('/decisions')
    def decide(decision: Decision) -> dict[str, str]:
        if decision.id not in decisions.questions:
            raise HTTPException(404, f'there is no item {decision.id}')
        decisions.decide(decision.id, decision.verdict, decision.note.strip())
        return {'saved': decision.id}

    return app


def shown(data: bytes) -> tuple[bytes, str]:
    """An image file as a browser shows it upright, and its type.

    Raises:
        ToolError: it is damaged.
    """
    found = outline(data)
    if found is not None and found.orientation == 1:
        return data, f'image/{found.format.lower()}'
    return encode(read_rgb(data)), 'image/jpeg'
