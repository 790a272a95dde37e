r"""Evaluation of a released SenseNova-MARS policy (8B; the 32B with a larger mesh) under its own protocol.

    python -m sensesearch_jax.main --config=configs/evaluate_mars.py --workdir=DIR --config.policy=SENSENOVA_MARS_8B \
        --config.agent.released.system_file=MANIFEST --config.agent.released.tools_file=TOOLS

MANIFEST and TOOLS come with the authors' code: a manifest of their data sets, from which the system text is read, and
their tool configuration. Without both fields the protocol has our own words, which those weights have not seen.
`agent.released.form` 'trained' gives the schemas and the breaks between turns of their training;
`agent.released.crops` 'original' cuts every crop from the first image, as their inference script does.

Theirs beside ours: temperature 0.7, top-p 0.8, top-k 20 and presence penalty 1.5 beside greedy; 4,096 tokens a turn,
as here; up to 50 turns in the script and 10 in the paper, as here; pictures of 65,536 to 8,294,400 pixels, as here;
summaries of text searches beside the passages that the tool server finds. There is no presence penalty here.

Machine: a GPU of 80 GB or several, and the keys of configs/tools_online.yaml.
Mesh: all devices along fsdp. The parameters take 17.5 GB in bfloat16, a trajectory of 32,768 tokens 4.8 GB of keys and
values, a picture of 8,040 tokens 263 MB of features with those of deepstack. Not run: no machine of this size was at hand.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import evaluate_7b
from common_7b import as_mars


def get_config():
    settings = as_mars(evaluate_7b.get_config())
    settings.evaluate.lanes = 4
    return settings
