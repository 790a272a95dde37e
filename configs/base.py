"""The pocket base policy from nothing: see, read, copy; neither the protocol nor any held-out entity.

    python -m sensesearch_jax.main --config=configs/base.py --workdir=runs/base

Machine: 2 cores; 5 to 7 hours. Writes runs/base/policy, a Hugging Face directory.

The curriculum: short pages until copying is there; then pictures, from close views to whole scenes, with pages that
grow ("plain"); then places within longer questions, answers within sentences and search dialogues, which want a fact
first and get its page some turns later ("cloze"); at last much of the same within formats that are made up for each
dialogue and given by its system prompt: tags for thoughts and replies, JSON calls of functions ("formatted"); and
zooms among them, dialogues that need a nearer look and get it as a second picture ("zoom"); and colours and shapes,
which are a hundredth of all tokens until then and too few to be learned, in all these ways of asking ("attributes").
Most objects are augmented pictures of the training entities, lest what they look like be learned by heart. A model of
the true size brings all that along from its instruction tuning. The protocol's own tags and tools occur only as
strings to be said again.

That is 9,400 steps, after which pages are read worse than before the attributes. The policy that the repository
ships has gone on from there, as any policy can; first with three batches of pages out of four:

    python -m sensesearch_jax.main --config=configs/base.py --workdir=runs/base_read --config.steps=11000 \
        --config.policy=runs/base/policy --config.first_step=9400 --config.seed=7 --config.attribute_steps=1600 \
        --config.attribute_learning_rate=6e-4 --config.attribute_shares='((0.75, 0.0, 0.2, 0.0, 0.05), (0.75, 0.05, 0.05, 0.05, 0.1))'

(1 h 45 min on one of two cores. Its first 9,400 steps were made in several starts, the first 8,100 without augmented pictures
and the last 700 of these colours and shapes at half of their rate.) That one hardly saw: of colours half were right, tall or
wide little more than by chance. The same attributes are learned within a thousand steps where they are most of the batches, so
at last:

    python -m sensesearch_jax.main --config=configs/base.py --workdir=runs/base_seen --config.steps=13400 \
        --config.policy=runs/base_read/policy --config.first_step=11000 --config.seed=11 --config.attribute_steps=2400 \
        --config.attribute_learning_rate=8e-4 --config.attribute_shares='((0.25, 0.0, 0.6, 0.0, 0.15), (0.4, 0.1, 0.125, 0.125, 0.25))'

(42 minutes on two cores of a fast machine.)

That one names a colour as the first word of an answer, right behind the question, but hardly within a sentence, where SFT
asks for it, nor behind a system prompt as long as one that declares tools. So there follow both. A start goes on
from the checkpoints beside its policy if they are there, with the probes that it had:

    python -m sensesearch_jax.main --config=configs/base.py --workdir=runs/base_told --config.steps=14900 \
        --config.policy=runs/base_seen/policy --config.first_step=13400 --config.seed=14 --config.attribute_steps=1500 \
        --config.attribute_learning_rate=4e-4 --config.attribute_shares='((0.15, 0.2, 0.1, 0.2, 0.35),)'

(40 minutes there. It was made in two starts: its first 350 steps at a rate of up to 3e-4, with shares of 0.2, 0.1, 0.3,
0.15 and 0.25.) Boxes are a little better then
(45 % right for 42, asked plainly), counts worse (57 % for 74), and so are long pages.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            'task': 'base',
            'seed': 0,
            'compilation_cache': '',  # see configs/common.py
            'policy': '',  # one that has had the first `first_step` steps; '' starts from nothing
            'first_step': 0,
            'steps': 9400,
            'learning_rate': 1.5e-3,
            # after the plain ones: search dialogues, answers in sentences, places within longer questions
            'cloze_steps': 1000,
            'cloze_learning_rate': 1e-3,
            # after those: much of the same in a format that the system prompt gives
            'formatted_steps': 1800,
            'formatted_learning_rate': 1e-3,
            # at last also zooms: a later turn brings a second picture, which tells or does not yet
            'zoom_steps': 600,
            'zoom_learning_rate': 6e-4,
            'attribute_steps': 2000,  # and then colours and shapes, which until then were rare
            'attribute_learning_rate': 1e-3,
            # of its batches, in equally long parts: pages, zooms, pictures asked about plainly,
            # within sentences and in a format
            'attribute_shares': ((0.2, 0.0, 0.64, 0.0, 0.16), (0.35, 0.25, 0.1, 0.1, 0.2)),
            # the targets say what an object looks like as well as where it is
            'attribute_probe_weight': 0.5,
            'zoom_pictures': 4,  # scenes per batch,
            'zooms': 4,  # zooms into each,
            'zoom_tokens': (432, 304),  # static lengths of their prompts and of the rest
            'warmup': 100,
            'weight_decay': 0.01,
            # so many in a row whose gradient is not finite, and which are not made, end the run
            'max_skipped_updates': 5,
            'probe_weight': 1.0,  # of the dense targets; falls to a tenth over 70 % of the steps
            'probe_layers': (1, 2),  # decoder layers whose values are probed
            # short pages alone, until copying is there; then two of three batches are pictures
            'reading_steps': 700,
            'easy_steps': 1000,  # of these from then on: close views give way to whole scenes
            'growing_steps': 1500,  # and pages grow to the longest
            'pictures': 8,  # examples per batch
            'page_tokens': (3072, 4096, 3072),  # per batch: plain, cloze, formatted
            'page_lengths': (64, 128, 256, 512),
            'search_dialogue_lengths': (
                512,
                1024,
            ),  # dialogues that want a fact first and get its page later; not in the plain stage
            'questions': (6, 4, 4),  # per picture, at most
            'picture_tokens': (
                192,
                256,
                272,
            ),  # static lengths; an example that does not fit is drawn again
            # the same of the last stage, whose system prompts are as long as those that declare
            # tools
            'attribute_tokens': 432,
            'picture_slots': 160,
            'answer_tokens': (48, 80, 128),
            'evaluate_every': 250,
            'dtype': 'bfloat16',  # of the saved weights
            'min_pixels': 3136,
            'max_pixels': 90_000,  # a 4K scene becomes 392 × 224: 14 × 8 visual tokens
            'vision': {
                'depth': 4,
                'width': 160,
                'mlp_width': 320,
                'heads': 4,
                'window_size': 112,
                'full_attention_blocks': (1, 3),
            },
            # A low theta with most frequencies on the width axis: at this head width Qwen's own
            # split would leave the columns with frequencies too low to tell apart.
            'language': {
                'layers': 4,
                'width': 256,
                'mlp_width': 640,
                'heads': 4,
                'kv_heads': 2,
                'vocabulary': 2048,
                'rope_theta': 1000.0,
                'mrope_sections': (2, 8, 22),
                'tied_head': True,
                'max_positions': 4096,
            },
        }
    )
