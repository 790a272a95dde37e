"""Rollouts and a training step beside what people use today: same machine, weights, prompts and sampled lengths.

    python -m experiments.throughput [--repeats=3] [--out=throughput.md]
    python -m experiments.throughput --size=7B --out=throughput_7b.md

One group of 8 trajectories of three turns, with a picture in the prompt and one in every tool response. Ours prefills
the prompt once and keeps every trajectory's cache between turns; the peer's `generate` is given the whole conversation
at each turn, as its users do. The training step is on those trajectories: ours as one group row, the peer's as 8
separate sequences, in micro-batches of a few. Both sample exactly TURN tokens a turn. Repetitions alternate between the
two; the table has medians and their ratios, and the machine's own limits as measured in the same run. Writes a table
and beside it a picture. Needs the extras `test` (PyTorch, transformers) and `world` (matplotlib). Machine: 2 cores and
12 GB take about 15 minutes.

With --size the policy is a released one with random weights in bfloat16 on one accelerator, behind a 4K picture of
10,549 tokens. The two do not fit on a card together, so that each is a process of its own with weights of its own, one
after the other, and their log-probs are not compared (experiments/numerics.py does that). Ours trains float32 master
weights and moments; the peer has all of its state in bfloat16, and gradient checkpointing. Machine: one GPU with 140 GB.
"""

from __future__ import annotations

import datetime
import functools
import gc
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# A training step of 7B needs nearly all of a card.
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.96')

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from flax import nnx  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402
from PIL import Image  # noqa: E402

from experiments.random_weights import random_policy  # noqa: E402
from sensesearch_jax.agent.trajectory import ImageRef  # noqa: E402
from sensesearch_jax.inputs.groups import GroupBatch, Member, Row, build_groups  # noqa: E402
from sensesearch_jax.inputs.images import Preprocessor  # noqa: E402
from sensesearch_jax.learning.steps import Learner, Objective, PolicyTargets, make_optimizer  # noqa: E402
from sensesearch_jax.policy.checkpoint import abstract_policy, save_policy  # noqa: E402
from sensesearch_jax.policy.qwen import Policy  # noqa: E402
from sensesearch_jax.policy.sizes import RELEASED, LanguageSizes, PolicySizes, VisionSizes  # noqa: E402
from sensesearch_jax.rollout.engine import Engine  # noqa: E402
from sensesearch_jax.rollout.features import FeatureStore  # noqa: E402
from sensesearch_jax.runtime.machine import machine  # noqa: E402

MEMBERS, TURNS, TURN = 8, 3, 48  # trajectories, their turns, sampled tokens of a turn
RESPONSE_PICTURE = (224, 224)  # pixels: 64 visual tokens


class Setting(NamedTuple):
    """What is compared on: a policy, and tokens and pictures around the picture of the prompt."""

    sizes: PolicySizes
    picture: tuple[int, int]  # pixels of the prompt's picture
    text: int  # tokens of text in the prompt beside it
    response: int  # and in a tool response
    micro: int  # sequences of the peer's micro-batch
    released: bool  # a policy of this size fills an accelerator: bfloat16, one side at a time


def small(scale: float = 1.0) -> Setting:
    """A hundred million parameters, 2,170 visual tokens; widths and lengths times `scale`."""
    heads = max(2, 2 * round(6 * scale))
    width = 64 * heads
    vision = VisionSizes(depth=6, width=32 * heads, mlp_width=64 * heads, heads=heads // 2, out_width=width,
                         full_attention_blocks=(2, 5))
    language = LanguageSizes(layers=12, width=width, mlp_width=round(2.75 * width), heads=heads, kv_heads=heads // 2,
                             vocabulary=8192, mrope_sections=(8, 12, 12), tied_head=True)
    sizes = PolicySizes(vision, language, image_token=8191, vision_start_token=8190, vision_end_token=8189,
                        video_token=8187, end_tokens=(8188,))
    picture = tuple(28 * max(2, round(side * min(scale, 1.0) / 28)) for side in (1736, 980))
    return Setting(sizes, picture, round(300 * scale), 96, 2, False)


