"""Chat completions of any OpenAI-compatible server."""

from __future__ import annotations

import base64
import os

from tools_server.backends.outbound import Service
from tools_server.config import OpenAICompatible
from tools_server.failures import ToolError


class ChatModel:
    """A model that answers one user message, at temperature 0.

    Args:
        config: server, model, and the environment variable that holds the key.
    """

    def __init__(self, config: OpenAICompatible):
        self.name = config.model
        self._max_tokens = config.max_tokens
        headers = {'Authorization': f'Bearer {os.environ[config.api_key_env]}'} if config.api_key_env else {}
        self._service = Service(f'model {config.model}', config.base_url, config.timeout_s, headers)

    def ask(self, system: str, text: str, image: bytes | None = None) -> str:
        """The model's reply.

        Args:
            system: what the model is to do.
            text: the user's message.
            image: an image file shown with it (JPEG or PNG).

        Raises:
            ToolError: as `Service.post`, and 'unavailable' for an answer without a reply.
        """
        content: str | list[dict] = text
        if image is not None:
            kind = 'png' if image.startswith(b'\x89PNG') else 'jpeg'
            url = f'data:image/{kind};base64,{base64.b64encode(image).decode()}'
            content = [{'type': 'image_url', 'image_url': {'url': url}}, {'type': 'text', 'text': text}]
        answer = self._service.post(
            '/chat/completions',
            {
                'model': self.name,
                'messages': [{'role': 'system', 'content': system}, {'role': 'user', 'content': content}],
                'temperature': 0,
                'max_tokens': self._max_tokens,
            },
        )
        try:
            reply = answer['choices'][0]['message']['content']
        except (KeyError, IndexError, TypeError):
            reply = None
        if not isinstance(reply, str):
            raise ToolError('unavailable', f'{self._service.name} sent no reply in its answer')
        return reply
