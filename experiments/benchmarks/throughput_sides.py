"""The two sides that experiments/benchmarks/throughput.py measures, and the conversation they have."""

from __future__ import annotations

import functools
import io
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from experiments.benchmarks.work import Pictures, optimizer, random_policy
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.batching.group_batch import Member, Row, build_groups
from sensesearch_jax.model.config import RELEASED, LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.training.batch_losses import Objective, PolicyTargets
from sensesearch_jax.training.trainer import Learner

MEMBERS, TURNS, TURN = 8, 3, 48  # trajectories, their turns, sampled tokens of a turn
RESPONSE_PICTURE = (224, 224)  # pixels: 64 visual tokens
SMALL = PolicySizes(
    VisionSizes(6, 384, 768, 6, out_width=768, full_attention_blocks=(2, 5)),
    LanguageSizes(12, 768, 2112, 12, 6, 8192, mrope_sections=(8, 12, 12), tied_head=True),
    image_token=8100,
    vision_start_token=8101,
    vision_end_token=8102,
    video_token=8103,
    end_tokens=(8104,),
)


class Sampled(NamedTuple):
    """Outcome of a rollout: each member's turns and their log-probs."""

    turns: list[list[list[int]]]
    log_probs: list[list[list[float]]]


class Bench:
    """The prompt that a group shares, and each member's tool responses, between which the policy's
    own turns stand: of a released policy behind a 4K picture, or of one of a hundred million
    parameters behind 2,170 visual tokens.
    """

    def __init__(self, size: str | None):
        self.released = bool(size)
        self.sizes = s = RELEASED[size] if size else SMALL
        # Pixels of the prompt's picture, tokens of text beside it and in a tool response.
        shown, text, self.text = ((3840, 2160), 21, 64) if size else ((1736, 980), 300, 96)
        self.dtype = 'bfloat16' if size else 'float32'
        self.preprocessor = Preprocessor(min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
        self.files, self.random = Pictures(), np.random.default_rng(1)
        visual = s.image_token, s.video_token, s.vision_start_token, s.vision_end_token
        self.suppressed = (*visual, *s.end_tokens)  # that neither side may sample
        self.picture, seen = self._shown(shown)
        self.prompt = [*self._text(text), *seen, *self._text(8)]
        self.responses = [[self._response() for _ in range(TURNS - 1)] for _ in range(MEMBERS)]
        self.pictures = [self.picture, *(p for member in self.responses for _, p in member)]

    def __str__(self) -> str:
        parameters = nnx.state(abstract_policy(self.sizes), nnx.Param)
        count = sum(x.size for x in jax.tree.leaves(parameters))
        after = [TURNS * TURN + sum(len(r) for r, _ in member) for member in self.responses]
        return (
            f'{count / 1e6:.0f} million parameters, {self.dtype}; {len(self.prompt)} tokens prompt, '
            f'{np.mean(after):.0f} tokens after it, per trajectory'
        )

    def _text(self, count: int) -> list[int]:
        return self.random.integers(0, min(self.suppressed), count).tolist()

    def _shown(self, size: tuple[int, int]) -> tuple[ImageRef, list[int]]:
        sizes, picture = self.sizes, self.files.draw(size)
        visual = [sizes.image_token] * self.preprocessor.merged_tokens(*size)
        return picture, [sizes.vision_start_token, *visual, sizes.vision_end_token]

    def _response(self) -> tuple[list[int], ImageRef]:
        half, (picture, seen) = self.text // 2, self._shown(RESPONSE_PICTURE)
        return [*self._text(half), *seen, *self._text(half)], picture

    def after_prompt(self, sampled: Sampled, g: int) -> tuple[list[int], list[bool], list[float]]:
        """Tokens of a trajectory, which of them are its own, and their log-probs."""
        tokens, own, kept = [], [], []
        for i, (turn, log_probs) in enumerate(zip(sampled.turns[g], sampled.log_probs[g])):
            more = self.responses[g][i][0] if i < TURNS - 1 else []
            tokens += [*turn, *more]
            own += [True] * len(turn) + [False] * len(more)
            kept += [*log_probs, *[0.0] * len(more)]
        return tokens, own, kept


class Ours:
    """The engine and the learner of this project."""

    def __init__(self, bench: Bench):
        self.bench, self.policy = bench, random_policy(bench.sizes, jnp.dtype(bench.dtype))
        self.features = FeatureStore(
            self.policy, bench.preprocessor, bench.files, capacity_bytes=1 << 30, batch=8
        )
        longest = max(TURNS * TURN + sum(len(r) for r, _ in member) for member in bench.responses)
        self.engine = Engine(
            self.policy,
            groups=1,
            members=MEMBERS,
            prompt_capacity=-(-len(bench.prompt) // 128) * 128,
            suffix_capacity=-(-longest // 64) * 64 + 64 - TURN,
            chunk=TURN,
            stop=(),
            suppressed=bench.suppressed,
            prefill_rows=1,
            extend_lanes=MEMBERS,
        )

    @functools.cached_property
    def learner(self) -> Learner:
        """Made when it is first asked for, in the place of the sampler, whose room it may need."""
        bench, policy = self.bench, self.policy
        self.engine = self.policy = None
        return Learner(
            policy,
            optimizer(),
            suppressed=np.isin(np.arange(bench.sizes.language.vocabulary), bench.suppressed),
            objective=Objective(ratio='sequence', clip_low=0.2, clip_high=0.28, kl_coefficient=0.0),
            remat='attention' if bench.released else 'none',
            dtype=jnp.dtype(bench.dtype),
        )

    def warm_up(self) -> None:
        """A rollout, which compiles."""
        self.prepare()
        self.rollout(0)

    def prepare(self) -> None:
        """Patches of all pictures on the host, and no features: as with new pictures, which tool
        threads cut.
        """
        self.features.clear()
        self.features.begin_step()
        for picture in self.bench.pictures:
            self.features.prepare(picture)

    def rollout(self, seed: int) -> Sampled:
        """All turns, and every picture through the tower."""
        bench, features, first = self.bench, self.features, self.bench.picture
        out = Sampled(*([[] for _ in range(MEMBERS)] for _ in range(2)))
        table = features.table([first])
        positions = self.engine.prefill([0], [bench.prompt], [[first.sha256]], table)
        positions = list(positions) * MEMBERS
        on, seeds = np.ones((1, MEMBERS), bool), np.arange(MEMBERS, dtype=np.uint32)[None]
        for turn in range(TURNS):
            chunk = self.engine.decode(on, np.full((1, MEMBERS), TURN), seeds + 100 * seed)
            for g in range(MEMBERS):
                out.turns[g].append(chunk.tokens[0, g].tolist())
                out.log_probs[g].append(chunk.log_probs[0, g].tolist())
            if turn < TURNS - 1:
                tokens, pictures = zip(*(member[turn] for member in bench.responses))
                positions = self.engine.extend(
                    [(0, g) for g in range(MEMBERS)],
                    [turns[-1][-1] for turns in out.turns],
                    tokens,
                    [[p.sha256] for p in pictures],
                    [p + TURN for p in positions],
                    features.table(pictures),
                )
        return out

    def train(self, sampled: Sampled, advantages: np.ndarray) -> None:
        """One update on the trajectories as one group row; features are at hand from the rollout."""
        bench, members = self.bench, []
        for g, said in enumerate(bench.responses):
            tokens, own, kept = bench.after_prompt(sampled, g)
            members.append(Member(tokens, own, [p.sha256 for _, p in said], kept))
        batch = build_groups(
            [Row(bench.prompt, [bench.picture.sha256], members)],
            self.features.table(bench.pictures),
            image_token=bench.sizes.image_token,
            merge=2,
            members=MEMBERS,
            width=bench.sizes.vision.feature_width,
            prompt_step=8,
            suffix_step=8,
            feature_step=64,
        )
        wanted = advantages[None].astype(np.float32)
        self.learner.rl_step([(batch, PolicyTargets(wanted, np.ones((1, MEMBERS), bool), None))])


class Transformers:
    """`generate` and a training step of PyTorch."""

    def __init__(self, bench: Bench):
        import torch
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        self.bench, self.torch, self.large = bench, torch, bench.released
        self.device = 'cuda' if self.large else 'cpu'
        torch.set_default_dtype(getattr(torch, bench.dtype))
        with torch.device(self.device):
            config = Qwen2_5_VLConfig(**bench.sizes.to_hf(bench.dtype))
            self.model = Qwen2_5_VLForConditionalGeneration(config).eval()
        torch.set_default_dtype(torch.float32)
        self.model.model.visual.requires_grad_(False)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6, fused=self.large)
        self.patches = {}
        for picture in bench.pictures:
            image = Image.open(io.BytesIO(bench.files.image(picture.sha256)))
            self.patches[picture.sha256] = bench.preprocessor.patches(image)

    def warm_up(self) -> None:
        """A few tokens behind a short text: there is nothing to compile."""
        ids = self.torch.ones((MEMBERS, 64), dtype=self.torch.long, device=self.device)
        mask = self.torch.ones_like(ids)
        self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4)

    def prepare(self) -> None:
        """Nothing: the patches are at hand."""

    def inputs(self, rows: list[list[int]], pictures: list[list[ImageRef]]) -> dict[str, Any]:
        """Rows of one length with their pictures, as the model takes them."""
        torch = self.torch
        ids = torch.tensor(rows, device=self.device)
        patches, grids = zip(*(self.patches[p.sha256] for row in pictures for p in row))
        pixels = torch.tensor(np.concatenate(patches)).to(self.device, self.model.dtype)
        return {
            'input_ids': ids,
            'attention_mask': torch.ones_like(ids),
            'mm_token_type_ids': (ids == self.bench.sizes.image_token).int(),
            'pixel_values': pixels,
            'image_grid_thw': torch.tensor(grids, device=self.device),
        }

    def rollout(self, seed: int) -> Sampled:
        """All turns, each from the whole conversation so far, all members as one batch."""
        torch, bench = self.torch, self.bench
        torch.manual_seed(seed)
        rows, pictures = [list(bench.prompt)] * MEMBERS, [[bench.picture]] * MEMBERS
        turns: list[list[list[int]]] = [[] for _ in rows]
        stop = bench.sizes.end_tokens[0]
        how = {'do_sample': True, 'top_k': 0, 'top_p': 1.0, 'eos_token_id': stop}
        how |= {'pad_token_id': stop, 'suppress_tokens': list(bench.suppressed)}
        how |= {'max_new_tokens': TURN, 'min_new_tokens': TURN}
        for turn in range(TURNS):
            with torch.no_grad():
                made = self.model.generate(**self.inputs(rows, pictures), **how).tolist()
            for g, found in enumerate(made):
                turns[g].append(found[len(rows[g]) :])
                assert len(turns[g][-1]) == TURN
                if turn < TURNS - 1:
                    tokens, picture = bench.responses[g][turn]
                    rows[g], pictures[g] = found + tokens, [*pictures[g], picture]
        # `generate` gives no log-probs; for speed any will do.
        return Sampled(turns, [[[-9.0] * TURN] * TURNS] * MEMBERS)

    def train(self, sampled: Sampled, advantages: np.ndarray) -> None:
        """One update on the mean of the members' sequence losses, gradients added up over
        micro-batches.
        """
        torch, bench, micro = self.torch, self.bench, 1 if self.large else 2  # sequences
        if self.large and not self.model.training:
            self.model.gradient_checkpointing_enable()
            self.model.train()
            torch.cuda.empty_cache()
        self.optimizer.zero_grad()
        start = len(bench.prompt)
        for first in range(0, MEMBERS, micro):
            members = range(first, first + micro)
            tokens, own, old = zip(*(bench.after_prompt(sampled, g) for g in members))
            pictures = [[bench.picture, *(p for _, p in bench.responses[g])] for g in members]
            given = self.inputs([[*bench.prompt, *after] for after in tokens], pictures)
            # As trl does: logits of the completion alone.
            logits = self.model(**given, logits_to_keep=len(tokens[0]) + 1).logits[:, :-1].clone()
            logits[..., list(bench.suppressed)] = float('-inf')
            picked = torch.log_softmax(logits.float(), -1)
            picked = picked.gather(-1, given['input_ids'][:, start:, None])[..., 0]
            numbers = {'device': self.device, 'dtype': torch.float32}
            mask, before = torch.tensor(own, **numbers), torch.tensor(old, **numbers)
            gap = torch.where(mask > 0, picked - before, torch.zeros_like(picked))
            ratio = (gap.sum(1) / mask.sum(1)).exp()
            wanted = torch.tensor(advantages[list(members)], **numbers)
            loss = -torch.minimum(ratio * wanted, ratio.clamp(0.8, 1.28) * wanted).sum() / MEMBERS
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        if self.large:
            torch.cuda.synchronize()
