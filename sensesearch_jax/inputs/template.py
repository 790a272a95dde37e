"""Qwen's chat template in pieces, token in, token out: what was sampled is never encoded again.

A conversation is prompt · sampled turn · observation · sampled turn · …, each piece encoded once. Together
they are the tokens of the template applied to the whole conversation (tested against transformers).
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sensesearch_jax.agent.trajectory import ImageRef, Trajectory
from sensesearch_jax.errors import UserError

# What Qwen2.5-VL's own template says, in the part that an agent's conversations use, and with a branch for
# tool results: the original has none, the text-only Qwen2.5 writes them as a user turn in <tool_response>.
CHAT_TEMPLATE = """\
{%- macro parts(content) -%}
{%- if content is string %}{{ content }}{% else -%}
{%- for part in content -%}
{%- if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}{{ part.text }}{% endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{ '<|im_start|>user\\n<tool_response>\\n' }}{{ parts(message.content) }}
{{- '\\n</tool_response><|im_end|>\\n' }}
{%- else -%}
{{ '<|im_start|>' + message.role + '\\n' }}{{ parts(message.content) }}{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""

_ASSISTANT = '<|im_start|>assistant\n'

Part = str | ImageRef


class ChatTokenizer:
    """The tokenizer of a policy directory, with the chat template around it.

    Text is encoded by whom it comes from. The template's own text and the system prompt may hold any special
    token; an assistant's text those that are ordinary vocabulary (`<tool_call>`), never control tokens; text
    of users and tools none at all: `<|im_end|>` in a web page is then ten harmless characters.

    Args:
        folder: a Hugging Face policy directory with tokenizer.json.
        visual_tokens: merged visual tokens of an image, from its (width, height) in pixels.

    Raises:
        ValueError: no tokenizer.json in `folder`, or one without Qwen's special tokens.
    """

    def __init__(self, folder: str | Path, visual_tokens: Callable[[int, int], int]) -> None:
        path = Path(folder) / 'tokenizer.json'
        if not path.is_file():
            raise UserError(
                f'{path} is missing: {folder} is no policy directory; give one with a tokenizer.json'
            )
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the only class that the library raises
            raise UserError(f'{path} is no tokenizer file: {error}') from error
        self.visual_tokens = visual_tokens
        added = self.tokenizer.get_added_tokens_decoder()
        self._added = {token.content: i for i, token in added.items()}
        self._control = {token.content for token in added.values() if token.special}
        self.im_start = self._id('<|im_start|>')
        self.im_end = self._id('<|im_end|>')
        self.end_of_text = self._id('<|endoftext|>')
        self.vision_start = self._id('<|vision_start|>')
        self.vision_end = self._id('<|vision_end|>')
        self.image_pad = self._id('<|image_pad|>')
        self.tool_call_end = self._id('</tool_call>')
        self._any_added = _alternatives(self._added)
        self._ordinary_added = _alternatives(set(self._added) - self._control)
        # A lookahead finds every place where an added token begins, overlapping ones as well.
        self._added_start = re.compile(f'(?={self._any_added.pattern})')

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self.tokenizer.get_vocab_size()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids after which sampling of a turn stops."""
        return (self.im_end, self.end_of_text, self.tool_call_end)

    @cached_property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that may never be sampled: they stand for images."""
        names = ('<|vision_start|>', '<|vision_end|>', '<|vision_pad|>', '<|image_pad|>', '<|video_pad|>')
        return tuple(sorted(self._added[name] for name in names if name in self._added))

    def prompt(self, system: str, user_parts: Sequence[Part]) -> list[int]:
        """System turn, user turn and the header of the assistant's first turn.

        Args:
            system: the system prompt, trusted.
            user_parts: the user's text and images in reading order; text is not trusted.
        """
        head = self._split(f'<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n', self._any_added)
        tail = self._split(f'<|im_end|>\n{_ASSISTANT}', self._any_added)
        return self._encode([*head, *self._parts(user_parts), *tail])

    def observation(self, parts: Sequence[Part], last_token: int | None = None) -> list[int]:
        """What follows a sampled turn: its end, the tool's result as a user turn, the next assistant header.

        Args:
            parts: `Observation.parts`; text is not trusted.
            last_token: the last sampled id; `<|im_end|>` is added unless it is one.
        """
        close = '\n' if last_token == self.im_end else '<|im_end|>\n'
        head = self._split(f'{close}<|im_start|>user\n<tool_response>\n', self._any_added)
        tail = self._split(f'\n</tool_response><|im_end|>\n{_ASSISTANT}', self._any_added)
        return self._encode([*head, *self._parts(parts), *tail])

    def assistant(self, text: str) -> list[int]:
        """The ids a policy would sample for `text`: up to `</tool_call>`, or with `<|im_end|>` at the end."""
        ids = self._encode(self._split(text, self._ordinary_added))
        return ids if ids and ids[-1] == self.tool_call_end else [*ids, self.im_end]

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> list[int]:
        """A whole conversation, by the same rules of trust as the pieces.

        Args:
            messages: objects with 'role' (system, user, assistant or tool) and 'content' (a string, or
                parts).
            add_generation_prompt: whether the header of a further assistant turn follows.

        Raises:
            ValueError: for another role.
        """
        ids: list[int] = []
        for message in messages:
            role, content = message['role'], message['content']
            parts = [content] if isinstance(content, str) else list(content)
            if role == 'assistant':
                ids += self._encode(self._split(_ASSISTANT, self._any_added))
                ids += self.assistant(''.join(parts))
                ids += self._encode(
                    self._split('\n' if ids[-1] == self.im_end else '<|im_end|>\n', self._any_added)
                )
                continue
            if role not in ('system', 'user', 'tool'):
                raise ValueError(f'message role {role!r} is not system, user, assistant or tool')
            tool = role == 'tool'
            head = f'<|im_start|>{"user" if tool else role}\n' + ('<tool_response>\n' if tool else '')
            body = self._split(''.join(parts), self._any_added) if role == 'system' else self._parts(parts)
            tail = ('\n</tool_response>' if tool else '') + '<|im_end|>\n'
            ids += self._encode(
                [*self._split(head, self._any_added), *body, *self._split(tail, self._any_added)]
            )
        if add_generation_prompt:
            ids += self._encode(self._split(_ASSISTANT, self._any_added))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of sampled ids without control tokens; broken UTF-8 becomes U+FFFD."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def _id(self, name: str) -> int:
        if name not in self._added:
            raise UserError(f'the tokenizer has no added token {name}; it is not one of the Qwen family')
        return self._added[name]

    def _image(self, image: ImageRef) -> list[int]:
        return [
            self.vision_start,
            *[self.image_pad] * self.visual_tokens(image.width, image.height),
            self.vision_end,
        ]

    def _parts(self, parts: Iterable[Part]) -> list[str | int]:
        items: list[str | int] = []
        for part in parts:
            items += [part] if isinstance(part, str) else self._image(part)
        return items

    def _split(self, text: str, allowed: re.Pattern[str]) -> list[str | int]:
        """`text` as plain strings and the ids of those added tokens that `allowed` matches."""
        return [self._added[s] if i % 2 else s for i, s in enumerate(allowed.split(text))]

    def _encode(self, items: Iterable[str | int]) -> list[int]:
        """Ids of plain text and given ids. Neighbouring texts are joined first: merges cross their seams."""
        ids: list[int] = []
        plain = ''
        for item in [*items, -1]:
            if isinstance(item, str):
                plain += item
                continue
            # The tokenizer would find added tokens in plain text; cut after their first character, it cannot.
            cuts = [0, *(m.start() + 1 for m in self._added_start.finditer(plain)), len(plain)]
            for start, end in itertools.pairwise(cuts):
                if start < end:
                    ids += self.tokenizer.encode(plain[start:end], add_special_tokens=False).ids
            plain = ''
            ids.append(item)
        return ids[:-1]


def tokenise(
    trajectory: Trajectory, tokenizer: ChatTokenizer, system: str, user_parts: Sequence[Part]
) -> Trajectory:
    """Fills the token lists of a trajectory that an expert wrote as text, in place, and returns it.

    Log-probabilities are set to empty lists: nothing was sampled. The prompt is `tokenizer.prompt(system,
    user_parts)`.
    """
    trajectory.prompt_tokens = tokenizer.prompt(system, user_parts)
    for turn in trajectory.turns:
        turn.tokens = tokenizer.assistant(turn.text)
        turn.log_probs, turn.raw_log_probs = [], []
        turn.observation_tokens = (
            [] if turn.observation is None else tokenizer.observation(turn.observation.parts, turn.tokens[-1])
        )
    return trajectory


def write_tokenizer_config(folder: str | Path) -> None:
    """Writes tokenizer_config.json with the chat template, as transformers reads it, into `folder`."""
    config = {
        'add_prefix_space': False,
        'bos_token': None,
        'chat_template': CHAT_TEMPLATE,
        'clean_up_tokenization_spaces': False,
        'eos_token': '<|im_end|>',
        'pad_token': '<|endoftext|>',
        'split_special_tokens': False,
        'tokenizer_class': 'Qwen2Tokenizer',
        'unk_token': None,
    }
    (Path(folder) / 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


def _alternatives(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `tokens`, the longest first; nothing if there are none."""
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile('(' + '|'.join(map(re.escape, ordered)) + ')' if ordered else '((?!))')
