"""Trajectories of a run as rows of a batch, with the visual features of their images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.batching.from_trajectories import to_row, to_shared_row
from sensesearch_jax.batching.group_batch import GroupBatch, build_groups
from sensesearch_jax.batching.length_bucketing import FINE, bucket
from sensesearch_jax.recipes.session import LoadedPolicy, unsampled
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.mesh import platform

# Steps of the padded lengths: coarse, since every shape is a program to compile.
PROMPT_STEP, SUFFIX_STEP, FEATURE_STEP = 384, 384, 1024
SHARED_STEP = 64  # of a prompt that is the same in every row
# Of packed suffixes on a CPU: attention alone is padded to it, and skips most of that padding there,
# while every length of a row times every length of a suffix would be a program.
PACKED_SUFFIX_STEP = 3 * SUFFIX_STEP


def row_length(prompt: int, suffix: int) -> tuple[int, int]:
    """Sort key of rows: the size that the prompt is padded to, and within one size the suffix."""
    return bucket(prompt - 1, PROMPT_STEP, FINE), suffix


def suppressed_mask(loaded: LoadedPolicy) -> np.ndarray:
    """[V] True for ids that are never sampled; training's distribution leaves them out as well."""
    mask = np.zeros(loaded.policy.sizes.language.vocabulary, bool)
    mask[unsampled(loaded)] = True
    return mask


def row_batch(
    loaded: LoadedPolicy,
    features: FeatureStore,
    groups: Sequence[Sequence[Trajectory]],
    members: int,
    rows: int,
    ahead: Sequence[Trajectory] = (),
    pack_step: int = 0,
    shared: bool = False,
    fatal_mistakes: int = 0,
) -> GroupBatch:
    """Groups of trajectories as one batch.

    Args:
        loaded: the policy.
        features: of its vision tower.
        groups: trajectories by question, at most `rows` of them.
        members: G, trajectories that a row has room for.
        rows: B, of the batch; those without a group are empty.
        ahead: trajectories of later batches, whose images fill up passes through the tower.
        pack_step: see `build_groups`.
        shared: whether the trajectories of a group are of different questions and share no more
            than the beginning of their prompts.
        fatal_mistakes: of the policy in a row, after which its tokens are masked; 0: none are.
    """
    sizes = loaded.policy.sizes

    def pictures(trajectories):
        return (image for t in trajectories for image in t.images)

    table = features.table(pictures(itertools.chain(*groups)), pictures(ahead))
    return build_groups(
        [
            to_shared_row(group, sizes.image_token) if shared else to_row(group, fatal_mistakes)
            for group in groups
        ],
        table,
        image_token=sizes.image_token,
        merge=sizes.vision.merge_size,
        members=members,
        width=sizes.vision.feature_width,
        batch=rows,
        prompt_step=SHARED_STEP if shared else PROMPT_STEP,
        suffix_step=PACKED_SUFFIX_STEP if pack_step and platform() == 'cpu' else SUFFIX_STEP,
        feature_step=FEATURE_STEP * members,
        pack_step=pack_step,
    )
