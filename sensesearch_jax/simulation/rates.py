"""Seconds of a run's programs, from the work that each cannot do without and the share of the
published rates that it reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from sensesearch_jax.errors import UserError
from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.training.flops import BACKWARD, decoder_matrices, forward_flops, tower_flops

GIB = 2.0**30


class Chip(NamedTuple):
    """Published, per device as jax counts them: bfloat16 FLOP/s, bytes/s of memory and into it by
    links, memory; and the devices of a host that is one of several.
    """

    flops: float
    memory: float
    network: float
    size: float
    per_host: int = 4


# cloud.google.com/tpu/docs: v5e, v5p, v6e, tpu7x. A chip of tpu7x is two devices, each with half of
# its rates.
CHIPS = {
    'v5e': Chip(197e12, 819e9, 200e9, 16 * GIB),
    'v5p': Chip(459e12, 2765e9, 600e9, 95 * GIB),
    'v6e': Chip(918e12, 1640e9, 448e9, 32 * GIB),
    'tpu7x': Chip(2307e12 / 2, 7380e9 / 2, 600e9 / 2, 96 * GIB, 8),
}
# Data sheets of NVIDIA; between hosts a card has a link of 400 Gbit/s.
GPUS = {'h100': Chip(989e12, 3350e9, 50e9, 80e9, 8), 'h200': Chip(989e12, 4800e9, 50e9, 141e9, 8)}
# Of a machine of which nothing is published: what it takes is fitted to a measured run.
MEASURED = Chip(1e11, float('inf'), float('inf'), float('inf'))


class Efficiency(NamedTuple):
    """Shares of the published rates: of FLOP/s in the tower, prefill and training, of memory in
    decoding, of links in the hand-over of weights; bytes/s of a checkpoint from a device to its host.
    """

    tower: float
    prefill: float
    training: float
    decode: float
    network: float
    checkpoint: float


# What the 7B programs reached on one H200 (docs/accelerator.md): training with recomputation, which
# is not among its FLOPs. Those of links and of checkpoints are guesses.
ON_H200 = Efficiency(0.21, 0.45, 0.42, 0.52, network=0.5, checkpoint=2e9)
AT_BEST = Efficiency(1.0, 1.0, 1.0, 1.0, network=1.0, checkpoint=float('inf'))


@dataclass(frozen=True)
class Rates:
    """Seconds of each program.

    Args:
        sizes: of the policy.
        chip: of each device.
        efficiency: shares of its rates.
        devices: all of them, which train.
        tower: devices that a pass through the vision tower runs on.
        replica: devices of one replica of the policy, which samples.
        dtype: of the weights and caches that it samples with.
        sampling: factor on all times of sampling, fitted to a measured run.
        training: likewise, on those of the updates.
    """

    sizes: PolicySizes
    chip: Chip
    efficiency: Efficiency
    devices: int
    tower: int
    replica: int
    dtype: str
    sampling: float = 1.0
    training: float = 1.0

    @property
    def parameters(self) -> int:
        """Parameters of the decoder, its embedding and head."""
        text = self.sizes.language
        return decoder_matrices(text) + (2 - text.tied_head) * text.vocabulary * text.width

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's keys and values in all layers."""
        text = self.sizes.language
        return 2 * text.layers * text.kv_heads * text.head_width * jnp.dtype(self.dtype).itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a decoded token reads: all but the embedding."""
        text = self.sizes.language
        head = text.vocabulary * text.width
        return (decoder_matrices(text) + head) * jnp.dtype(self.dtype).itemsize

    def prefill(self, rows: int, tokens: int) -> float:
        """A pass over so many prompts, padded to one length."""
        return self._compute(forward_flops(self.sizes.language, [tokens] * rows, [[0]] * rows))

    def extend(self, lanes: int, tokens: int, before: int) -> float:
        """A pass over tools' responses.

        Args:
            lanes: of the pass, padding included.
            tokens: of each lane.
            before: tokens of the caches that each lane attends to.
        """
        text = self.sizes.language
        seen = 4 * text.layers * text.heads * text.head_width * (before + tokens / 2)
        work = lanes * tokens * (2 * decoder_matrices(text) + seen)
        return self._slower(work, self.weight_bytes + self.token_bytes * lanes * before)

    def decode(self, rows: int, width: int, steps: int, prompt: int, suffix: float) -> float:
        """A chunk for a grid of lanes.

        Args:
            rows: of the grid, which share a prompt's cache.
            width: lanes of a row.
            steps: tokens of the lane that gets most.
            prompt: tokens of a prompt's cache.
            suffix: tokens that are read of a lane's cache, on average.
        """
        text = self.sizes.language
        each = 2 * decoder_matrices(text) + 2 * text.vocabulary * text.width
        each += 4 * text.layers * text.heads * text.head_width * (prompt + suffix)
        held = self.token_bytes * rows * (prompt + width * suffix)
        return steps * self._slower(rows * width * each, self.weight_bytes + held)

    def vision(self, pictures: int, slots: int) -> float:
        """A pass over so many pictures, of so many places (merged tokens) each."""
        vision = self.sizes.vision
        work = pictures * tower_flops(vision, slots * vision.merge_size**2)
        return self.sampling * work / (self.tower * self.chip.flops * self.efficiency.tower)

    def gradient(
        self, rows: int, prompt: int, members: int, suffix: int, places: int, reference: bool
    ) -> float:
        """A micro-batch forward and backward.

        Args:
            rows: of all devices.
            prompt: tokens that prompts are padded to.
            members: of a row.
            suffix: tokens that suffixes are padded to, in attention.
            places: suffix tokens of a row that go through the matrices: packed, or padded as well.
            reference: whether the reference's forward pass is made too.
        """
        text = self.sizes.language
        forward = forward_flops(text, [prompt], [[suffix] * members])
        each = 2 * (decoder_matrices(text) + text.vocabulary * text.width)
        forward -= (members * suffix - places) * each
        work = rows * forward * (1 + BACKWARD + reference)
        return self.training * work / (self.devices * self.chip.flops * self.efficiency.training)

    def update(self) -> float:
        """The optimizer's step: parameter, gradient and two moments read, all but one written."""
        moved = 7 * 4 * self.parameters / self.devices
        return self.training * moved / (self.chip.memory * self.efficiency.decode)

    def hand_over(self) -> float:
        """The trained weights, gathered for each host's samplers."""
        share = self.parameters * jnp.dtype(self.dtype).itemsize / self.replica
        return share / (self.chip.network * self.efficiency.network)

    def checkpoint(self) -> float:
        """The time in which a checkpoint's state goes to the hosts; it is written beside the run."""
        return 3 * 4 * self.parameters / self.devices / self.efficiency.checkpoint

    def _compute(self, flops: float) -> float:
        rate = self.replica * self.chip.flops * self.efficiency.prefill
        return self.sampling * flops / rate

    def _slower(self, flops: float, moved: float) -> float:
        memory = moved / (self.replica * self.chip.memory * self.efficiency.decode)
        return max(self._compute(flops), self.sampling * memory)


def slice_of(topology: str) -> tuple[Chip, int, int]:
    """Chip, devices, and devices of a host of a slice such as v5p:4x4x4, or h200:16.

    Raises:
        UserError: an unknown kind, or no shape.
    """
    kind, _, shape = topology.partition(':')
    known = CHIPS | GPUS
    try:
        devices, chip = 1 + (kind == 'tpu7x'), known[kind]
        for side in shape.split('x'):
            devices *= int(side)
    except (KeyError, ValueError):
        raise UserError(
            f"The slice '{topology}' is unknown; give a kind of {', '.join(known)} and its shape, such as v5p:4x4x4."
        ) from None
    return chip, devices, min(devices, chip.per_host)
