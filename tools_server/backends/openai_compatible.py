"""Chat completions of any OpenAI-compatible server."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from tools_server.backend_config import OpenAICompatible
from tools_server.backends.http_service import Declined, Service, bearer
from tools_server.failures import ToolError

REASONING_TOKENS = 4096  # beyond max_tokens, for models whose limit counts what they think as well


class ChatModel:
    """A model that answers one user message, at temperature 0 where it has one.

    Recent models of OpenAI take `max_completion_tokens` in place of `max_tokens`, and no
    temperature. Which of them a model takes is learnt from its refusal.

    Args:
        config: server, model, and the environment variable that holds the key.
    """

    def __init__(self, config: OpenAICompatible):
        self.name = config.model
        self._max_tokens = config.max_tokens
        self._parameters: dict[str, Any] = {'temperature': 0, 'max_tokens': config.max_tokens}
        headers = bearer(config.api_key_env)
        self.service = Service(
            f'model {config.model}', config.base_url, config.timeout_s, headers, config.limits
        )

    def ask(self, system: str, text: str, images: Sequence[bytes] = ()) -> str:
        """The model's reply.

        Args:
            system: what the model is to do.
            text: the user's message.
            images: image files shown before it (JPEG or PNG).

        Raises:
            ToolError: as `Service.post`, 'unavailable' for an answer without a reply, and 'refused'
                for a reply that was cut off or held back.
        """
        content: str | list[dict] = text
        if images:
            urls = ({'url': data_url(image)} for image in images)
            shown = [{'type': 'image_url', 'image_url': url} for url in urls]
            content = [*shown, {'type': 'text', 'text': text}]
        answer = self._post(
            [{'role': 'system', 'content': system}, {'role': 'user', 'content': content}]
        )
        try:
            choice = answer['choices'][0]
            message, reason = choice['message'], choice.get('finish_reason')
            reply, refusal = message['content'], message.get('refusal')
        except (AttributeError, KeyError, IndexError, TypeError):
            reply = refusal = reason = None
        if reason == 'length':
            raise ToolError('refused', f'{self.service.name} was cut off; give it more max_tokens')
        if reason == 'content_filter' or (refusal and not reply):
            raise ToolError(
                'refused', f'the reply of {self.service.name} was held back by a content filter'
            )
        if not isinstance(reply, str):
            raise ToolError('unavailable', f'{self.service.name} sent no reply in its answer')
        return reply

    def _post(self, messages: list[dict]) -> dict[str, Any]:
        while True:
            parameters = self._parameters
            body = {'model': self.name, 'messages': messages, **parameters}
            try:
                return self.service.post('/chat/completions', body, ('choices',))
            except Declined as error:
                # Threads may learn the same at once; each step leaves fewer parameters to complain
                # about.
                if (changed := self._without(parameters, unsupported(error.answer))) is None:
                    raise
                self._parameters = changed

    def _without(self, parameters: dict[str, Any], name: str) -> dict[str, Any] | None:
        """Parameters for a model that does not take this one; None where it is none that may go."""
        if name not in parameters or name == 'max_completion_tokens':
            return None
        left = {key: value for key, value in parameters.items() if key != name}
        if name == 'max_tokens':
            left['max_completion_tokens'] = self._max_tokens + REASONING_TOKENS
        return left


def data_url(file: bytes) -> str:
    """An image file, JPEG or PNG, as a data URL."""
    kind = 'png' if file.startswith(b'\x89PNG') else 'jpeg'
    return f'data:image/{kind};base64,{base64.b64encode(file).decode()}'


def unsupported(answer: Any) -> str:
    """Name of the parameter that a refusal is about: {error: {param, code}}; '' for another reason."""
    error = answer.get('error') if isinstance(answer, dict) else None
    codes = ('unsupported_parameter', 'unsupported_value')
    refused = isinstance(error, dict) and error.get('code') in codes
    return str(error.get('param')) if refused else ''
