"""The pocket base policy from nothing: see, read, copy, call tools; none of the project's tools and no held-out entity.

    python -m sensesearch_jax.main --config=configs/base.py --workdir=runs/base

Machine: one core and 4 GB, beside other work (`nice -n 19 taskset -c 1`); up to 40 hours. Writes runs/base/policy, a
Hugging Face directory, every few minutes. The same command goes on after any stop; `--config.max_minutes=60` stops it
after an hour, with exit code 75, and may be left out or changed when it goes on.

The curriculum is `stages`: so many steps at a learning rate that rises and falls, and the shares of lessons in them. A
step is the mean gradient of `lessons_per_step` batches, each of one lesson:

    short pages      lines to say again, keys to look up: copying comes of these, and of long pages alone never
    pages            numbered results in the manner of an encyclopaedia, and questions that quote them
    cloze pages      the same with answers within sentences
    markup           the tags of tool calls as strings to be said again
    namesakes        names of few words that come back in each
    tools            dialogues in Qwen's tool-call format: made-up tools, invented names, facts and passages
    passages         the same about one response, of which value after value is asked for
    near pictures    close views of flags and paintings: where, how many, which colour, tall or wide
    pictures         whole scenes
    attributes       mostly colours and shapes, behind longer system prompts
    sentences        the same with answers within sentences
    looks            scenes in the tool-call format: boxes, a second picture as a tool's response, a better box
    near looks       the same where each dialogue crops an object and says what it looks like

Objects are training entities, cut and coloured anew, and invented ones (sensesearch_jax/pocket/invented). A model of the
true size brings all that along from its instruction tuning. Which of the project's tools a question wants is for SFT.

    python -m experiments.analysis.skills --policy=runs/base/policy

says what it has learned.

    python -m sensesearch_jax.main --config=configs/base.py:dialogues --workdir=runs/dialogues --config.policy=DIR
    python -m sensesearch_jax.main --config=configs/base.py:details --workdir=runs/details --config.policy=DIR

go on from a policy that can read and see, for one to three hours on a core each: the first mostly with dialogues in the
tool-call format, the second with more of those that ask for one detail after another. The policy that the repository
ships was made by both: by the first from the one that it shipped at commit 6f5430a, whose own curriculum is this file at
commit 3d37c52, and by the second from the one of commit 3e44d9d (docs/results.md has what each brought).
"""

from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError


def get_config(mode: str = 'whole') -> ConfigDict:
    config = whole()
    if mode == 'dialogues':
        config.lessons_per_step = 2
        config.probe_weight = 0.3  # the probes start from nothing, and shall not shake the tower
        config.stages = (
            {
                'steps': 940,
                'learning_rate': 1e-3,
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
        )
    elif mode == 'details':
        config.lessons_per_step = 2
        config.update(probe_weight=0.1, warmup=60)
        config.stages = (
            {
                'steps': 700,
                'learning_rate': 8e-4,
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
        )
    elif mode != 'whole':
        raise UserError(
            f"configs/base.py:{mode} is unknown; choose 'whole', 'dialogues' or 'details'."
        )
    return config


def whole() -> ConfigDict:
    """All stages, from nothing."""
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
            'lessons_per_step': 4,
            'stages': (
                {'steps': 1200, 'learning_rate': 1.5e-3, 'lessons': {'short pages': 1.0}},
                {
                    'steps': 4000,
                    'learning_rate': 1.5e-3,
                    'lessons': {
                        'near pictures': 0.35,
                        'pictures': 0.25,
                        'attributes': 0.15,
                        'pages': 0.2,
                        'namesakes': 0.05,
                    },
                },
                {
                    'steps': 3500,
                    'learning_rate': 1e-3,
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
                    'steps': 4500,
                    'learning_rate': 8e-4,
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
            ),
            'warmup': 100,
            'weight_decay': 0.01,
            # so many in a row whose gradient is not finite, and which are not made, end the run
            'max_skipped_updates': 5,
            'probe_weight': 1.0,  # of the dense targets; falls to a tenth over 70 % of the steps
            'probe_layers': (1, 2),  # decoder layers whose values are probed
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
            'near_looks': {'rows': 4, 'members': 5, 'prompt': 448, 'suffix': 384, 'packed': 1280},
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
