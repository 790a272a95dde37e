"""Any model behind an OpenAI-compatible chat server as an agent: requests with retries, usage and
cost, and trajectories as messages.

A request has one deadline for all of its bytes, and every attempt is announced to a meter, which may
forbid it: so neither a service that sends a byte at a time nor a client's own retries escape a
budget.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import urllib3

from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Turn
from tools_server.backends.http_service import retry_after
from tools_server.backends.openai_compatible import REASONING_TOKENS, data_url, unsupported
from tools_server.failures import ToolError
from tools_server.fetching.connections import received, send, timed_out, timed_pools
from tools_server.limits import deadline

MOST_REPLY_BYTES = 16 * 2**20
MOST_PAUSE_S = 60.0
CALL_END = '</tool_call>'


@dataclass(frozen=True)
class ServedModel:
    """A model on a chat server.

    Attributes:
        url: of the server, up to and with `/v1`.
        model: its name there.
        key_env: the environment variable that holds the key; an unset one, or '', sends none.
        timeout_s: seconds for one attempt, the last byte of its reply included.
        attempts: of a request, the first included.
        retry_pause_s: seconds before the second attempt at most, then doubling.
        input_usd, output_usd: price of a million tokens of prompts and of replies.
    """

    url: str
    model: str
    key_env: str
    timeout_s: float
    attempts: int
    retry_pause_s: float
    input_usd: float
    output_usd: float

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> ServedModel:
        """From the part of a config that has these fields among others."""
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars."""
        return (prompt_tokens * self.input_usd + completion_tokens * self.output_usd) / 1e6


@dataclass(frozen=True)
class Request:
    """One request for a model's replies to a conversation.

    Attributes:
        messages: as the API has them.
        temperature: of sampling.
        max_tokens: most tokens of a reply.
        stop: texts before which a reply ends.
        choices: replies to the same prompt, of which a server may give fewer.
        sample: tells requests apart that are alike otherwise.
    """

    messages: list[dict[str, Any]]
    temperature: float
    max_tokens: int
    stop: tuple[str, ...] = ()
    choices: int = 1
    sample: int = 0


@dataclass(frozen=True)
class Reply:
    """A model's replies to a request, and the tokens that are paid for.

    Attributes:
        texts: one per choice; '' where the model wrote nothing.
        finish: reasons why each ended, such as 'stop' or 'length'.
        prompt_tokens, completion_tokens: of all choices; None where the server counts none.
    """

    texts: tuple[str, ...]
    finish: tuple[str, ...]
    prompt_tokens: int | None
    completion_tokens: int | None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Reply:
        """From the fields as JSON has them."""
        return cls(**value | {name: tuple(value[name]) for name in ('texts', 'finish')})

    @property
    def text(self) -> str:
        """The first choice."""
        return self.texts[0]


@dataclass(frozen=True)
class Unanswered:
    """An attempt that gave no reply.

    Attributes:
        failure: for the caller.
        billable: whether the service may charge for it all the same: it had begun to answer, or may
            have.
        again: whether the next attempt may go better.
        retry_after_s: when the service wants to be asked again, if it says so.
        parameter: that the model does not take.
    """

    failure: ToolFailure
    billable: bool = False
    again: bool = True
    retry_after_s: float | None = None
    parameter: str = ''


class Meter(Protocol):
    """Counts attempts and their cost."""

    def admit(self, server: ServedModel, request: Request) -> None:
        """Before every attempt; an exception forbids it."""

    def settle(self, server: ServedModel, request: Request, outcome: Reply | Unanswered) -> None:
        """After every attempt.

        Args:
            server: that was asked.
            request: that was sent.
            outcome: of this attempt.
        """


class ChatModel(Protocol):
    """Replies to requests."""

    def ask(self, request: Request) -> Reply | ToolFailure:
        """The reply, or why there is none."""


