"""An expert behind any OpenAI-compatible chat server that takes images."""

import base64
import mimetypes
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from sensesearch_jax.agent.actions import Action, FormatError
from sensesearch_jax.agent.protocol import Protocol, user_text
from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Question, Turn


class OpenAIExpert:
    """Asks a served model for one turn at a time, with the policy's own system prompt and
    conversation.

    Args:
        base_url: of the server, up to and with `/v1`.
        model: its name there.
        client: where the images of observations are read from.
        protocol, tools: as in the environment.
        key_env: the environment variable that holds the key; an unset one sends none.
        timeout_s: seconds for one request.
        attempts: tries per turn, for transport errors, busy servers and replies without a valid
            action.
        temperature: of the served model.
        root: what relative image paths of questions are relative to.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        client: ToolClient,
        protocol: Protocol,
        tools: Sequence[str],
        key_env: str = 'OPENAI_API_KEY',
        timeout_s: float = 120.0,
        attempts: int = 3,
        temperature: float = 0.7,
        root: str | Path = '.',
    ) -> None:
        self.url = base_url.rstrip('/') + '/chat/completions'
        self.model = model
        self.client = client
        self.key_env = key_env
        self.protocol = protocol
        self.tools = tuple(tools)
        self.timeout_s = timeout_s
        self.attempts = max(1, attempts)
        self.temperature = temperature
        self.root = Path(root)

    def unmet(self, kind: str) -> str | None:
        """See `Expert`: the model tries whatever it is asked, with the tools that there are."""
        return None

    def next_turn(
        self, question: Question, turns: Sequence[Turn]
    ) -> tuple[str, Action | FormatError] | ToolFailure:
        """See `Expert`. Asks again after a reply without valid action; returns the last one's
        FormatError.
        """
        messages = self._messages(question, turns)
        if isinstance(messages, ToolFailure):
            return messages
        result: tuple[str, Action | FormatError] | ToolFailure = ToolFailure(
            'unavailable', 'not asked'
        )
        for attempt in range(self.attempts):
            if attempt and isinstance(result, ToolFailure):
                time.sleep(min(8.0, 0.5 * 2**attempt))
            reply = self._ask(messages)
            if isinstance(reply, ToolFailure):
                result = reply
                if reply.kind == 'caller':
                    return reply
                continue
            turn = self.protocol.parse(reply, self.tools)
            result = (turn.thought, turn.action)
            if turn.thought and not isinstance(turn.action, FormatError):
                return result
        return result

    def _ask(self, messages: list[dict[str, Any]]) -> str | ToolFailure:
        key = os.environ.get(self.key_env)
        headers = {'Authorization': f'Bearer {key}'} if key else {}
        # A turn ends at the closing tag; servers leave the stop string itself out.
        body = {
            'model': self.model,
            'messages': messages,
            'temperature': self.temperature,
            'stop': ['</tool_call>'],
        }
        try:
            response = requests.post(self.url, json=body, headers=headers, timeout=self.timeout_s)
            if response.status_code != 200:
                busy = response.status_code == 429 or response.status_code >= 500
                message = f'the expert answered with status {response.status_code}'
                return ToolFailure('unavailable' if busy else 'caller', message)
            text = response.json()['choices'][0]['message']['content']
        except requests.Timeout:
            return ToolFailure('timeout', f'the expert did not answer in {self.timeout_s} s')
        except (requests.RequestException, ValueError, LookupError, TypeError) as error:
            return ToolFailure('unavailable', f'the expert cannot be asked: {type(error).__name__}')
        if not isinstance(text, str):
            return ToolFailure('unavailable', 'the expert answered without text')
        opened = text.rfind('<tool_call>')
        return (
            text + '</tool_call>' if opened >= 0 and '</tool_call>' not in text[opened:] else text
        )

    def _messages(
        self, question: Question, turns: Sequence[Turn]
    ) -> list[dict[str, Any]] | ToolFailure:
        path = self.root / question.image
        try:
            original = path.read_bytes()
        except OSError:
            return ToolFailure('caller', f'the picture {path} cannot be read')
        kind = mimetypes.guess_type(path.name)[0] or 'image/png'
        messages: list[dict[str, Any]] = [
            {'role': 'system', 'content': self.protocol.system_prompt(self.tools)},
            {'role': 'user', 'content': [_image(original, kind), _text(user_text(question))]},
        ]
        for turn in turns:
            messages.append({'role': 'assistant', 'content': turn.text})
            if turn.observation is None:
                continue
            content = [_text('<tool_response>\n')]
            for part in turn.observation.parts:
                if isinstance(part, str):
                    content.append(_text(part))
                    continue
                data = self._fetch(part)
                if isinstance(data, ToolFailure):
                    return data
                content.append(
                    _image(data, 'image/png' if data.startswith(b'\x89PNG') else 'image/jpeg')
                )
            content.append(_text('\n</tool_response>'))
            messages.append({'role': 'user', 'content': content})
        return messages

    def _fetch(self, image: ImageRef) -> bytes | ToolFailure:
        return self.client.image(image.sha256)


def _text(text: str) -> dict[str, Any]:
    return {'type': 'text', 'text': text}


def _image(data: bytes, kind: str) -> dict[str, Any]:
    url = f'data:{kind};base64,{base64.b64encode(data).decode("ascii")}'
    return {'type': 'image_url', 'image_url': {'url': url}}
