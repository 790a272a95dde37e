"""The pocket base policy from nothing: see, read, copy, call tools; none of the project's tools and no held-out entity.

    python -m sensesearch_jax.main --config=configs/base.py --workdir=runs/base

Machine: one core and 4 GB, beside other work (`nice -n 19 taskset -c 1`); up to 40 hours. Writes runs/base/policy, a
Hugging Face directory, every few minutes. The same command goes on after any stop; `--config.max_minutes=60` stops it
after an hour, with exit code 75, and may be left out or changed when it goes on.

The curriculum is `stages`: so many steps at a learning rate that rises and falls, and the shares of lessons in them:

    short pages      lines to say again, keys to look up: copying comes of these, and of long pages alone never
    pages            numbered results in the manner of an encyclopaedia, and questions that quote them
    cloze pages      the same with answers within sentences
    markup           the tags of tool calls as strings to be said again
    namesakes        names of few words that come back in each
    tools            dialogues in Qwen's tool-call format: made-up tools, invented names, facts and passages
    passages         the same about one response, of which value after value is asked for
    numbers          the same, mostly of years and other numbers behind labels that end alike
    options          lettered options, of which one after another is named
    near pictures    close views of flags and paintings: where, how many, which colour, tall or wide
    pictures         whole scenes
    attributes       mostly colours and shapes, behind longer system prompts
    sentences        the same with answers within sentences
    looks            scenes in the tool-call format: boxes, a second picture as a tool's response, a better box
    near looks       the same where each dialogue crops an object and says what it looks like
    counts           scenes, mostly of several objects, and how many they are
    short counts     the same behind short prompts: three times as many pictures for the time

Objects are training entities, cut and coloured anew, and invented ones (sensesearch_jax/pocket/invented). A model of the
true size brings all that along from its instruction tuning. Which of the project's tools a question wants is for SFT.

    python -m experiments.analysis.skills --policy=runs/base/policy

says what it has learned.

    python -m sensesearch_jax.main --config=configs/base.py:reading --workdir=runs/reading --config.policy=DIR

begins with a later stage, from a policy that has gone through those before: an hour or two on a core for each of the last
eight. The policy that the repository ships went through them one by one, each by the file of its day, from the
one that it shipped at commit 6f5430a, whose own curriculum is this file at commit 3d37c52 (docs/results.md has what each
of them brought); before `counting` it had 160 steps of `counts` alone. All stages in one run have not been tried since.
"""

from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError

# One after another; a name is the config's argument. A step is the mean gradient of `lessons_per_step`
# batches, each of one lesson. `probe_weight` is that of the dense targets at the first and at the last
# step. Pictures cost a third under `freeze_tower`, and the tower learns nothing.
STAGES = (
    {
        'name': 'pages',
        'steps': 1200,
        'learning_rate': 1.5e-3,
        'lessons_per_step': 4,
        'probe_weight': (1.0, 1.0),
        'freeze_tower': False,
        'lessons': {'short pages': 1.0},
    },
    {
        'name': 'pictures',
        'steps': 4000,
        'learning_rate': 1.5e-3,
        'lessons_per_step': 4,
        'probe_weight': (1.0, 0.5),
        'freeze_tower': False,
        'lessons': {
            'near pictures': 0.35,
            'pictures': 0.25,
            'attributes': 0.15,
            'pages': 0.2,
            'namesakes': 0.05,
        },
    },
    {
        'name': 'sentences',
        'steps': 3500,
        'learning_rate': 1e-3,
        'lessons_per_step': 4,
        'probe_weight': (0.5, 0.1),
        'freeze_tower': False,
        'lessons': {
            'pictures': 0.15,
            'attributes': 0.2,
            'sentences': 0.1,
            'looks': 0.2,
            'pages': 0.05,
            'cloze pages': 0.05,
            'markup': 0.03,
            'namesakes': 0.07,
            'tools': 0.15,
        },
    },
    {
        'name': 'tools',
        'steps': 4500,
        'learning_rate': 8e-4,
        'lessons_per_step': 4,
        'probe_weight': (0.1, 0.1),
        'freeze_tower': False,
        'lessons': {
            'pictures': 0.05,
            'attributes': 0.1,
            'sentences': 0.1,
            'looks': 0.35,
            'pages': 0.05,
            'namesakes': 0.05,
            'tools': 0.3,
        },
    },
    {
        'name': 'dialogues',
        'steps': 940,
        'learning_rate': 1e-3,
        'lessons_per_step': 2,
        # A start of this stage has new probes, which shall not shake the tower.
        'probe_weight': (0.3, 0.03),
        'freeze_tower': False,
        'lessons': {
            'tools': 0.36,
            'looks': 0.36,
            'namesakes': 0.07,
            'pages': 0.04,
            'attributes': 0.07,
            'sentences': 0.05,
            'near pictures': 0.05,
        },
    },
    {
        'name': 'details',
        'steps': 700,
        'learning_rate': 8e-4,
        'lessons_per_step': 2,
        'probe_weight': (0.1, 0.01),
        'freeze_tower': False,
        'lessons': {
            'tools': 0.22,
            'passages': 0.2,
            'looks': 0.16,
            'near looks': 0.2,
            'namesakes': 0.04,
            'near pictures': 0.06,
            'attributes': 0.08,
            'pages': 0.04,
        },
    },
    {
        'name': 'reading',
        'steps': 800,
        'learning_rate': 1e-3,
        'lessons_per_step': 2,
        'probe_weight': (0.1, 0.01),
        'freeze_tower': True,
        'lessons': {
            'tools': 0.27,
            'passages': 0.23,
            'options': 0.07,
            'namesakes': 0.03,
            'pages': 0.02,
            'counts': 0.13,
            'looks': 0.1,
            'near looks': 0.07,
            'near pictures': 0.04,
            'attributes': 0.04,
        },
    },
    {
        'name': 'distractors',
        'steps': 900,
        'learning_rate': 1e-3,
        'lessons_per_step': 2,
        'probe_weight': (0.1, 0.01),
        'freeze_tower': True,
        'lessons': {
            'tools': 0.25,
            'passages': 0.45,
            'namesakes': 0.03,
            'options': 0.02,
            'counts': 0.05,
            'looks': 0.08,
            'near looks': 0.06,
            'near pictures': 0.03,
            'attributes': 0.03,
        },
    },
    {
        'name': 'numbers',
        'steps': 700,
        'learning_rate': 1e-3,
        'lessons_per_step': 2,
        'probe_weight': (0.1, 0.01),
        'freeze_tower': True,
        'lessons': {
            'numbers': 0.4,
            'passages': 0.13,
            'tools': 0.25,
            'namesakes': 0.03,
            'options': 0.02,
            'counts': 0.03,
            'looks': 0.06,
            'near looks': 0.04,
            'near pictures': 0.02,
            'attributes': 0.02,
        },
    },
    {
        'name': 'counting',
        'steps': 400,
        'learning_rate': 1e-3,
        'lessons_per_step': 1,
        'probe_weight': (0.5, 0.5),
        'freeze_tower': True,
        'lessons': {'short counts': 1.0},
    },
    {
        'name': 'together',
        'steps': 750,
        'learning_rate': 1e-3,
        'lessons_per_step': 2,
        'probe_weight': (0.3, 0.1),
        'freeze_tower': True,
        'lessons': {
            'short counts': 0.24,
            'counts': 0.04,
            'numbers': 0.2,
            'passages': 0.1,
            'tools': 0.22,
            'namesakes': 0.02,
            'options': 0.02,
            'looks': 0.07,
            'near looks': 0.05,
            'near pictures': 0.02,
            'attributes': 0.02,
        },
    },
    {
        'name': 'looking',
        'steps': 300,
        'learning_rate': 8e-4,
        'lessons_per_step': 2,
        'probe_weight': (0.1, 0.05),
        'freeze_tower': True,
        'lessons': {
            'looks': 0.26,
            'near looks': 0.25,
            'short counts': 0.15,
            'attributes': 0.04,
            'near pictures': 0.03,
            'tools': 0.12,
            'numbers': 0.1,
            'passages': 0.03,
            'namesakes': 0.02,
        },
    },
)


