"""Rollouts and a training step beside what people use today: same machine, weights, prompts and sampled lengths.

    python -m experiments.throughput [--repeats=3] [--out=throughput.md]

One group of 8 trajectories of three turns, with a picture in the prompt and one in every tool response. Ours prefills
the prompt once and keeps every trajectory's cache between turns; the peer's `generate` is given the whole conversation
at each turn, as its users do. The training step is on those trajectories: ours as one group row, the peer's as 8
separate sequences, in micro-batches of MICRO. Both sample exactly TURN tokens a turn. Repetitions alternate between the
two; the table has medians and their ratios, and the machine's own limits as measured in the same run. Writes a table
and beside it a picture. Needs the extras `test` (PyTorch, transformers) and `world` (matplotlib). Machine: 2 cores and
12 GB take about 15 minutes.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.inputs.groups import GroupBatch, Member, Row, build_groups
from sensesearch_jax.inputs.images import Preprocessor
from sensesearch_jax.learning.steps import Learner, Objective, PolicyTargets, make_optimizer
from sensesearch_jax.policy.checkpoint import save_policy
from sensesearch_jax.policy.qwen import Policy
from sensesearch_jax.policy.sizes import LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.features import FeatureStore
from sensesearch_jax.tasks.pocket import machine

MEMBERS, TURNS, TURN = 8, 3, 48  # trajectories, their turns, sampled tokens of a turn
TEXT, RESPONSE = 300, 96  # tokens of text in the prompt and in a tool response, beside the picture
PROMPT_PICTURE, RESPONSE_PICTURE = (1736, 980), (224, 224)  # pixels: 2,170 and 64 visual tokens
MICRO = 2  # sequences of the peer's micro-batch
IMAGE, START, END, STOP, VIDEO = 8191, 8190, 8189, 8188, 8187  # ids; text is below

REPEATS = flags.DEFINE_integer('repeats', 3, 'Repetitions of everything; the table has medians.')
OUT = flags.DEFINE_string('out', 'throughput.md', 'Where the table goes; the picture stands beside it.')
SCALE = flags.DEFINE_float('scale', 1.0, 'Of widths and lengths; for a quick look only.')


class Pictures:
    """Random pictures by content hash, in the place of a tool server."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.random = np.random.default_rng(0)

    def draw(self, size: tuple[int, int]) -> ImageRef:
        """A new picture of (width, height) pixels."""
        pixels = self.random.integers(0, 255, (size[1] // 28, size[0] // 28, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize(size).save(buffer, 'PNG')
        name = hashlib.sha256(buffer.getvalue()).hexdigest()
        self.files[name] = buffer.getvalue()
        return ImageRef(name, *size)

    def image(self, name: str) -> bytes:
        """A picture's file, as a tool client gives it."""
        return self.files[name]


class Conversation(NamedTuple):
    """The prompt that a group shares and each member's tool responses; the policy's own turns stand between them."""

    prompt: list[int]
    picture: ImageRef
    responses: list[list[tuple[list[int], ImageRef]]]  # [member][turn]


class Sampled(NamedTuple):
    """What a rollout brought: each member's turns and their log-probs."""

    turns: list[list[list[int]]]
    log_probs: list[list[list[float]]]


class Bench:
    """The policy as a directory, its pictures and its conversation."""

    def __init__(self, folder: Path, scale: float = 1.0):
        heads = max(2, 2 * round(6 * scale))
        width = 64 * heads
        vision = VisionSizes(depth=6, width=32 * heads, mlp_width=64 * heads, heads=heads // 2, out_width=width,
                             full_attention_blocks=(2, 5))
        language = LanguageSizes(layers=12, width=width, mlp_width=round(2.75 * width), heads=heads, kv_heads=heads // 2,
                                 vocabulary=8192, mrope_sections=(8, 12, 12), tied_head=True)
        self.sizes = PolicySizes(vision, language, image_token=IMAGE, vision_start_token=START, vision_end_token=END,
                                 video_token=VIDEO, end_tokens=(STOP,))
        self.policy = Policy(self.sizes, nnx.Rngs(0))
        self.folder = folder
        save_policy(self.policy, folder)
        self.preprocessor = Preprocessor(min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
        self.pictures, self.random = Pictures(), np.random.default_rng(1)
        self.conversation = self._converse(scale)
        self.parameters = sum(x.size for x in jax.tree.leaves(nnx.state(self.policy, nnx.Param)))

    def _converse(self, scale: float) -> Conversation:
        small = lambda size: tuple(28 * max(2, round(v * min(scale, 1.0) / 28)) for v in size)
        picture = self.pictures.draw(small(PROMPT_PICTURE))
        prompt = [*self._text(round(TEXT * scale)), *self._seen(picture), *self._text(8)]
        responses = []
        for _ in range(MEMBERS):
            shown = [self.pictures.draw(RESPONSE_PICTURE) for _ in range(TURNS - 1)]
            responses.append([([*self._text(RESPONSE // 2), *self._seen(p), *self._text(RESPONSE // 2)], p) for p in shown])
        return Conversation(prompt, picture, responses)

    def _text(self, count: int) -> list[int]:
        return self.random.integers(0, VIDEO, count).tolist()

    def _seen(self, picture: ImageRef) -> list[int]:
        return [START, *[IMAGE] * self.preprocessor.merged_tokens(picture.width, picture.height), END]

    def tokens(self) -> dict[str, int]:
        """How much there is to run."""
        after = [TURNS * TURN + sum(len(r) for r, _ in member) for member in self.conversation.responses]
        return {'prompt': len(self.conversation.prompt), 'after it, per trajectory': round(float(np.mean(after)))}


class Ours:
    """The engine and the learner of this project."""

    def __init__(self, bench: Bench):
        self.bench, self.features = bench, FeatureStore(bench.policy, bench.preprocessor, bench.pictures)
        longest = max(TURNS * TURN + sum(len(r) for r, _ in member) for member in bench.conversation.responses)
        self.engine = Engine(bench.policy, groups=1, members=MEMBERS, prompt_capacity=len(bench.conversation.prompt),
                             suffix_capacity=longest + 8, chunk=TURN, stop=(), suppressed=(IMAGE, VIDEO, START, END, STOP),
                             prefill_rows=1, extend_lanes=MEMBERS)
        optimizer = ConfigDict({'schedule': 'constant', 'learning_rate': 1e-6, 'warmup': 1, 'b1': 0.9, 'b2': 0.999,
                                'eps': 1e-8, 'weight_decay': 0.01, 'clip_norm': 1.0})
        self.suppressed = np.isin(np.arange(bench.sizes.language.vocabulary), (IMAGE, VIDEO, START, END, STOP))
        self.learner = Learner(bench.policy, make_optimizer(optimizer, 10), suppressed=self.suppressed,
                               objective=Objective(ratio='sequence', clip_low=0.2, clip_high=0.28,
                                                   kl_coefficient=0.0))

    def rollout(self, seed: int) -> Sampled:
        """All turns; the tower runs on every picture anew, as with new pictures."""
        bench, talk = self.bench, self.bench.conversation
        features = self.features
        features.clear()
        position, = self.engine.prefill([0], [talk.prompt], [[talk.picture.sha256]], features.table([talk.picture]))
        lanes = [(0, g) for g in range(MEMBERS)]
        positions, pending = [position] * MEMBERS, [talk.prompt[-1]] * MEMBERS
        out = Sampled([[] for _ in lanes], [[] for _ in lanes])
        everyone = np.ones((1, MEMBERS), bool)
        for turn in range(TURNS):
            chunk = self.engine.decode(everyone, np.full((1, MEMBERS), TURN, np.int32),
                                       np.arange(MEMBERS, dtype=np.uint32)[None] + 100 * seed)
            for g in range(MEMBERS):
                out.turns[g].append(chunk.tokens[0, g].tolist())
                out.log_probs[g].append(chunk.log_probs[0, g].tolist())
            if turn < TURNS - 1:
                said = [talk.responses[g][turn] for g in range(MEMBERS)]
                positions = self.engine.extend(
                    lanes, [turns[-1][-1] for turns in out.turns], [tokens for tokens, _ in said],
                    [[p.sha256] for _, p in said], [p + TURN for p in positions], features.table(p for _, p in said))
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
        table = self.features.table([talk.picture, *(p for member in talk.responses for _, p in member)])
        return build_groups([Row(talk.prompt, [talk.picture.sha256], members)], table, image_token=IMAGE, merge=2,
                            members=MEMBERS, prompt_step=8, suffix_step=8, feature_step=64)

    def train(self, sampled: Sampled, advantages: np.ndarray) -> float:
        """One update."""
        targets = PolicyTargets(advantages[None].astype(np.float32), np.ones((1, MEMBERS), bool), None)
        return self.learner.rl_step([(self.batch(sampled), targets)])['sampler_gap']


class Transformers:
    """`generate` and a training step of PyTorch, on the same directory."""

    def __init__(self, bench: Bench):
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.bench, self.torch = bench, torch
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(bench.folder, dtype=torch.float32).eval()
        for parameter in self.model.model.visual.parameters():
            parameter.requires_grad = False
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-6)
        cut = lambda ref: bench.preprocessor.patches(Image.open(io.BytesIO(bench.pictures.image(ref.sha256))))
        talk = bench.conversation
        self.patches = {p.sha256: cut(p) for p in [talk.picture, *(p for m in talk.responses for _, p in m)]}

    def inputs(self, rows: list[list[int]], pictures: list[list[ImageRef]]) -> dict:
        """Rows of one length with their pictures, as the model takes them."""
        torch = self.torch
        ids = torch.tensor(rows)
        seen = [self.patches[p.sha256] for row in pictures for p in row]
        return {'input_ids': ids, 'attention_mask': torch.ones_like(ids),
                'mm_token_type_ids': (ids == IMAGE).int(),
                'pixel_values': torch.tensor(np.concatenate([p for p, _ in seen])),
                'image_grid_thw': torch.tensor([grid for _, grid in seen])}

    def rollout(self, seed: int) -> Sampled:
        """All turns, each from the whole conversation so far, all members as one batch."""
        torch, talk = self.torch, self.bench.conversation
        torch.manual_seed(seed)
        rows, pictures = [list(talk.prompt) for _ in range(MEMBERS)], [[talk.picture] for _ in range(MEMBERS)]
        out = Sampled([[] for _ in rows], [])
        for turn in range(TURNS):
            with torch.no_grad():
                made = self.model.generate(**self.inputs(rows, pictures), do_sample=True, top_k=0, top_p=1.0,
                                           max_new_tokens=TURN, min_new_tokens=TURN, eos_token_id=STOP, pad_token_id=STOP,
                                           suppress_tokens=[IMAGE, VIDEO, START, END, STOP])
            for g in range(MEMBERS):
                out.turns[g].append(made[g, len(rows[g]):].tolist())
                assert len(out.turns[g][-1]) == TURN
                rows[g] = made[g].tolist()
                if turn < TURNS - 1:
                    tokens, picture = talk.responses[g][turn]
                    rows[g] += tokens
                    pictures[g].append(picture)
        return out

    def train(self, sampled: Sampled, advantages: np.ndarray) -> float:
        """One update on the mean of the members' sequence losses, gradients added up over micro-batches.

        Returns the largest difference between its log-probs and the sampler's that it was given.
        """
        torch, talk = self.torch, self.bench.conversation
        start, gap = len(talk.prompt), 0.0
        self.optimizer.zero_grad()
        for first in range(0, MEMBERS, MICRO):
            members = range(first, first + MICRO)
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
            logits = self.model(**given, logits_to_keep=len(rows[0]) - start + 1).logits[:, :-1].clone()
            logits[..., [IMAGE, VIDEO, START, END, STOP]] = float('-inf')
            picked = torch.log_softmax(logits, -1).gather(-1, given['input_ids'][:, start:, None])[..., 0]
            mask, before = torch.tensor(own), torch.tensor(old)
            picked = torch.where(mask > 0, picked, torch.zeros(()))
            gap = max(gap, float(((picked - before) * mask).abs().max().detach()))
            ratio = (((picked - before) * mask).sum(1) / mask.sum(1)).exp()
            wanted = torch.tensor(advantages[list(members)], dtype=torch.float32)
            loss = -torch.minimum(ratio * wanted, ratio.clamp(0.8, 1.28) * wanted).sum() / MEMBERS
            loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        return gap


def limits() -> dict[str, float]:
    """The machine's: GFLOP/s of a matrix product, GB/s of reading memory, by XLA."""
    def best(f: Callable, *args) -> float:
        jax.block_until_ready(f(*args))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(f(*args))
            times.append(time.perf_counter() - start)
        return min(times)

    n, m = 2048, 1 << 27
    a, b = jnp.ones((n, n)), jnp.ones(m)
    return {'matrix products, GFLOP/s': 2 * n**3 / best(jax.jit(jnp.matmul), a, a) / 1e9,
            'memory, GB/s': 4 * m / best(jax.jit(jnp.sum), b) / 1e9}


def clock(work: Callable, *args) -> tuple[float, object]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    out = work(*args)
    return time.perf_counter() - start, out


def measure(bench: Bench, repeats: int) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Seconds by work and side, the two in turn; and the gap between the peer's log-probs and our sampler's."""
    ours, theirs = Ours(bench), Transformers(bench)
    seconds: dict[str, dict[str, list[float]]] = {w: {'ours': [], 'transformers': []} for w in ('rollout', 'training step')}
    advantages, gap = np.linspace(-1, 1, MEMBERS), 0.0
    for i in range(repeats + 1):
        took, sampled = clock(ours.rollout, i)
        peer, _ = clock(theirs.rollout, i)
        step, _ = clock(ours.train, sampled, advantages)
        peer_step, found = clock(theirs.train, sampled, advantages)
        if i == 0:  # the first compiles; before it the two policies are one
            gap = found
            continue
        for work, mine, other in (('rollout', took, peer), ('training step', step, peer_step)):
            seconds[work]['ours'].append(mine)
            seconds[work]['transformers'].append(other)
        print(f'{i}: rollout {took:.1f} s and {peer:.1f} s, training step {step:.1f} s and {peer_step:.1f} s', flush=True)
    return seconds, gap


def table(bench: Bench, seconds: dict, gap: float, machine_limits: dict[str, float]) -> str:
    """The result as Markdown."""
    sampled = MEMBERS * TURNS * TURN
    lines = [f'{datetime.date.today().isoformat()}, {machine()}; {bench.parameters / 1e6:.0f} million parameters, float32; '
             + ', '.join(f'{count} tokens {what}' for what, count in bench.tokens().items())
             + f'; {MEMBERS} trajectories of {TURNS} turns of {TURN} sampled tokens. Medians of '
             f'{len(seconds["rollout"]["ours"])} alternating repetitions.', '',
             '| | ours, s | transformers, s | ratio |', '|---|---|---|---|']
    for work, sides in seconds.items():
        mine, other = (statistics.median(sides[side]) for side in ('ours', 'transformers'))
        lines.append(f'| {work} | {mine:.2f} | {other:.2f} | {other / mine:.1f} |')
    mine, other = (sampled / statistics.median(seconds['rollout'][side]) for side in ('ours', 'transformers'))
    lines += [f'| sampled tokens/s | {mine:.0f} | {other:.0f} | {mine / other:.1f} |', '',
              f'Largest difference between the log-probs of our sampler and those of transformers: {gap:.1e}. '
              'The machine in the same run: '
              + ', '.join(f'{name} {value:.0f}' for name, value in machine_limits.items()) + '.']
    return '\n'.join(lines) + '\n'


def draw(seconds: dict, path: Path) -> None:
    """Bars of the medians."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(seconds), figsize=(7, 2.2), layout='constrained')
    for axis, (work, sides) in zip(axes, seconds.items()):
        names = list(sides)
        values = [statistics.median(sides[name]) for name in names]
        axis.barh(names[::-1], values[::-1], color=['#8a8f98', '#c44e1b'])
        for y, value in enumerate(values[::-1]):
            axis.text(value, y, f' {value:.1f} s', va='center')
        axis.set_title(f'{work}: {values[1] / values[0]:.1f} times as fast', fontsize=10, loc='left')
        axis.set_xlim(0, max(values) * 1.2)
        axis.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=150)


def main(_) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), SCALE.value)
        seconds, gap = measure(bench, REPEATS.value)
        text = table(bench, seconds, gap, limits())
    print(text)
    out = Path(OUT.value)
    out.write_text(text)
    draw(seconds, out.with_suffix('.png'))


if __name__ == '__main__':
    app.run(main)
