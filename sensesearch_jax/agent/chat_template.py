"""Qwen's chat template in pieces, token in, token out: what was sampled is never encoded again.

A conversation is prompt · sampled turn · observation · sampled turn · …, each piece encoded once.
Together they are the tokens of the template applied to the whole conversation (tested against
transformers).
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sensesearch_jax.agent.trajectory import ImageRef, Trajectory
from sensesearch_jax.errors import UserError

# Qwen2.5-VL's own template in the part that an agent's conversations use, with tools and their
# results as the text-only Qwen2.5 has them: the original writes a tool's result as a turn of
# 'tool', which no Qwen model has seen. What it cannot render it refuses, so that nothing of a
# conversation is dropped.
CHAT_TEMPLATE = """\
{%- macro parts(content) -%}
{%- if content is string %}{{ content }}
{%- elif content is not none -%}
{%- for part in content -%}
{%- if part is string or part is not mapping %}{{ raise_exception('a part of a message must be an object with a type') }}
{%- elif part.type in ('image', 'image_url') or (part.type is not defined and ('image' in part or 'image_url' in part)) -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'text' or (part.type is not defined and 'text' in part) %}{{ part.text }}
{%- else %}{{ raise_exception('parts of messages are text or images, not ' ~ part.type) }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
{{ '<|im_start|>system\\n' }}
{%- if messages and messages[0].role == 'system' %}{{ parts(messages[0].content) }}{{ '\\n\\n' }}{% endif -%}
{{ '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor -%}
{{ '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' }}
{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n' }}
{{- '</tool_call><|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.tool_calls and message.role != 'assistant' %}{{ raise_exception('only assistants call tools') }}{% endif -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif -%}
{{ '\\n<tool_response>\\n' }}{{ parts(message.content) }}{{ '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif -%}
{%- elif message.role == 'assistant' -%}
{{ '<|im_start|>assistant\\n' }}{{ parts(message.content) }}
{%- for call in message.tool_calls or [] -%}
{%- set called = call.function if call.function is defined else call -%}
{%- if message.content or not loop.first %}{{ '\\n' }}{% endif -%}
{{ '<tool_call>\\n{"name": ' }}{{ called.name | tojson }}{{ ', "arguments": ' }}
{{- called.arguments if called.arguments is string else called.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- elif message.role in ('system', 'user') -%}
{%- if not (tools and loop.first and message.role == 'system') -%}
{{ '<|im_start|>' + message.role + '\\n' }}{{ parts(message.content) }}{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- else %}{{ raise_exception('message role ' ~ message.role ~ ' is not system, user, assistant or tool') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""  # noqa: E501

_ASSISTANT = '<|im_start|>assistant\n'

# Tags that a turn is written with, of all protocols, and those that stand around a tool's result.
# Either may be tokens of their own, in Qwen2.5 only that of the call.
_OF_A_TURN = {
    f'<{end}{tag}>' for tag in ('think', 'thinking', 'tool_call', 'answer') for end in ('', '/')
}
_OF_A_RESULT = {'<tool_response>', '</tool_response>'}

Part = str | ImageRef


class ChatTokenizer:
    """The tokenizer of a policy directory, with the chat template around it.

    Text is encoded by whom it comes from. The template's own text and the system prompt may hold
    any special token; an assistant's text those that are ordinary vocabulary (`<tool_call>`), never
    control tokens; text of users and tools none at all: `<|im_end|>` in a web page is then ten
    harmless characters.

    Control tokens are those that the tokenizer calls special, those of the form `<|…|>` and the
    tags of a tool's result, but none of the tags that a turn is written with.

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
        self.turn_newline = True  # after a policy's turn, see `Protocol`
        added = self.tokenizer.get_added_tokens_decoder()
        self._added = {token.content: i for i, token in added.items()}
        control = {
            t.content for t in added.values() if t.special or re.fullmatch(r'<\|.*\|>', t.content)
        }
        self._control = (control | _OF_A_RESULT) & self._added.keys() - _OF_A_TURN
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
        """Ids that may never be sampled: all control tokens but those that end a turn."""
        return tuple(sorted({self._added[name] for name in self._control} - set(self.stop_ids)))

    def prompt(self, system: str, user_parts: Sequence[Part]) -> list[int]:
        """System turn, user turn and the header of the assistant's first turn.

        Args:
            system: the system prompt, trusted.
            user_parts: the user's text and images in reading order; text is not trusted.
        """
        head = self._trusted(f'<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n')
        tail = self._trusted(f'<|im_end|>\n{_ASSISTANT}')
        return self._encode([*head, *self._parts(user_parts), *tail])

    def observation(self, parts: Sequence[Part], last_token: int | None = None) -> list[int]:
        """Ids that follow a sampled turn: its end, the tool's result as a user turn, the next
        assistant header.

        Args:
            parts: `Observation.parts`; text is not trusted.
            last_token: the last sampled id; `<|im_end|>` is added unless it is one.
        """
        close = '' if last_token == self.im_end else '<|im_end|>'
        close += '\n' if self.turn_newline else ''
        head = self._trusted(f'{close}<|im_start|>user\n<tool_response>\n')
        tail = self._trusted(f'\n</tool_response><|im_end|>\n{_ASSISTANT}')
        return self._encode([*head, *self._parts(parts), *tail])

    def assistant(self, text: str) -> list[int]:
        """The ids a policy would sample for `text`: up to `</tool_call>`, or with `<|im_end|>` at
        the end.
        """
        ids = self._encode(self._split(text, self._ordinary_added))
        return ids if ids and ids[-1] == self.tool_call_end else [*ids, self.im_end]

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> list[int]:
        """A whole conversation, by the same rules of trust as the pieces.

        Args:
            messages: objects with 'role' (system, user, assistant or tool) and 'content' (a string,
                or parts). Results of tools that follow each other are one user turn. An assistant's
                calls are part of its text, as they were sampled.
            add_generation_prompt: whether the header of a further assistant turn follows.

        Raises:
            ValueError: another role, another member (tool_calls), or a part that is neither text
                nor image.
        """
        items: list[str | int] = []
        roles = [message['role'] for message in messages]
        for i, (role, message) in enumerate(zip(roles, messages)):
            if role not in ('system', 'user', 'assistant', 'tool'):
                raise ValueError(f'message role {role!r} is not system, user, assistant or tool')
            if set(message) - {'role', 'content'}:
                raise ValueError(
                    f'a message has {sorted(set(message) - {"role", "content"})}; write them into its content'
                )
            parts = (
                [message['content']]
                if isinstance(message['content'], str)
                else list(message['content'])
            )
            if not all(isinstance(part, str | ImageRef) for part in parts):
                raise ValueError('a part of a message is neither text nor an image reference')
            if role == 'assistant':
                items += [*self._trusted(_ASSISTANT), *self.assistant(''.join(parts))]
                items += self._trusted('\n' if items[-1] == self.im_end else '<|im_end|>\n')
                continue
            head, tail = f'<|im_start|>{role}\n', '<|im_end|>\n'
            if role == 'tool':
                head = (
                    '\n' if i and roles[i - 1] == role else '<|im_start|>user\n'
                ) + '<tool_response>\n'
                tail = '\n</tool_response>' + ('' if roles[i + 1 : i + 2] == [role] else tail)
            body = self._trusted(''.join(parts)) if role == 'system' else self._parts(parts)
            items += [*self._trusted(head), *body, *self._trusted(tail)]
        if add_generation_prompt:
            items += self._trusted(_ASSISTANT)
        return self._encode(items)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids without special tokens; broken UTF-8 becomes U+FFFD."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def turn_text(self, ids: Sequence[int]) -> str:
        """The text of a sampled turn: all of its ids but the one that ended it, control tokens as
        they are written.

        An id that the tokenizer does not know is written like them, `<|151700|>`. Broken UTF-8
        becomes U+FFFD.
        """
        ids = [int(i) for i in ids]
        if ids and ids[-1] in (self.im_end, self.end_of_text):
            del ids[-1]

        def known(i):
            return self.tokenizer.id_to_token(i) is not None

        def text(run):
            return self.tokenizer.decode(run, skip_special_tokens=False)

        runs = ((is_text, list(run)) for is_text, run in itertools.groupby(ids, known))
        return ''.join(
            text(run) if is_text else ''.join(f'<|{i}|>' for i in run) for is_text, run in runs
        )

    def _id(self, name: str) -> int:
        if name not in self._added:
            raise UserError(
                f'the tokenizer has no added token {name}; it is not one of the Qwen family'
            )
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

    def _trusted(self, text: str) -> list[str | int]:
        """Text of the template or the system prompt, which may hold any added token."""
        return self._split(text, self._any_added)

    def _split(self, text: str, allowed: re.Pattern[str]) -> list[str | int]:
        """`text` as plain strings and the ids of those added tokens that `allowed` matches."""
        return [self._added[s] if i % 2 else s for i, s in enumerate(allowed.split(text))]

    def _encode(self, items: Iterable[str | int]) -> list[int]:
        """Ids of plain text and given ids. Neighbouring texts are joined: merges cross seams."""
        ids: list[int] = []
        plain = ''
        for item in [*items, -1]:
            if isinstance(item, str):
                plain += item
                continue
            # The tokenizer would find added tokens in plain text; cut after their first character,
            # it cannot.
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
    """Fills the token lists of a trajectory that an expert wrote as text.

    Log-probabilities become empty lists: nothing was sampled.

    Args:
        trajectory: changed in place.
        tokenizer: of the policy that is to learn from it.
        system: the system prompt, trusted.
        user_parts: the user's text and images in reading order; text is not trusted.

    Returns:
        The trajectory.
    """
    trajectory.prompt_tokens = tokenizer.prompt(system, user_parts)
    for turn in trajectory.turns:
        turn.tokens = tokenizer.assistant(turn.text)
        turn.log_probs = []
        turn.observation_tokens = (
            []
            if turn.observation is None
            else tokenizer.observation(turn.observation.parts, turn.tokens[-1])
        )
    return trajectory


def tokenizer_config() -> dict[str, Any]:
    """The contents of a tokenizer_config.json, as transformers reads it, with the chat template."""
    return {
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


def _alternatives(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `tokens`, the longest first; nothing if there are none."""
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile('(' + '|'.join(map(re.escape, ordered)) + ')' if ordered else '((?!))')