class OpenAIModel:
    """A model on a server, asked again where that may help. Safe to share between threads.

    Recent models take `max_completion_tokens` in place of `max_tokens`, and no temperature or stop
    texts; which parameters a model takes is learnt from its refusals.

    Args:
        server: where it is.
        connections: kept open, one per thread that asks.
    """

    def __init__(self, server: ServedModel, connections: int) -> None:
        self.server = server
        self._pools = timed_pools(connections)
        key = os.environ.get(server.key_env, '').strip() if server.key_env else ''
        self._headers = {'Content-Type': 'application/json'}
        self._headers |= {'Authorization': f'Bearer {key}'} if key else {}
        self._refused: frozenset[str] = frozenset()

    def ask(self, request: Request, meter: Meter | None = None) -> Reply | ToolFailure:
        """See `ChatModel`; 'caller' says that the service does not take the request.

        Args:
            request: to send.
            meter: of its attempts; None counts nothing.
        """
        attempt = 0
        while True:
            if meter is not None:
                meter.admit(self.server, request)
            outcome = self._attempt(request)
            if meter is not None:
                meter.settle(self.server, request, outcome)
            if isinstance(outcome, Reply):
                return outcome
            if outcome.parameter and outcome.parameter not in self._refused:
                self._refused |= {outcome.parameter}
                continue
            attempt += 1
            if not outcome.again or attempt >= self.server.attempts:
                return outcome.failure
            pause = self.server.retry_pause_s * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            time.sleep(min(MOST_PAUSE_S, max(pause, outcome.retry_after_s or 0.0)))

    def _body(self, request: Request) -> dict[str, Any]:
        body = {
            'model': self.server.model,
            'messages': request.messages,
            'temperature': request.temperature,
            'max_tokens': request.max_tokens,
        }
        body |= {'stop': list(request.stop)} if request.stop else {}
        body |= {'n': request.choices} if request.choices > 1 else {}
        if 'max_tokens' in self._refused:
            body['max_completion_tokens'] = request.max_tokens + REASONING_TOKENS
        return {name: value for name, value in body.items() if name not in self._refused}

    def _attempt(self, request: Request) -> Reply | Unanswered:
        body = self._body(request)
        with deadline.within(self.server.timeout_s):
            outcome = self._exchange(json.dumps(body).encode())
        refused = isinstance(outcome, Unanswered) and outcome.failure.kind == 'caller'
        if refused and not outcome.parameter and 'n' in body:
            # Services say it in words of their own that they give one reply at a time.
            return dataclasses.replace(outcome, parameter='n')
        return outcome

    def _exchange(self, data: bytes) -> Reply | Unanswered:
        name, status = f'model {self.server.model}', 0
        try:
            url = self.server.url.rstrip('/') + '/chat/completions'
            response = send(self._pools, 'POST', url, data, self._headers)
            status = response.status
            answer = received(response, MOST_REPLY_BYTES, name)
        except ToolError as error:
            return Unanswered(ToolFailure(error.kind, error.message), billable=status == 200)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            # At the deadline a timer closes the connection.
            if timed_out(error) or deadline.left() <= 0:
                late = f'{name} did not answer within {self.server.timeout_s:g} s'
                return Unanswered(ToolFailure('timeout', late), billable=True)
            never = isinstance(error, urllib3.exceptions.NewConnectionError)
            reason = f'{name} cannot be reached ({type(error).__name__})'
            return Unanswered(ToolFailure('unavailable', reason), billable=not never)
        return _outcome(name, status, response.headers, answer)


def _outcome(name: str, status: int, headers: Mapping[str, str], data: bytes) -> Reply | Unanswered:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if status == 200:
        try:
            return _reply(answer)
        except (TypeError, LookupError, AttributeError, ValueError):
            nonsense = f'{name} answered with something other than a chat completion'
            return Unanswered(ToolFailure('unavailable', nonsense), billable=True)
    error = answer.get('error') if isinstance(answer, dict) else None
    error = error if isinstance(error, dict) else {}
    said = ' '.join(str(error.get('message', '')).split())[:200]
    message = f'{name} answered with status {status}' + (f': {said}' if said else '')
    if status in (408, 409, 429) or status >= 500:
        return Unanswered(
            ToolFailure('unavailable', message),
            retry_after_s=retry_after(headers.get('Retry-After')),
        )
    parameter = unsupported(answer)
    known = parameter in ('temperature', 'max_tokens', 'stop', 'n')
    return Unanswered(
        ToolFailure('caller', message), again=False, parameter=parameter if known else ''
    )


