"""The cold start with a 7B policy: hard questions are mined, and a served model solves them with real tools.

    GEMINI_API_KEY=… OPENAI_API_KEY=… TOOLS_SERVER_TOKEN=… python -m sensesearch_jax.main --config=configs/cold_start_7b.py --workdir=DIR \
        --config.policy=QWEN --config.tools.url=http://HOST:8080 --config.tools.folder=PICTURES

As in the paper: eight plain answers of the policy to each question, of which those that are right at most once are kept;
Gemini-2.5-Flash writes the reasoning and the calls, GPT-4o reviews what the rules keep (OPENAI_API_KEY). Any
OpenAI-compatible server does for each of the three (mine, expert, validate); docs/cold_start.md. budget.usd ends the run
in time; prices are list prices of 2025, so check them. Without tools.url a server of configs/tools_online.yaml is
started, which needs its keys and whose services are not in the budget. The questions are those of FVQA's training split
(`python -m sensesearch_jax.data.convert fvqa FILES DATA` and --config.data.dir=DATA), or of any source in
--config.data.train (docs/data.md).
Machine: a GPU of 80 GB or several, and the keys.
Mesh: all devices along fsdp, each a replica that answers; --config.mesh.tensor=4 makes replicas of four, which shard heads
and caches. On several hosts add --config.multi_host=True. Not run on weights of this size: no machine that holds them was at hand.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import cold_start
from common_7b import as_7b


def get_config():
    settings = as_7b(cold_start.get_config())
    settings.data.train = 'fvqa@train'
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
    settings.validate.update(
        kind='openai',
        url='https://api.openai.com/v1',
        model='gpt-4o',
        input_usd=2.50,
        output_usd=10.00,
    )
    settings.budget.usd = 150.0
    return settings
