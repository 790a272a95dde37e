"""The pocket base policy from nothing: see, read, copy; neither the protocol nor any held-out entity.

    python -m sensesearch_jax.main --config=configs/base.py --workdir=runs/base

Machine: 2 cores; about 40 minutes. Writes runs/base/policy, a Hugging Face directory. The one that
the repository ships (sensesearch_jax/data/pocket/policy) was made by this config.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({
        'task': 'base',
        'seed': 0,
        'steps': 1500,
        'learning_rate': 1.2e-3,
        'warmup': 100,
        'weight_decay': 0.01,
        'probe_weight': 1.0,      # of the dense targets; falls to a tenth over 70 % of the steps
        'probe_layers': (1, 2),   # decoder layers whose values are probed
        'easy_steps': 500,       # until here close views and plain repetition give way to whole scenes and reading
        'pictures': 8,            # lessons per batch
        'pages': 6,
        'questions': 6,           # per picture, at most
        'page_questions': 10,
        'picture_tokens': 192,    # static lengths; a lesson that does not fit is drawn again
        'picture_slots': 160,
        'system_tokens': 96,
        'page_tokens': 512,
        'answer_tokens': 48,
        'evaluate_every': 200,
        'dtype': 'bfloat16',      # of the saved weights
        'min_pixels': 3136,
        'max_pixels': 90_000,     # a 4K scene becomes 392 × 224: 14 × 8 visual tokens
        'vision': {'depth': 4, 'width': 160, 'mlp_width': 320, 'heads': 4, 'window_size': 112,
                   'full_attention_blocks': (1, 3)},
        # A low theta with most frequencies on the width axis: at this head width Qwen's own split would leave the
        # columns with frequencies too low to tell apart.
        'language': {'layers': 4, 'width': 256, 'mlp_width': 640, 'heads': 4, 'kv_heads': 2, 'vocabulary': 2048,
                     'rope_theta': 1000.0, 'mrope_sections': (2, 8, 22), 'tied_head': True, 'max_positions': 4096},
    })
