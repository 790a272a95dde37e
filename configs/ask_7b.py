"""Asks a 7B policy one question about one picture, with the paper's turns, pictures and tools.

    TOOLS_SERVER_TOKEN=… python -m sensesearch_jax.main --config=configs/ask_7b.py --config.policy=SFT/sft/policy \
        --config.image=FILE --config.question='Who designed the building on the left?' --config.tools.url=http://HOST:8080

Without tools.url a server of configs/tools_online.yaml is started, which needs its keys; with
--config.tools.config=configs/tools_pocket.yaml the tools are local.
Machine: a GPU of 80 GB, which holds the parameters (17 GB in bfloat16).
Mesh: all devices along fsdp, of which the first answers alone; --config.mesh.tensor=4 shards heads and caches over four.
Not run on weights of this size: no machine that holds them was at hand.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import ask
from common_7b import as_7b


def get_config():
    return as_7b(ask.get_config())
