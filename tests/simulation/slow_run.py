"""A run whose tools and judge answer late, to compare with what is simulated of it.

    python tests/simulation/slow_run.py MEDIAN_S LATE_S JUDGE_S --config=configs/rl.py --workdir=DIR …

What follows the three numbers is the command line of sensesearch_jax.main. LATE_S is the 99th
percentile of a call's log-normal latency; a verdict takes JUDGE_S.
"""

import sys
import time

import numpy as np
from absl import app

from sensesearch_jax import main
from sensesearch_jax.agent.tool_client import ToolClient
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.simulation.plans import Latency


def delay(owner: type, name: str, latency: Latency) -> None:
    """Makes a method sleep before it does its work."""
    call, random = getattr(owner, name), np.random.default_rng(0)

    def late(*arguments, **options):
        time.sleep(latency.draw(random))
        return call(*arguments, **options)

    setattr(owner, name, late)


if __name__ == '__main__':
    median, late, judge = map(float, sys.argv[1:4])
    del sys.argv[1:4]
    for tool in ('text_search', 'image_search', 'crop'):
        delay(ToolClient, tool, Latency(median, late))
    delay(Scorer, 'verdict', Latency(judge, judge))
    app.run(main.guarded, flags_parser=main.parse_flags)