REPEATS = flags.DEFINE_integer('repeats', 3, 'Repetitions of everything; the table has medians.')
OUT = flags.DEFINE_string('out', 'throughput.md', 'Where the table goes; the picture stands beside it.')
SCALE = flags.DEFINE_float('scale', 1.0, 'Of the small policy\'s widths and lengths; for a quick look only.')
SIZE = flags.DEFINE_enum('size', None, list(RELEASED), 'A released policy in the place of a small one.')
SIDE = flags.DEFINE_enum('side', None, ['ours', 'transformers'], 'Only this side of a released policy, its seconds as JSON.')


WORK = 'rollout', 'training step'


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
    """The policy, its pictures and its conversation; a small policy as a directory, too."""

    def __init__(self, folder: Path, setting: Setting):
        self.setting, self.sizes, self.folder = setting, setting.sizes, folder
        self.preprocessor = Preprocessor(min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
        self.pictures, self.random = Pictures(), np.random.default_rng(1)
        self.conversation = self._converse()
        self.parameters = sum(x.size for x in jax.tree.leaves(nnx.state(abstract_policy(self.sizes), nnx.Param)))
        self.policy = None

    def make_policy(self) -> Policy:
        """The policy in JAX, kept in `policy`."""
        if self.setting.released:
            self.policy = random_policy(self.sizes)
        else:
            self.policy = Policy(self.sizes, nnx.Rngs(0))
            save_policy(self.policy, self.folder)
        return self.policy

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Ids that neither side may sample."""
        sizes = self.sizes
        return (sizes.image_token, sizes.video_token, sizes.vision_start_token, sizes.vision_end_token, *sizes.end_tokens)

    def _converse(self) -> Conversation:
        picture = self.pictures.draw(self.setting.picture)
        prompt = [*self._text(self.setting.text), *self._seen(picture), *self._text(8)]
        half, responses = self.setting.response // 2, []
        for _ in range(MEMBERS):
            shown = [self.pictures.draw(RESPONSE_PICTURE) for _ in range(TURNS - 1)]
            responses.append([([*self._text(half), *self._seen(p), *self._text(half)], p) for p in shown])
        return Conversation(prompt, picture, responses)

    def _text(self, count: int) -> list[int]:
        return self.random.integers(0, min(self.suppressed), count).tolist()

    def _seen(self, picture: ImageRef) -> list[int]:
        sizes = self.sizes
        visual = self.preprocessor.merged_tokens(picture.width, picture.height)
        return [sizes.vision_start_token, *[sizes.image_token] * visual, sizes.vision_end_token]

    def tokens(self) -> dict[str, int]:
        """How much there is to run."""
        after = [TURNS * TURN + sum(len(r) for r, _ in member) for member in self.conversation.responses]
        return {'prompt': len(self.conversation.prompt), 'after it, per trajectory': round(float(np.mean(after)))}


class Ours:
    """The engine and the learner of this project."""

    def __init__(self, bench: Bench):
        self.bench = bench
        policy = bench.make_policy()
        self.features = FeatureStore(policy, bench.preprocessor, bench.pictures)
        longest = max(TURNS * TURN + sum(len(r) for r, _ in member) for member in bench.conversation.responses)
        prompt = -(-len(bench.conversation.prompt) // 128) * 128
        self.engine = Engine(policy, groups=1, members=MEMBERS, prompt_capacity=prompt,
                             suffix_capacity=-(-longest // 64) * 64 + 64 - TURN, chunk=TURN, stop=(),
                             suppressed=bench.suppressed, prefill_rows=1, extend_lanes=MEMBERS)

    @functools.cached_property
    def learner(self) -> Learner:
        """Made when it is first asked for; of a released policy it takes the place of the sampler, whose room it needs."""
        bench = self.bench
        optimizer = ConfigDict({'schedule': 'constant', 'learning_rate': 1e-6, 'warmup': 1, 'b1': 0.9, 'b2': 0.999,
                                'eps': 1e-8, 'weight_decay': 0.01, 'clip_norm': 1.0})
        policy = bench.policy
        if bench.setting.released:
            self.engine = bench.policy = None
        return Learner(policy, make_optimizer(optimizer, 10),
                       suppressed=np.isin(np.arange(bench.sizes.language.vocabulary), bench.suppressed),
                       objective=Objective(ratio='sequence', clip_low=0.2, clip_high=0.28, kl_coefficient=0.0),
                       remat='full' if bench.setting.released else 'none',
                       dtype=jnp.bfloat16 if bench.setting.released else jnp.float32)

    def prepare(self) -> None:
        """Patches of all pictures on the host, and no features: as with new pictures, which tool threads cut."""
        talk = self.bench.conversation
        self.features.clear()
        for picture in [talk.picture, *(p for member in talk.responses for _, p in member)]:
            self.features.prepare(picture)

    def rollout(self, seed: int) -> Sampled:
        """All turns, and every picture through the tower."""
        bench, talk, features = self.bench, self.bench.conversation, self.features
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
        return build_groups([Row(talk.prompt, [talk.picture.sha256], members)], table, image_token=self.bench.sizes.image_token, merge=2,
                            members=MEMBERS, prompt_step=8, suffix_step=8, feature_step=64)

    def train(self, sampled: Sampled, advantages: np.ndarray) -> float:
        """One update."""
        targets = PolicyTargets(advantages[None].astype(np.float32), np.ones((1, MEMBERS), bool), None)
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
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(bench.folder, dtype=torch.float32).eval()
        for parameter in self.model.model.visual.parameters():
            parameter.requires_grad = False
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=released)
        cut = lambda ref: bench.preprocessor.patches(Image.open(io.BytesIO(bench.pictures.image(ref.sha256))))
        talk = bench.conversation
        self.patches = {p.sha256: cut(p) for p in [talk.picture, *(p for m in talk.responses for _, p in m)]}

    def prepare(self) -> None:
        """Nothing: the patches are at hand."""

    def inputs(self, rows: list[list[int]], pictures: list[list[ImageRef]]) -> dict:
        """Rows of one length with their pictures, as the model takes them."""
        torch = self.torch
        ids = torch.tensor(rows, device=self.device)
        seen = [self.patches[p.sha256] for row in pictures for p in row]
        return {'input_ids': ids, 'attention_mask': torch.ones_like(ids),
                'mm_token_type_ids': (ids == self.bench.sizes.image_token).int(),
                'pixel_values': torch.tensor(np.concatenate([p for p, _ in seen])).to(self.device, self.model.dtype),
                'image_grid_thw': torch.tensor([grid for _, grid in seen], device=self.device)}

    def rollout(self, seed: int) -> Sampled:
        """All turns, each from the whole conversation so far, all members as one batch."""
        torch, talk = self.torch, self.bench.conversation
        torch.manual_seed(seed)
        rows, pictures = [list(talk.prompt) for _ in range(MEMBERS)], [[talk.picture] for _ in range(MEMBERS)]
        stop = self.bench.sizes.end_tokens[0]
        out = Sampled([[] for _ in rows], [])
        for turn in range(TURNS):
            with torch.no_grad():
                made = self.model.generate(**self.inputs(rows, pictures), do_sample=True, top_k=0, top_p=1.0,
                                           max_new_tokens=TURN, min_new_tokens=TURN, eos_token_id=stop, pad_token_id=stop,
                                           suppress_tokens=list(self.bench.suppressed))
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
            logits = self.model(**given, logits_to_keep=len(rows[0]) - start + 1).logits[:, :-1].clone()
            logits[..., list(self.bench.suppressed)] = float('-inf')
            picked = torch.log_softmax(logits.float(), -1).gather(-1, given['input_ids'][:, start:, None])[..., 0]
            mask, before = torch.tensor(own, device=self.device), torch.tensor(old, device=self.device)
            picked = torch.where(mask > 0, picked, torch.zeros((), device=self.device))
            gap = max(gap, float(((picked - before) * mask).abs().max().detach()))
            ratio = (((picked - before) * mask).sum(1) / mask.sum(1)).exp()
            wanted = torch.tensor(advantages[list(members)], dtype=torch.float32, device=self.device)
            loss = -torch.minimum(ratio * wanted, ratio.clamp(0.8, 1.28) * wanted).sum() / MEMBERS
            loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        return gap


def limits(large: bool) -> dict[str, float]:
    """The machine's: FLOP/s of a matrix product and bytes/s of reading memory by XLA, on an accelerator if `large`."""
    def best(f: Callable, *args) -> float:
        jax.block_until_ready(f(*args))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(f(*args))
            times.append(time.perf_counter() - start)
        return min(times)

    n, m = (8192, 1 << 30) if large else (2048, 1 << 27)
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16 if large else jnp.float32)
    b = jnp.ones(m)
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
    seconds: dict[str, dict[str, list[float]]] = {w: {'ours': [], 'transformers': []} for w in WORK}
    advantages, gap = np.linspace(-1, 1, MEMBERS), 0.0
    for i in range(repeats + 1):
        ours.prepare()
        took, sampled = clock(ours.rollout, i)
        peer, _ = clock(theirs.rollout, i)
        step, _ = clock(ours.train, sampled, advantages)
        peer_step, found = clock(theirs.train, sampled, advantages)
        if i == 0:  # the first compiles; before it the two policies are one
            gap = found
            continue
        for work, mine, other in zip(WORK, (took, step), (peer, peer_step)):
            seconds[work]['ours'].append(mine)
            seconds[work]['transformers'].append(other)
        print(f'{i}: rollout {took:.1f} s and {peer:.1f} s, training step {step:.1f} s and {peer_step:.1f} s', flush=True)
    return seconds, gap


