"""Traces of a few steps for jax.profiler: where the time of host and devices goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from sensesearch_jax.runtime.closing import Closing

FIRST = 2  # steps that are not traced, where there are more: they compile


class Profiler(Closing):
    """The trace of some steps of a stage; each step is annotated, traced or not.

    XProf and TensorBoard's profile plugin read the folder, and Perfetto its trace.json.gz. The model's
    parts are scopes: vision_tower, embed, decoder_layer, attention, mlp, head.

    Args:
        folder: that the trace is written to, of this process.
        stage: name of the steps.
        steps: how many are traced, after the first ones; 0 traces none.
        start: the first step of this start.
        end: the last step of the stage, exclusive.
    """

    def __init__(self, folder: Path, stage: str, steps: int, start: int, end: int):
        self.folder, self.stage = folder, stage
        self.first = start + max(0, min(FIRST, end - start - steps))
        self.last = self.first + steps - 1
        self._tracing = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Within it, a step runs, which is done with the devices at the end.

        Args:
            number: of the step, from 0.
        """
        if number == self.first <= self.last:
            # What Python calls is left out: it would be most of the file.
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(self.folder, profiler_options=options)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation(self.stage, step_num=number):
            yield
        if number >= self.last:
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is being made."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
