"""The cold start with a 7B policy: hard questions are mined, and a served model solves them with real tools.

    GEMINI_API_KEY=… TOOLS_SERVER_TOKEN=… python -m sensesearch_jax.main --config=configs/cold_start_7b.py --workdir=DIR \
        --config.policy=QWEN --config.tools.url=http://HOST:8080 --config.tools.folder=PICTURES

As in the paper: eight plain answers to each question, those that are right at most once are kept, Gemini-2.5-Flash writes
the reasoning and the calls; any OpenAI-compatible server is named by expert.url, expert.model and expert.key_env. Without
tools.url a server of configs/tools_online.yaml is started, which needs its keys.
Mesh: all devices along fsdp; --config.mesh.tensor=4 shards heads and caches over four. On several hosts add
--config.multi_host=True. Not run on weights of this size: no machine that holds them was at hand.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import cold_start
from common import questions
from common_7b import as_7b


def get_config():
    settings = as_7b(cold_start.get_config())
    settings.questions.update(questions(train=1000))
    settings.mine.update(samples=8, most_right=1, answer_tokens=64)
    settings.expert.update(
        kind='openai',
        questions=3000,
        threads=32,
        url='https://generativelanguage.googleapis.com/v1beta/openai',
        model='gemini-2.5-flash',
        key_env='GEMINI_API_KEY',
        input_usd=0.30,
        output_usd=2.50,
        turn_tokens=8192,
    )
    return settings
