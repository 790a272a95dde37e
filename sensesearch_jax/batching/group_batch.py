"""The batch type: rows of groups. A row is one prompt and the G suffixes that share it.

The prompt's last token opens every suffix, so that the hidden state which predicts a member's first
response token is computed with that member, and one rule serves sampling and training: token s predicts
token s + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from sensesearch_jax.batching.length_bucketing import FINE, bucket
from sensesearch_jax.batching.packing import Packing
from sensesearch_jax.model.rope import mrope_positions


class Member(NamedTuple):
    """Suffix of one trajectory: its tokens after the prompt.

    Attributes:
        tokens: token ids.
        response_mask: for each token whether the policy wrote it.
        images: content hashes, in the order of their tokens.
        log_probs: for each token, of the response tokens as sampled and 0 elsewhere; empty outside
            of RL.
    """

    tokens: Sequence[int]
    response_mask: Sequence[bool]
    images: Sequence[str] = ()
    log_probs: Sequence[float] = ()


class Row(NamedTuple):
    """One group: prompt tokens, the images in the prompt (content hashes), and its members."""

    prompt: Sequence[int]
    images: Sequence[str]
    members: Sequence[Member]


class GroupBatch(NamedTuple):
    """Batch of B groups, one a row, padded to static lengths.

    Feature indices are negative on text, see `Policy.embed`. Every array can be sharded over rows,
    images too: each row has a feature table of its own.
    """

    prompt: Int[np.ndarray, 'b p']
    prompt_positions: Int[np.ndarray, '3 b p']
    prompt_valid: Bool[np.ndarray, 'b p']
    prompt_features: Int[np.ndarray, 'b p']
    tokens: Int[np.ndarray, 'b g s']
    positions: Int[np.ndarray, '3 b g s']
    valid: Bool[np.ndarray, 'b g s']
    feature_index: Int[np.ndarray, 'b g s']
    response_mask: Bool[np.ndarray, 'b g s']
    log_probs: Float[np.ndarray, 'b g s']
    features: Float[np.ndarray, 'b f w']
    packing: Packing | None = None

    @property
    def padded_tokens(self) -> int:
        """Number of tokens that the layers' matrices run over, padding included."""
        return (
            self.prompt_valid.size
            + (self.valid if self.packing is None else self.packing.index).size
        )


class ImageTable(NamedTuple):
    """Grids (frames, rows and columns of patches) and visual features of images, by content hash."""

    grids: Mapping[str, tuple[int, int, int]]
    features: Mapping[str, Float[np.ndarray, 'm w']]


def feature_tables(
    rows: Sequence[Sequence[str]],
    images: ImageTable,
    step: int,
    count: int,
    width: int,
    dtype: DTypeLike,
) -> tuple[Float[np.ndarray, 'b f w'], list[dict[str, tuple[int, int]]]]:
    """Feature table of each row: the features of its images one after another.

    Args:
        rows: names of the images in each row.
        images: features of all of them.
        step: unit of the buckets of a table's length, which is the same for all rows.
        count: number of tables, at least as many as rows; spare ones are zeros.
        width: features' width where there is no image.
        dtype: dtype of the tables.

    Returns:
        the tables, and for each row the span (first place, length) of each image in its table.
    """
    spans: list[dict[str, tuple[int, int]]] = []
    for names in rows:
        span, total = {}, 0
        for name in dict.fromkeys(names):
            span[name] = total, len(images.features[name])
            total += span[name][1]
        spans.append(span)
    longest = max((sum(length for _, length in span.values()) for span in spans), default=0)
    width = next((images.features[name].shape[1] for span in spans for name in span), width)
    tables = np.zeros((count, bucket(max(longest, 1), step), width), dtype)
    for table, span in zip(tables, spans):
        for name, (first, length) in span.items():
            table[first : first + length] = images.features[name]
    return tables, spans


def image_rows(
    tokens: Sequence[int],
    images: Sequence[str],
    spans: Mapping[str, tuple[int, int]],
    image_token: int,
) -> Int[np.ndarray, ' n']:
    """Feature index of each token: its place in the row's feature table, −1 on text.

    Args:
        tokens: token ids [N].
        images: names of the images among them, in the order of their tokens.
        spans: first place and length of each image in the table, see `feature_tables`.
        image_token: id of the placeholder token.

    Raises:
        ValueError: the image tokens are not exactly those of the images.
    """
    tokens = np.asarray(tokens, np.int64)
    out = np.full(len(tokens), -1, np.int32)
    at = np.nonzero(tokens == image_token)[0]
    features = [
        np.arange(first, first + length, dtype=np.int32)
        for first, length in (spans[i] for i in images)
    ]
    total = sum(map(len, features))
    if total != len(at):
        raise ValueError(
            f'{len(at)} image tokens stand for {len(images)} images of {total} tokens.'
        )
    if features:
        out[at] = np.concatenate(features)
    return out