def alone(bench: Bench, side: str, repeats: int) -> dict[str, list[float]]:
    """Seconds by work of one side, all rollouts before all training steps."""
    it = Ours(bench) if side == 'ours' else Transformers(bench)
    rollouts = []
    for i in range(repeats + 1):
        it.prepare()
        rollouts.append(clock(it.rollout, i))
    sampled = rollouts[-1][1]
    if side == 'transformers':
        sampled = sampled._replace(log_probs=[[[-12.0] * TURN] * TURNS] * MEMBERS)  # `generate` gives none
        it.model.gradient_checkpointing_enable()
        it.model.train()
        gc.collect()
        it.torch.cuda.empty_cache()
    advantages = np.linspace(-1, 1, MEMBERS)
    steps = [clock(it.train, sampled, advantages)[0] for _ in range(repeats + 1)]
    return dict(zip(WORK, ([took for took, _ in rollouts[1:]], steps[1:])))


def one_after_the_other() -> dict[str, dict[str, list[float]]]:
    """`alone` of both sides, each in a process that has the card to itself."""
    seconds: dict[str, dict[str, list[float]]] = {work: {} for work in WORK}
    for side in ('ours', 'transformers'):
        done = subprocess.run([sys.executable, '-m', 'experiments.throughput', f'--side={side}', *sys.argv[1:]],
                              stdout=subprocess.PIPE, text=True, check=True)
        for work, took in json.loads(done.stdout.splitlines()[-1]).items():
            seconds[work][side] = took
    return seconds