def get_config(first: str = 'pages') -> ConfigDict:
    """All stages from `first` on."""
    names = [stage['name'] for stage in STAGES]
    if first not in names:
        raise UserError(f'configs/base.py:{first} is unknown; choose from {", ".join(names)}.')
    return ConfigDict(
        {
            'task': 'base',
            'seed': 0,
            'compilation_cache': '',  # see configs/common.py
            # of the policy's form: qwen2_5_vl, qwen3_vl or qwen3_vl_moe, which has four experts
            'family': 'qwen2_5_vl',
            'policy': '',  # to start from, with its tokenizer and sizes; '' starts from nothing
            'max_minutes': 0.0,  # after which a start ends, to be gone on with; 0: at the last step
            'checkpoint_minutes': 5,
            'evaluate_every': 200,  # steps
            'stages': STAGES[names.index(first) :],
            'warmup': 60,  # steps, in each stage
            'weight_decay': 0.01,
            # so many in a row whose gradient is not finite, and which are not made, end the run
            'max_skipped_updates': 5,
            'probe_layers': (1, 2, 3),  # decoder layers whose values are probed
            # Static shapes, in tokens. A batch of texts is packed into `tokens`; `lengths` of pages,
            # the shortest first, and the longest that a dialogue with tools may be.
            'texts': {'tokens': 4096, 'lengths': (64, 128, 256, 512), 'dialogue': 896},
            # Rows of one picture, dialogues about it, the longest prompt and suffix, and how many
            # tokens a row's suffixes may have in all. What does not fit is drawn again.
            'plain_pictures': {'rows': 8, 'members': 6, 'prompt': 192, 'suffix': 48, 'packed': 240},
            'told_pictures': {'rows': 8, 'members': 4, 'prompt': 336, 'suffix': 96, 'packed': 240},
            # the same; so many of the dialogues have a second picture
            'looks': {
                'rows': 4,
                'members': 6,
                'second_pictures': 3,
                'prompt': 448,
                'suffix': 384,
                'packed': 1152,
            },
            # the same; all of the dialogues have one
            'near_looks': {'rows': 4, 'members': 5, 'prompt': 448, 'suffix': 384, 'packed': 1344},
            # the same; one of the dialogues counts
            'counts': {'rows': 8, 'members': 3, 'prompt': 448, 'suffix': 192, 'packed': 288},
            # the same; a row's only dialogue counts
            'short_counts': {'rows': 24, 'members': 1, 'prompt': 192, 'suffix': 64, 'packed': 64},
            'slots': 160,  # of a picture's tokens
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
                'layers': 6,
                'width': 256,
                'mlp_width': 640,
                'heads': 4,
                'kv_heads': 2,
                'vocabulary': 8192,
                'rope_theta': 1000.0,
                'mrope_sections': (2, 8, 22),
                'tied_head': True,
                'max_positions': 4096,
            },
        }
    )
