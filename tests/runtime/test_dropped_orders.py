"""Orders to stop that arrive where Python raises nothing."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc, os, signal, time
from sensesearch_jax.runtime import stopping

def arrives():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)  # in which the handler runs, and raises

class Freed:
    def __del__(self):
        arrives()

def collected(phase, info):
    if phase == 'start':
        gc.callbacks.remove(collected)
        arrives()

def stopped_by(action):
    try:
        action()
        time.sleep(20)
    except stopping.Stopped as order:
        print('stopped by', order)

stopping.listen()
gc.callbacks.append(collected)
stopped_by(gc.collect)
stopped_by(Freed)
"""


def test_an_order_in_a_callback_of_the_collector_counts():
    """And in a destructor; in both Python drops exceptions."""
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        cwd=Path(__file__).parents[2],
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == 'stopped by SIGTERM\n' * 2, done.stderr
    assert done.stderr == ''