def table(bench: Bench, seconds: dict, gap: float | None, machine_limits: dict[str, float]) -> str:
    """The result as Markdown."""
    sampled = MEMBERS * TURNS * TURN
    lines = [f'{datetime.date.today().isoformat()}, {machine()}; {bench.parameters / 1e6:.0f} million parameters, '
             f'{"bfloat16" if bench.setting.released else "float32"}; '
             + ', '.join(f'{count} tokens {what}' for what, count in bench.tokens().items())
             + f'; {MEMBERS} trajectories of {TURNS} turns of {TURN} sampled tokens. Medians of '
             f'{len(seconds["rollout"]["ours"])} {"" if bench.setting.released else "alternating "}repetitions.', '',
             '| | ours, s | transformers, s | ratio |', '|---|---|---|---|']
    for work, sides in seconds.items():
        mine, other = (statistics.median(sides[side]) for side in ('ours', 'transformers'))
        lines.append(f'| {work} | {mine:.2f} | {other:.2f} | {other / mine:.1f} |')
    mine, other = (sampled / statistics.median(seconds['rollout'][side]) for side in ('ours', 'transformers'))
    lines += [f'| sampled tokens/s | {mine:.0f} | {other:.0f} | {mine / other:.1f} |', '',
              ('' if gap is None else 'Largest difference between the log-probs of our sampler and those of '
               f'transformers: {gap:.1e}. ') + 'The machine in the same run: '
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
    setting = small(SCALE.value)
    if SIZE.value:
        setting = Setting(RELEASED[SIZE.value], (3840, 2160), 21, 64, 1, True)
        # Before jax takes the card for this process.
        seconds, gap = one_after_the_other() if SIDE.value is None else {}, None
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), setting)
        if SIDE.value:
            print(json.dumps(alone(bench, SIDE.value, REPEATS.value)))
            return
        if not SIZE.value:
            seconds, gap = measure(bench, REPEATS.value)
        text = table(bench, seconds, gap, limits(setting.released))
    print(text)
    out = Path(OUT.value)
    out.write_text(text)
    draw(seconds, out.with_suffix('.png'))


if __name__ == '__main__':
    app.run(main)
