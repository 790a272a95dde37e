"""M-RoPE: rotary positions (time, row, column) of a token sequence with pictures.

Text advances all three axes together; a picture's tokens share one time and differ in row and
column, and the text after it goes on one past the largest position so far (Qwen2-VL, arXiv
2409.12191, section 2.1; Qwen2.5-VL, arXiv 2502.13923). A conversation grows turn by turn, and
positions do too: the positions of each segment start where those of the last one ended.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def mrope_positions(
    token_ids: Sequence[int] | np.ndarray,
    grids: Sequence[Sequence[int]] | np.ndarray,
    image_token: int,
    merge: int,
    start: int = 0,
) -> tuple[np.ndarray, int]:
    """M-RoPE positions of one segment of a conversation, and the first position of the next.

    Args:
        token_ids: [n] token ids; each picture is a run of `image_token`, one per merged token.
        grids: (1, h, w) in patches of every picture in the segment, in reading order.
        image_token: id of the placeholder token.
        merge: patches per side of a merged token.
        start: first position, the second value returned for the segment before.

    Returns:
        int32 [3, n] (time, row, column) and the next free position, one past the largest in use.

    Raises:
        ValueError: placeholders and grids do not match, for instance because a picture was split.
    """
    tokens = np.asarray(token_ids)
    positions = np.empty((3, tokens.size), np.int32)
    places = np.flatnonzero(tokens == image_token)
    at, position = 0, start  # the first token without a position, and its position
    used = 0  # placeholders that belong to the pictures so far
    for number, (frames, height, width) in enumerate(grids, 1):
        if frames != 1 or height % merge or width % merge:
            raise ValueError(
                f'grid {(int(frames), int(height), int(width))} of image {number} is no still picture whose '
                f'sides are multiples of {merge}'
            )
        rows, columns = int(height) // merge, int(width) // merge
        count = rows * columns
        run = places[used : used + count]
        if run.size < count or run[-1] - run[0] != count - 1:
            raise ValueError(
                f'image {number} needs {count} placeholder tokens in a row, but the tokens hold fewer at its '
                'place; split conversations only between turns'
            )
        first = int(run[0])
        positions[:, at:first] = np.arange(position, position + first - at)
        position += first - at
        at, used = first + count, used + count
        positions[0, first:at] = position
        positions[1, first:at] = position + np.repeat(np.arange(rows), columns)
        positions[2, first:at] = position + np.tile(np.arange(columns), rows)
        position += max(rows, columns)
    if used != places.size:
        spare = places.size - used
        raise ValueError(
            f'{spare} placeholder tokens belong to none of the {len(grids)} images given'
        )
    positions[:, at:] = np.arange(position, position + tokens.size - at)
    return positions, position + tokens.size - at


def rotate(
    x: Float[Array, '... s h e'], cos: Float[Array, '... s e'], sin: Float[Array, '... s e']
) -> Float[Array, '... s h e']:
    """Rotary embedding in the half-split layout of Qwen: pairs are (i, i + E/2).

    Args:
        x: queries or keys.
        cos: cosines of the angles, the same for all heads.
        sin: sines of the angles.

    Returns:
        the rotated x in its dtype; the arithmetic is in float32.
    """
    half = x.shape[-1] // 2
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    x32, turned = x.astype(jnp.float32), turned.astype(jnp.float32)
    return (x32 * cos[..., None, :] + turned * sin[..., None, :]).astype(x.dtype)


def text_rotary(
    positions: Int[Array, ' 3 *n'],
    head_width: int,
    theta: float,
    sections: tuple[int, int, int],
    interleaved: bool,
) -> tuple[Float[Array, '*n e'], Float[Array, '*n e']]:
    """Cosines and sines of the 3-D multimodal rotary positions (Qwen2-VL, arXiv 2409.12191, section
    2.1).

    The E/2 frequencies go in order to time, row and column, as many as `sections` says. Interleaved
    (Qwen3-VL, arXiv 2511.21631) every third goes to the row and every third to the column, until
    each has as many, and the others to time.

    Args:
        positions: of time, row and column.
        head_width: E.
        theta: base of the frequencies.
        sections: numbers of frequencies of time, row and column; their sum is E/2.
        interleaved: whether they alternate.
    """
    half = head_width // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    axis = np.repeat(np.arange(3), sections)
    if interleaved:
        axis = np.zeros(half, int)
        for i in (1, 2):
            axis[i : 3 * sections[i] : 3] = i
    # A sum with two zeros. A gather of positions by axis is one operation over all tokens on a TPU,
    # and that of a prefill wants more of a tpu7x's vector memory than there is.
    of_axis = np.eye(3, dtype=np.float32)[:, axis] * frequencies  # [3, half]
    angles = sum(p[..., None] * f for p, f in zip(positions.astype(jnp.float32), of_axis))
    angles = jnp.concatenate([angles, angles], axis=-1)
    return _once(angles)


def vision_rotary(
    positions: Int[Array, '*n 2'], head_width: int, theta: float
) -> tuple[Float[Array, '*n e'], Float[Array, '*n e']]:
    """Cosines and sines of the tower's 2-D rotary positions.

    Half of the frequencies are for the row, half for the column.

    Args:
        positions: row and column of each patch.
        head_width: E.
        theta: base of the frequencies.
    """
    quarter = head_width // 4
    frequencies = theta ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angles = positions.astype(jnp.float32)[..., None] * frequencies  # [*n, 2, quarter]
    angles = angles.reshape(*positions.shape[:-1], 2 * quarter)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return _once(angles)


def _once(angles):
    """Cosines and sines as arrays: fused into what reads them they would be computed for every head."""
    return jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))
