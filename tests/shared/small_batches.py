"""Small group batches for steps of learning: turns and responses, pictures, ragged groups, an empty
member."""

import numpy as np
from small_policies import MERGE, PAD, table, tokens_of

from sensesearch_jax.batching.group_batch import Member, Row, build_groups


def rows_of(layouts, seed=0):
    """Rows of (prompt, members) in parts: even parts of a member are its own, unless they are
    pictures."""
    random = np.random.default_rng(seed)
    rows = []
    for prompt, suffixes in layouts:
        tokens, images = tokens_of(prompt, random)
        members = []
        for suffix in suffixes:
            ids, own, names = [], [], []
            for i, part in enumerate(suffix):
                more, pictures = tokens_of([part], random)
                ids, names = ids + more, names + pictures
                own += [i % 2 == 0 and not pictures] * len(more)
            members.append(Member(ids, own, names, random.normal(-3, 1, len(ids)).tolist()))
        rows.append(Row(tokens, images, members))
    return rows


# Turns of the policy (even places) and responses between them; ragged groups, an empty member.
LAYOUTS = [
    ([5, 'scene', 6], [[7], [4, 'crop', 9], [3, 2, 5]]),
    ([9], [[6], [2, 'thumbnail', 4], [5]]),
    ([2, 'thumbnail', 3], [[8, 3, 2], [], [3]]),
    ([7], [[2], [9], [4, 'crop', 3, 5, 2]]),
]
ROWS = rows_of(LAYOUTS)


def batch_of(
    rows, members=3, batch=None, prompt_step=64, suffix_step=64, feature_step=64, pack_step=0
):
    """Rows as a batch; one length for all by default, so that few programs are compiled."""
    return build_groups(
        rows,
        table(),
        image_token=PAD,
        merge=MERGE,
        members=members,
        width=32,
        batch=batch,
        prompt_step=prompt_step,
        suffix_step=suffix_step,
        feature_step=feature_step,
        pack_step=pack_step,
    )