def _reply(answer: Any) -> Reply:
    choices = answer['choices']
    # A model that spent all its tokens on thinking has no content.
    texts = tuple(choice['message'].get('content') or '' for choice in choices)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError
    usage = answer.get('usage')
    prompt = completion = None
    if isinstance(usage, dict):
        prompt = int(usage['prompt_tokens'])
        # Some services leave what a model thought out of one count, but not out of the bill.
        beyond = int(usage.get('total_tokens') or 0) - prompt
        completion = max(int(usage.get('completion_tokens') or 0), beyond)
    finish = tuple(str(choice.get('finish_reason') or 'stop') for choice in choices)
    return Reply(texts, finish, prompt, completion)


@dataclass(eq=False)
class OpenAIAgent:
    """A served model that writes one turn at a time, having seen what a policy would have seen.

    Args:
        model: that is asked.
        images: gives the file of an image by its hash, such as `ToolClient.image`.
        system: the system prompt, with the tools of the run's protocol.
        temperature: of sampling.
        turn_tokens: most tokens of a turn.
    """

    model: ChatModel
    images: Callable[[str], bytes | ToolFailure]
    system: str
    temperature: float
    turn_tokens: int

    def write(
        self, user: Sequence[str | ImageRef], turns: Iterable[Turn], sample: int
    ) -> Reply | ToolFailure:
        """The next turn, ending with its call's closing tag like a policy's.

        Args:
            user: the user's text and images in reading order.
            turns: those so far.
            sample: tells trajectories, and tries, of one question apart.
        """
        messages = to_messages(self.system, user, turns, self.images)
        if isinstance(messages, ToolFailure):
            return messages
        reply = self.model.ask(
            Request(messages, self.temperature, self.turn_tokens, (CALL_END,), sample=sample)
        )
        if isinstance(reply, ToolFailure):
            return reply
        return dataclasses.replace(reply, texts=tuple(map(_ended, reply.texts)))


def _ended(text: str) -> str:
    """Up to the end of its call, which a server that takes stop texts leaves out."""
    head, opened, call = text.partition('<tool_call>')
    return head + opened + call.partition(CALL_END)[0] + CALL_END if opened else text


def to_messages(
    system: str,
    user: Sequence[str | ImageRef],
    turns: Iterable[Turn],
    images: Callable[[str], bytes | ToolFailure],
) -> list[dict[str, Any]] | ToolFailure:
    """A conversation as the API's messages.

    Args:
        system: the system prompt.
        user: the user's text and images in reading order.
        turns: the agent's turns and what it observed.
        images: gives the file of an image by its hash.

    Returns:
        The messages, or why an image is not to be had.
    """
    messages: list[dict[str, Any]] = [{'role': 'system', 'content': system}]

    def add(role, parts) -> ToolFailure | None:
        content = []
        for part in parts:
            if isinstance(part, str):
                content.append({'type': 'text', 'text': part})
                continue
            file = images(part.sha256)
            if isinstance(file, ToolFailure):
                return file
            content.append({'type': 'image_url', 'image_url': {'url': data_url(file)}})
        messages.append({'role': role, 'content': content})
        return None

    if failure := add('user', user):
        return failure
    for turn in turns:
        messages.append({'role': 'assistant', 'content': turn.text})
        if turn.observation is not None:
            parts = ['<tool_response>\n', *turn.observation.parts, '\n</tool_response>']
            if failure := add('user', parts):
                return failure
    return messages
