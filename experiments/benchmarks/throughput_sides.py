"""Ours and the peer that experiments/benchmarks/throughput.py measures in one process: rollouts and a training
step.
"""

from __future__ import annotations

import functools
import io

import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.benchmarks.throughput_work import MEMBERS, TURN, TURNS, Bench, Sampled
from experiments.benchmarks.work import optimizer
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.batching.group_batch import GroupBatch, Member, Row, build_groups
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.training.batch_losses import Objective, PolicyTargets
from sensesearch_jax.training.trainer import Learner


class Ours:
    """The engine and the learner of this project."""

    def __init__(self, bench: Bench):
        self.bench = bench
        policy = bench.make_policy()
        self.features = FeatureStore(
            policy, bench.preprocessor, bench.pictures, capacity_bytes=1 << 30, batch=8
        )
        longest = max(
            (len(member) + 1) * TURN + sum(len(r) for r, _ in member)
            for member in bench.conversation.responses
        )
        prompt = -(-len(bench.conversation.prompt) // 128) * 128
        self.engine = Engine(
            policy,
            groups=1,
            members=MEMBERS,
            prompt_capacity=prompt,
            suffix_capacity=-(-longest // 64) * 64 + 64 - TURN,
            chunk=TURN,
            stop=(),
            suppressed=bench.suppressed,
            prefill_rows=1,
            extend_lanes=MEMBERS,
        )

    @functools.cached_property
    def learner(self) -> Learner:
        """Made when it is first asked for; of a released policy it takes the place of the sampler,
        whose room it needs.
        """
        bench = self.bench
        policy = bench.policy
        if bench.setting.released:
            self.engine = bench.policy = None
        return Learner(
            policy,
            optimizer(),
            suppressed=np.isin(np.arange(bench.sizes.language.vocabulary), bench.suppressed),
            objective=Objective(ratio='sequence', clip_low=0.2, clip_high=0.28, kl_coefficient=0.0),
            remat='attention' if bench.setting.released else 'none',
            dtype=jnp.bfloat16 if bench.setting.released else jnp.float32,
        )

    @property
    def compiles(self) -> int:
        """Programs compiled so far."""
        return self.engine.compiles + self.features.compiles + self.learner.compiles

    def warm_up(self) -> None:
        """A rollout, which compiles."""
        self.prepare()
        self.rollout(0)

    def prepare(self) -> None:
        """Patches of all pictures on the host, and no features: as with new pictures, which tool
        threads cut.
        """
        talk = self.bench.conversation
        self.features.clear()
        for picture in [talk.picture, *(p for member in talk.responses for _, p in member)]:
            self.features.prepare(picture)

    def rollout(self, seed: int) -> Sampled:
        """All turns, and every picture through the tower."""
        talk, features = self.bench.conversation, self.features
        (position,) = self.engine.prefill(
            [0], [talk.prompt], [[talk.picture.sha256]], features.table([talk.picture])
        )
        lanes = [(0, g) for g in range(MEMBERS)]
        positions = [position] * MEMBERS
        out = Sampled([[] for _ in lanes], [[] for _ in lanes])
        everyone = np.ones((1, MEMBERS), bool)
        turns = len(talk.responses[0]) + 1
        for turn in range(turns):
            chunk = self.engine.decode(
                everyone,
                np.full((1, MEMBERS), TURN, np.int32),
                np.arange(MEMBERS, dtype=np.uint32)[None] + 100 * seed,
            )
            for g in range(MEMBERS):
                out.turns[g].append(chunk.tokens[0, g].tolist())
                out.log_probs[g].append(chunk.log_probs[0, g].tolist())
            if turn < turns - 1:
                said = [talk.responses[g][turn] for g in range(MEMBERS)]
                positions = self.engine.extend(
                    lanes,
                    [turns[-1][-1] for turns in out.turns],
                    [tokens for tokens, _ in said],
                    [[p.sha256] for _, p in said],
                    [p + TURN for p in positions],
                    features.table(p for _, p in said),
                )
        self.engine.release()
        return out

    def batch(self, sampled: Sampled) -> GroupBatch:
        """The trajectories as one group row; the features are at hand from the rollout."""
        talk, members = self.bench.conversation, []
        for turns, log_probs, said in zip(sampled.turns, sampled.log_probs, talk.responses):
            tokens, own, kept = [], [], []
            for i, turn in enumerate(turns):
                more = said[i][0] if i < len(said) else []
                tokens += [*turn, *more]
                own += [True] * len(turn) + [False] * len(more)
                kept += [*log_probs[i], *[0.0] * len(more)]
            members.append(Member(tokens, own, [p.sha256 for _, p in said], kept))
        table = self.features.table(
            [talk.picture, *(p for member in talk.responses for _, p in member)]
        )
        return build_groups(
            [Row(talk.prompt, [talk.picture.sha256], members)],
            table,
            image_token=self.bench.sizes.image_token,
            merge=2,
            members=MEMBERS,
            width=self.bench.sizes.language.width,
            prompt_step=8,
            suffix_step=8,
            feature_step=64,
        )

    def train(self, sampled: Sampled, advantages: np.ndarray) -> float:
        """One update."""
        targets = PolicyTargets(
            advantages[None].astype(np.float32), np.ones((1, MEMBERS), bool), None
        )
        return self.learner.rl_step([(self.batch(sampled), targets)])['sampler_gap']


class Transformers:
    """`generate` and a training step of PyTorch, on the same directory."""

    def __init__(self, bench: Bench):
        import torch
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        self.bench, self.torch, released = bench, torch, bench.setting.released
        self.device = 'cuda' if released else 'cpu'
        if released:
            torch.set_default_dtype(torch.bfloat16)
            with torch.device(self.device):
                config = Qwen2_5_VLConfig(**bench.sizes.to_hf('bfloat16'))
                self.model = Qwen2_5_VLForConditionalGeneration(config).eval()
            torch.set_default_dtype(torch.float32)
        else:
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                bench.folder, dtype=torch.float32
            ).eval()
        for parameter in self.model.model.visual.parameters():
            parameter.requires_grad = False
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=released)

        def cut(ref):
            return bench.preprocessor.patches(
                Image.open(io.BytesIO(bench.pictures.image(ref.sha256)))
            )

        talk = bench.conversation
        self.patches = {
            p.sha256: cut(p) for p in [talk.picture, *(p for m in talk.responses for _, p in m)]
        }

    def warm_up(self) -> None:
        """A few tokens behind a short text: there is nothing to compile."""
        ids = self.torch.ones((MEMBERS, 64), dtype=self.torch.long, device=self.device)
        self.model.generate(
            input_ids=ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=4
        )

    def prepare(self) -> None:
        """Nothing: the patches are at hand."""

    def inputs(self, rows: list[list[int]], pictures: list[list[ImageRef]]) -> dict:
        """Rows of one length with their pictures, as the model takes them."""
        torch = self.torch
        ids = torch.tensor(rows, device=self.device)
        seen = [self.patches[p.sha256] for row in pictures for p in row]
        return {
            'input_ids': ids,
            'attention_mask': torch.ones_like(ids),
            'mm_token_type_ids': (ids == self.bench.sizes.image_token).int(),
            'pixel_values': torch.tensor(np.concatenate([p for p, _ in seen])).to(
                self.device, self.model.dtype
            ),
            'image_grid_thw': torch.tensor([grid for _, grid in seen], device=self.device),
        }

    def rollout(self, seed: int) -> Sampled:
        """All turns, each from the whole conversation so far, all members as one batch."""
        torch, talk = self.torch, self.bench.conversation
        torch.manual_seed(seed)
        rows = [list(talk.prompt) for _ in range(MEMBERS)]
        pictures = [[talk.picture] for _ in range(MEMBERS)]
        stop = self.bench.sizes.end_tokens[0]
        out = Sampled([[] for _ in rows], [])
        for turn in range(TURNS):
            with torch.no_grad():
                made = self.model.generate(
                    **self.inputs(rows, pictures),
                    do_sample=True,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=TURN,
                    min_new_tokens=TURN,
                    eos_token_id=stop,
                    pad_token_id=stop,
                    suppress_tokens=list(self.bench.suppressed),
                )
            for g in range(MEMBERS):
                out.turns[g].append(made[g, len(rows[g]) :].tolist())
                assert len(out.turns[g][-1]) == TURN
                rows[g] = made[g].tolist()
                if turn < TURNS - 1:
                    tokens, picture = talk.responses[g][turn]
                    rows[g] += tokens
                    pictures[g].append(picture)
        return out

    def train(self, sampled: Sampled, advantages: np.ndarray) -> float:
        """One update on the mean of the members' sequence losses, gradients added up over
        micro-batches.

        Returns the largest difference between its log-probs and the sampler's that it was given.
        """
        torch, talk = self.torch, self.bench.conversation
        start, gap, micro = len(talk.prompt), 0.0, self.bench.setting.micro
        self.optimizer.zero_grad()
        for first in range(0, MEMBERS, micro):
            members = range(first, first + micro)
            rows, own, old = [], [], []
            for g in members:
                tokens, mine, kept = [], [], []
                for i, turn in enumerate(sampled.turns[g]):
                    more = talk.responses[g][i][0] if i < TURNS - 1 else []
                    tokens += [*turn, *more]
                    mine += [1.0] * len(turn) + [0.0] * len(more)
                    kept += [*sampled.log_probs[g][i], *[0.0] * len(more)]
                rows.append([*talk.prompt, *tokens])
                own.append(mine)
                old.append(kept)
            pictures = [[talk.picture, *(p for _, p in talk.responses[g])] for g in members]
            given = self.inputs(rows, pictures)
            # As trl does: logits of the completion alone.
            logits = (
                self.model(**given, logits_to_keep=len(rows[0]) - start + 1).logits[:, :-1].clone()
            )
            logits[..., list(self.bench.suppressed)] = float('-inf')
            picked = torch.log_softmax(logits.float(), -1).gather(
                -1, given['input_ids'][:, start:, None]
            )[..., 0]
            mask = torch.tensor(own, device=self.device)
            before = torch.tensor(old, device=self.device)
            picked = torch.where(mask > 0, picked, torch.zeros((), device=self.device))
            gap = max(gap, float(((picked - before) * mask).abs().max().detach()))
            ratio = (((picked - before) * mask).sum(1) / mask.sum(1)).exp()
            wanted = torch.tensor(
                advantages[list(members)], dtype=torch.float32, device=self.device
            )
            loss = -torch.minimum(ratio * wanted, ratio.clamp(0.8, 1.28) * wanted).sum() / MEMBERS
            loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        return gap
