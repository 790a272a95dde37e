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
    """One trajectory's tokens after the prompt. `response_mask` marks what the policy wrote; `images` in
    order of their tokens.
    """

    tokens: Sequence[int]
    response_mask: Sequence[bool]
    images: Sequence[str] = ()
    log_probs: Sequence[
        float
    ] = ()  # of own tokens as sampled, aligned with `tokens`; empty outside of RL


class Row(NamedTuple):
    """One group: prompt tokens, the images in the prompt (content hashes), and its members."""

    prompt: Sequence[int]
    images: Sequence[str]
    members: Sequence[Member]


class GroupBatch(NamedTuple):
    """B rows padded to static lengths. Feature indices are negative on text; see `Policy.embed`.

    Every array can be cut between rows, images too: each row has its own table of features.
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
    features: Float[np.ndarray, 'b f d']
    packing: Packing | None = None

    @property
    def padded_tokens(self) -> int:
        """Tokens that the layers' matrices run over, padding included."""
        return (
            self.prompt_valid.size
            + (self.valid if self.packing is None else self.packing.index).size
        )


class ImageTable(NamedTuple):
    """What a batch must know of an image: its grid of patches and its features (merged tokens ×
    width).
    """

    grids: Mapping[str, tuple[int, int, int]]
    features: Mapping[str, Float[np.ndarray, 'm d']]


def feature_tables(
    rows: Sequence[Sequence[str]],
    images: ImageTable,
    step: int,
    count: int,
    width: int,
    dtype: DTypeLike,
) -> tuple[Float[np.ndarray, 'b f d'], list[dict[str, tuple[int, int]]]]:
    """Each row's images, their features one after another, and where each image starts and how long
    it is.

    Args:
        rows: the names of the images in each row.
        step: buckets of a table's length, which is the same for all rows.
        count: tables, at least as many as rows; spare ones are empty.
        width: of a feature, where there is no image to tell.
        dtype: of the tables.
    """
    places: list[dict[str, tuple[int, int]]] = []
    for names in rows:
        place, total = {}, 0
        for name in dict.fromkeys(names):
            place[name] = total, len(images.features[name])
            total += place[name][1]
        places.append(place)
    longest = max((sum(length for _, length in place.values()) for place in places), default=0)
    width = next((images.features[name].shape[1] for place in places for name in place), width)
    tables = np.zeros((count, bucket(max(longest, 1), step), width), dtype)
    for table, place in zip(tables, places):
        for name, (first, length) in place.items():
            table[first : first + length] = images.features[name]
    return tables, places


def image_rows(
    tokens: Sequence[int],
    images: Sequence[str],
    offsets: Mapping[str, tuple[int, int]],
    image_token: int,
) -> Int[np.ndarray, ' n']:
    """For each token the place in its row's feature table that it stands for, or −1.

    Raises:
        ValueError: the image tokens are not exactly those of the images.
    """
    tokens = np.asarray(tokens, np.int64)
    out = np.full(len(tokens), -1, np.int32)
    places = np.nonzero(tokens == image_token)[0]
    wanted = [
        np.arange(start, start + count, dtype=np.int32)
        for start, count in (offsets[i] for i in images)
    ]
    total = sum(map(len, wanted))
    if total != len(places):
        raise ValueError(
            f'{len(places)} image tokens stand for {len(images)} images of {total} tokens.'
        )
    if wanted:
        out[places] = np.concatenate(wanted)
    return out


def padded_lengths(rows: Sequence[Row], prompt_step: int, suffix_step: int) -> tuple[int, int]:
    """The lengths P and S that these rows are padded to in one batch; a prompt's last token opens
    its suffixes.
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
    batch: int | None = None,
    prompt_step: int = 64,
    suffix_step: int = 64,
    feature_step: int = 512,
    pack_step: int = 0,
) -> GroupBatch:
    """Pads rows of groups into one batch whose shapes come from few buckets.

    Args:
        members: G; rows with fewer members get empty ones.
        batch: B, at least the number of rows; missing rows are empty.
        prompt_step, suffix_step, feature_step: buckets of prompt length, suffix length and a row's
            image table.
        pack_step: buckets of a row's tokens after the prompt, which are packed; 0 leaves them in
            padded suffixes.
    """
    batch = batch or len(rows)
    tables, places = feature_tables(
        [[*r.images, *(i for m in r.members for i in m.images)] for r in rows],
        images,
        feature_step,
        batch,
        1,
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
    for b, (row, offsets) in enumerate(zip(rows, places)):
        grids = [images.grids[i] for i in row.images]
        positions, following = mrope_positions(np.asarray(row.prompt), grids, image_token, merge)
        n = len(row.prompt) - 1
        out.prompt[b, :n] = row.prompt[:-1]
        out.prompt_positions[:, b, :n] = positions[:, :-1]
        out.prompt_valid[b, :n] = True
        out.prompt_features[b, :n] = image_rows(row.prompt[:-1], row.images, offsets, image_token)
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
                member.tokens, member.images, offsets, image_token
            )
            out.response_mask[b, g, 1 : 1 + k] = member.response_mask
            if len(member.log_probs):
                out.log_probs[b, g, 1 : 1 + k] = member.log_probs
    return out._replace(packing=Packing.of(out.valid, pack_step)) if pack_step else out