def padded_lengths(rows: Sequence[Row], prompt_step: int, suffix_step: int) -> tuple[int, int]:
    """Lengths P and S that rows are padded to in one batch; a prompt's last token opens its
    suffixes.

    Args:
        rows: the groups of the batch.
        prompt_step: unit of the buckets of P, in tokens.
        suffix_step: unit of the buckets of S, in tokens.
    """
    return (
        bucket(max((len(r.prompt) - 1 for r in rows), default=0), prompt_step, FINE),
        bucket(
            max((1 + len(m.tokens) for r in rows for m in r.members), default=1), suffix_step, FINE
        ),
    )


def build_groups(
    rows: Sequence[Row],
    images: ImageTable,
    *,
    image_token: int,
    merge: int,
    members: int,
    width: int,
    batch: int | None = None,
    prompt_step: int = 64,
    suffix_step: int = 64,
    feature_step: int = 512,
    pack_step: int = 0,
) -> GroupBatch:
    """Batch of groups, padded to shapes that come from few buckets.

    Args:
        rows: the groups.
        images: grids and features of their images.
        image_token: id of the placeholder token.
        merge: patches along a side of a merged token.
        members: G; groups with fewer members get empty ones.
        width: W, of the features, which a batch without an image has none of.
        batch: B, at least the number of rows, which is the default; missing rows are empty.
        prompt_step: unit of the buckets of prompt length, in tokens.
        suffix_step: unit of the buckets of suffix length, in tokens.
        feature_step: unit of the buckets of a feature table's length, in merged tokens.
        pack_step: unit of the buckets of a row's packed suffix tokens; 0 leaves suffixes padded.

    Raises:
        ValueError: the image tokens of a prompt or suffix are not exactly those of its images.
    """
    batch = batch or len(rows)
    tables, spans = feature_tables(
        [[*r.images, *(i for m in r.members for i in m.images)] for r in rows],
        images,
        feature_step,
        batch,
        width,
        np.float32,
    )
    p, s = padded_lengths(rows, prompt_step, suffix_step)

    def zeros(*shape, dtype=np.int32):
        return np.zeros(shape, dtype)

    out = GroupBatch(
        zeros(batch, p),
        zeros(3, batch, p),
        zeros(batch, p, dtype=bool),
        zeros(batch, p) - 1,
        zeros(batch, members, s),
        zeros(3, batch, members, s),
        zeros(batch, members, s, dtype=bool),
        zeros(batch, members, s) - 1,
        zeros(batch, members, s, dtype=bool),
        zeros(batch, members, s, dtype=np.float32),
        tables,
    )
    for b, (row, span) in enumerate(zip(rows, spans)):
        grids = [images.grids[i] for i in row.images]
        positions, following = mrope_positions(np.asarray(row.prompt), grids, image_token, merge)
        n = len(row.prompt) - 1
        out.prompt[b, :n] = row.prompt[:-1]
        out.prompt_positions[:, b, :n] = positions[:, :-1]
        out.prompt_valid[b, :n] = True
        out.prompt_features[b, :n] = image_rows(row.prompt[:-1], row.images, span, image_token)
        for g, member in enumerate(row.members):
            k = len(member.tokens)
            out.tokens[b, g, 0] = row.prompt[-1]
            out.tokens[b, g, 1 : 1 + k] = member.tokens
            later, _ = mrope_positions(
                np.asarray(member.tokens),
                [images.grids[i] for i in member.images],
                image_token,
                merge,
                start=following,
            )
            out.positions[:, b, g, 0] = positions[:, -1]
            out.positions[:, b, g, 1 : 1 + k] = later
            out.valid[b, g, : 1 + k] = True
            out.feature_index[b, g, 1 : 1 + k] = image_rows(
                member.tokens, member.images, span, image_token
            )
            out.response_mask[b, g, 1 : 1 + k] = member.response_mask
            if len(member.log_probs):
                out.log_probs[b, g, 1 : 1 + k] = member.log_probs
    return out._replace(packing=Packing.of(out.valid, pack_step)) if pack_step else out
