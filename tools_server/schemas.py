"""Requests and answers of the HTTP interface, as they appear on the OpenAPI page."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tools_server.failures import FailureKind


def _without_surrogates(value: object) -> object:
    """Half a UTF-16 pair can be written in JSON but is no character; language models do write them."""
    if isinstance(value, str):
        return value.encode('utf-8', 'replace').decode('utf-8')
    return value


def _valid_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    if not all(math.isfinite(value) for value in box):
        raise ValueError('must hold four finite numbers')
    if not all(0.0 <= value <= 1.0 for value in box):
        raise ValueError(f'must lie within [0, 1], as fractions of the image, got {list(box)}')
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f'must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1, got {list(box)}')
    return box


Text = Annotated[str, BeforeValidator(_without_surrogates), Field(max_length=20_000)]
LongText = Annotated[
    str, BeforeValidator(_without_surrogates), Field(max_length=1_000_000)
]  # a policy may ramble
Sha256 = Annotated[str, Field(pattern=r'^[0-9a-f]{64}$', description='content hash of an uploaded image')]
Box = Annotated[
    tuple[float, float, float, float],
    AfterValidator(_valid_box),
    Field(description="[x0, y0, x1, y1] as fractions of the image's width and height"),
]
TopK = Annotated[int, Field(ge=1, le=50)]


class Request(BaseModel):
    model_config = ConfigDict(extra='forbid')


class TextSearchRequest(Request):
    query: Text
    top_k: TopK = 5


class ImageSearchRequest(Request):
    image: Sha256
    top_k: TopK = 5


class CropRequest(Request):
    image: Sha256
    bbox: Box


class JudgeRequest(Request):
    question: Text
    references: Annotated[list[Text], Field(min_length=1, max_length=100)]
    response: LongText
    image: Sha256 | None = None
    choices: Annotated[list[Text], Field(max_length=26)] | None = Field(
        None, description='options A, B, … in order; then references are letters, and only the letter counts'
    )

    @model_validator(mode='after')
    def _letters(self) -> JudgeRequest:
        if self.choices:
            letters = {chr(ord('A') + number) for number in range(len(self.choices))}
            if not {reference.strip().upper() for reference in self.references} <= letters:
                raise ValueError('references: with choices given, each must be the letter of one of them')
        return self


class Answer(BaseModel):
    """What every answer says about itself."""

    backend: str = Field(description='what answered')
    cache_hit: bool = Field(description='the answer was known already')
    latency_s: float = Field(description='seconds from request to answer')


class Image(BaseModel):
    sha256: str
    width: int = Field(description='pixels, upright')
    height: int = Field(description='pixels, upright')


class ImageAnswer(Answer, Image):
    """An image that the server now holds: uploaded, or cut from another."""


class Passage(BaseModel):
    title: str
    text: str = Field(
        description="the parts of the passage nearest to the query; '…' stands where it was cut"
    )
    score: float


class TextSearchAnswer(Answer):
    results: list[Passage]


class Match(BaseModel):
    title: str
    thumbnail: Image
    score: float


class ImageSearchAnswer(Answer):
    results: list[Match] = Field(description='best first; empty when nothing is alike')


class JudgeAnswer(Answer):
    verdict: bool


class Failure(BaseModel):
    """A call that gave no result. 'caller': the request is wrong; 'refused': the back end declined it;
    'timeout': no answer in time; 'unavailable': cannot be answered now."""

    kind: FailureKind
    message: str = Field(description='one sentence')
    backend: str | None = Field(
        description='what was asked; null where the call got no further than this server'
    )
    cache_hit: bool = Field(False, description='always false')
    latency_s: float = Field(description='seconds from request to answer')
    retry_after_s: float | None = Field(
        None, description='when to come again, in seconds, where that is known'
    )


class Ready(BaseModel):
    ready: bool = Field(description='all indexes are loaded')


class Health(Ready):
    backends: dict[str, str]
    mode: str
    cache: dict[str, dict[str, int]] = Field(description='per tool: entries kept, hits, misses')


class Statistics(Health):
    calls: dict[str, dict[str, int]] = Field(
        description='per tool: calls by outcome, how many are at work and waiting'
    )
    services: dict[str, dict[str, int]] = Field(
        description='per service elsewhere: whether its breaker is open, how often it opened, retries'
    )
