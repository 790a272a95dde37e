"""Requests and answers of the HTTP interface, as they appear on the OpenAPI page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tools_server.failures import FailureKind
from tools_server.text_forms import as_title

MOST_FIELDS = 50  # of a request that is looked at more closely


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
# a policy may ramble
LongText = Annotated[str, BeforeValidator(_without_surrogates), Field(max_length=1_000_000)]
# text of a service elsewhere, which may send any
Found = Annotated[str, BeforeValidator(_without_surrogates)]
Title = Annotated[str, BeforeValidator(as_title), BeforeValidator(_without_surrogates)]
Score = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[
    str, Field(pattern=r'^[0-9a-f]{64}$', description='content hash of an uploaded image')
]
Images = Annotated[list[Sha256], Field(max_length=16, description='of the question, in order')]
Box = Annotated[
    tuple[float, float, float, float],
    AfterValidator(_valid_box),
    Field(description="[x0, y0, x1, y1] as fractions of the image's width and height"),
]
TopK = Annotated[int, Field(ge=1, le=50)]
Choices = Annotated[
    Annotated[list[Text], Field(max_length=26)] | None,
    Field(
        description='options A, B, … in order; references then name theirs by letter or text, and only that counts'
    ),
]


def sentence(error: Mapping[str, Any]) -> str:
    """A validation error of pydantic, as one sentence that names the field."""
    where = '.'.join(str(part) for part in error['loc'] if part not in ('body', 'path'))
    problem = error['msg'].removeprefix('Value error, ')
    return f'{where}: {problem}' if where else problem


class Request(BaseModel):
    """A request; an unknown field is an error, so that a typing mistake is never ignored."""

    model_config = ConfigDict(extra='forbid')

    @model_validator(mode='before')
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        # each unknown one would make an error of its own
        if isinstance(data, dict) and len(data) > MOST_FIELDS:
            raise ValueError(
                f'a request has at most {len(cls.model_fields)} fields, this one has {len(data)}'
            )
        return data


class TextSearchRequest(Request):
    """A query in words, and how many passages to give at most."""

    query: Text
    top_k: TopK = 5


class ImageSearchRequest(Request):
    """Picture to look for, and most matches to give."""

    image: Sha256
    top_k: TopK = 5


class CropRequest(Request):
    """Picture, and the part of it to cut out."""

    image: Sha256
    bbox: Box


class JudgeRequest(Request):
    """A response to judge by references, with the question's pictures where that helps."""

    question: Text
    references: Annotated[list[Text], Field(min_length=1, max_length=100)]
    response: LongText
    images: Images = []
    choices: Choices = None


class Answer(BaseModel):
    """Fields of every answer about itself."""

    backend: str = Field(description='what answered')
    cache_hit: bool = Field(description='the answer was known already')
    latency_s: float = Field(description='seconds from request to answer')


class FoundAnswer(Answer):
    """An answer of a back end, which may be only a part of what it should be."""

    degraded: list[str] = Field(
        [],
        description='what is missing, a reason each; empty for a whole answer. Such an answer is kept for minutes',
    )


class Image(BaseModel):
    """A picture that the server holds, by content hash."""

    sha256: str
    width: int = Field(description='pixels, upright')
    height: int = Field(description='pixels, upright')


class ImageAnswer(Answer, Image):
    """An image that the server now holds: uploaded, or cut from another."""


class Passage(BaseModel):
    """A text that was found; larger scores are better, and comparable within one answer only."""

    title: Title
    text: Found = Field(
        description="the parts of the passage nearest to the query; '…' stands where it was cut"
    )
    score: Score


class TextSearchAnswer(FoundAnswer):
    """Passages, best first; none where nothing was found."""

    results: list[Passage]


class Match(BaseModel):
    """A known picture that was found; larger scores are better, comparable within one answer."""

    title: Title
    thumbnail: Image
    score: Score


class ImageSearchAnswer(FoundAnswer):
    """Known pictures."""

    results: list[Match] = Field(description='best first; empty when nothing is alike')


class JudgeAnswer(FoundAnswer):
    """Whether the response is right."""

    verdict: bool


class Failure(BaseModel):
    """A call that gave no result. 'caller': the request is wrong; 'refused': the back end declined
    it; 'timeout': no answer in time; 'unavailable': cannot be answered now.
    """

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
    """Whether calls can be answered."""

    ready: bool = Field(description='all indexes are loaded')


class Health(Ready):
    """Back ends that answer, and what the caches hold."""

    backends: dict[str, str]
    mode: str
    cache: dict[str, dict[str, int]] = Field(description='per tool: entries kept, hits, misses')


class Statistics(Health):
    """Health, and what became of all calls since the start."""

    calls: dict[str, dict[str, int]] = Field(
        description='per tool: calls by outcome, how many are at work and waiting'
    )
    services: dict[str, dict[str, int]] = Field(
        description='per service elsewhere: whether its breaker is open, how often it opened, retries'
    )
