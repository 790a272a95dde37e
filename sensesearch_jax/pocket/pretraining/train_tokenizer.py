"""Trains the pocket policy's byte-level BPE tokenizer: Qwen's rules and special tokens, fewer
merges.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from sensesearch_jax.agent.chat_template import tokenizer_config

# In Qwen2.5's order, which is that of their ids: control tokens, then those that are ordinary
# vocabulary.
CONTROL_TOKENS = (
    '<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|object_ref_start|>', '<|object_ref_end|>',
    '<|box_start|>', '<|box_end|>', '<|quad_start|>', '<|quad_end|>', '<|vision_start|>',
    '<|vision_end|>', '<|vision_pad|>', '<|image_pad|>', '<|video_pad|>',
)  # fmt: skip
ORDINARY_TOKENS = (
    '<tool_call>', '</tool_call>', '<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>',
    '<|fim_pad|>', '<|repo_name|>', '<|file_sep|>',
)  # fmt: skip

# Qwen2's rule of what may merge: words with one sign or space before, digits alone, runs of signs,
# line ends.
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r'|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def train_tokenizer(texts: Iterable[str], folder: str | Path, vocab_size: int = 2048) -> Tokenizer:
    """Trains on `texts` and writes tokenizer.json and tokenizer_config.json, with the chat
    template, to disk.

    Tags such as `<think>` get cheap by ordinary merges if they occur in `texts`. The same texts in
    the same order give the same file.

    Args:
        texts: any number of texts; special tokens in them are left out of the counts.
        folder: created if needed.
        vocab_size: size in all: 256 bytes, the special tokens, and merges for the rest.

    Raises:
        ValueError: `vocab_size` leaves no room for a merge.
    """
    added = len(CONTROL_TOKENS) + len(ORDINARY_TOKENS)
    if vocab_size <= 256 + added:
        raise ValueError(f'vocab_size {vocab_size} leaves no merges; give more than {256 + added}')
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior='isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - added,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    special = re.compile('|'.join(map(re.escape, CONTROL_TOKENS + ORDINARY_TOKENS)))
    tokenizer.train_from_iterator(
        (piece for text in texts for piece in special.split(text) if piece), trainer
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ORDINARY_TOKENS])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(
        json.dumps(tokenizer_config(), indent=2) + '\n', encoding='utf-8'
    )
    return tokenizer
