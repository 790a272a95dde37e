"""Chat completions of any OpenAI-compatible server."""

from __future__ import annotations

import base64

from tools_server.backend_config import OpenAICompatible
from tools_server.backends.outbound import Service, bearer
from tools_server.failures import ToolError


class ChatModel:
    """A model that answers one user message, at temperature 0.

    Args:
        config: server, model, and the environment variable that holds the key.
    """

    def __init__(self, config: OpenAICompatible):
        self.name = config.model
        self._max_tokens = config.max_tokens
        headers = bearer(config.api_key_env)
        self.service = Service(
            f'model {config.model}', config.base_url, config.timeout_s, headers, config.limits
        )

    def ask(self, system: str, text: str, image: bytes | None = None) -> str:
        """The model's reply.

        Args:
            system: what the model is to do.
            text: the user's message.
            image: an image file shown with it (JPEG or PNG).

        Raises:
            ToolError: as `Service.post`, 'unavailable' for an answer without a reply, and 'refused' for a
                reply that was cut off.
        """
        content: str | list[dict] = text
        if image is not None:
            kind = 'png' if image.startswith(b'\x89PNG') else 'jpeg'
            url = f'data:image/{kind};base64,{base64.b64encode(image).decode()}'
            content = [{'type': 'image_url', 'image_url': {'url': url}}, {'type': 'text', 'text': text}]
        answer = self.service.post(
            '/chat/completions',
            {
                'model': self.name,
                'messages': [{'role': 'system', 'content': system}, {'role': 'user', 'content': content}],
                'temperature': 0,
                'max_tokens': self._max_tokens,
            },
        )
        try:
            choice = answer['choices'][0]
            reply, reason = choice['message']['content'], choice.get('finish_reason')
        except (AttributeError, KeyError, IndexError, TypeError):
            reply = reason = None
        if reason == 'length':
            raise ToolError('refused', f'{self.service.name} was cut off; give it more max_tokens')
        if not isinstance(reply, str):
            raise ToolError('unavailable', f'{self.service.name} sent no reply in its answer')
        return reply
