"""The runs of a sweep: settings and seeds, each with the configs of its tasks.

A run is one task, or a chain of them: a config with the parts `sft`, `rl` and `evaluate`, of which
any may be missing, each the whole config of that task. In this order each begins with the policy
that the one before has made.
"""

from __future__ import annotations

import ast
import copy
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sensesearch_jax.config.fields import check_types
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.workdir import atomic_write

CHAIN = {'sft': 'sft/policy', 'rl': 'rl/policy', 'evaluate': None}
"""Tasks of a chain in their order, and where in its workdir each writes its policy."""

PLAN = 'sweep.json'

SETTING, TASKS = 'setting', 'tasks'
"""Names among a run's overrides that are no fields: of its setting, and of the tasks it has."""

Overrides = Mapping[str, Any]


def product(*parts: Mapping[str, Iterable[Any]] | Sequence[Overrides]) -> list[dict[str, Any]]:
    """Every combination of the parts' overrides.

    Args:
        parts: each a list of overrides, or fields with their values, which stands for all
            combinations of these.
    """
    choices = [
        [dict(zip(part, values, strict=True)) for values in itertools.product(*part.values())]
        if isinstance(part, Mapping)
        else list(part)
        for part in parts
    ]
    return [
        {name: value for chosen in combination for name, value in chosen.items()}
        for combination in itertools.product(*choices)
    ]


def seeds(count: int) -> list[dict[str, int]]:
    """Overrides of so many repeats: of what is sampled, and of the order in which RL asks."""
    return [{'seed': number, 'rl:data.seed': number} for number in range(count)]


def parse_vary(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The product of texts such as 'rl.algorithm=grpo,gspo' or 'rl.clip_low=0.2,0.3'.

    Raises:
        UserError: a text is no field with values.
    """
    fields = {}
    for text in texts:
        name, found, values = text.partition('=')
        if not (name and found and values):
            raise UserError(f"--vary={text} names no values; give --vary='FIELD=VALUE,VALUE'.")
        fields[name] = [_value(value) for value in values.split(',')]
    return product(fields)


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
        name: of its folder, unique in the sweep.
        setting: runs of one setting differ in their seeds alone.
        seed: the run's `seed`.
        tasks: configs by task, in the order in which they are started.
    """

    name: str
    setting: str
    seed: int
    tasks: Mapping[str, ConfigDict]

    def folder(self, workdir: Path) -> Path:
        """The folder of the run, which has a workdir for each task."""
        return workdir / 'runs' / self.name


def plan(config: ConfigDict, overrides: Sequence[Overrides]) -> list[Run]:
    """The runs of a sweep in the order of the overrides.

    Args:
        config: of one task, or of a chain of them.
        overrides: a run's fields with their values, those of one run each. A field is set in every
            task that has it; 'rl:data.seed' is set in the task `rl` alone, and the `policy` is that
            of the first task. 'setting' names the run's setting, otherwise its fields do, but for
            the seeds; 'tasks' are those that it has, otherwise all.

    Raises:
        UserError: a field that no task has or of another type, tasks that make no chain, or two
            runs alike.
    """
    tasks = _tasks(config)
    runs: list[Run] = []
    for changes in overrides or [{}]:
        chosen = changes.get(TASKS, tuple(tasks))
        if unknown := [task for task in chosen if task not in tasks]:
            raise UserError(f"The sweep's config has no task {unknown[0]}; it has {list(tasks)}.")
        fields = {name: v for name, v in changes.items() if name not in (SETTING, TASKS)}
        configs = {task: copy.deepcopy(tasks[task]) for task in tasks if task in chosen}
        first, start = next(iter(configs.values())), next(iter(tasks.values()))
        if 'policy' in start:
            first.policy = start.policy  # a run that leaves tasks out begins where the others do
        _override(configs, fields)
        setting = str(changes.get(SETTING) or _setting(fields))
        seed = next(iter(configs.values())).get('seed', 0)
        name = f'{re.sub(r"[^a-z0-9.]+", "-", setting.lower()).strip("-.")}-{seed}'
        runs.append(Run(name, setting, seed, configs))
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"Two runs of the sweep are called {twice[0]}; give them another 'setting' or seed."
        )
    return runs


def write_config(run: Run, task: str, workdir: Path) -> Path:
    """Writes the config of a run's task, with the policy that the one before has made."""
    folder, config = run.folder(workdir), copy.deepcopy(run.tasks[task])
    before = list(run.tasks)[: list(run.tasks).index(task)]
    if before:
        config.policy = str(folder.resolve() / before[-1] / CHAIN[before[-1]])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{task}.json'
    atomic_write(path, json.dumps(config.to_dict(), indent=1) + '\n')
    return path


def write_plan(runs: Sequence[Run], workdir: Path) -> dict[str, dict[str, Any]]:
    """Adds the runs to sweep.json, and returns all of its runs by name with 'setting', 'seed' and
    'tasks'.

    So a sweep may be given more seeds and settings later.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    there = planned_before(workdir)
    of_runs = {
        run.name: {'setting': run.setting, 'seed': run.seed, 'tasks': list(run.tasks)}
        for run in runs
    }
    atomic_write(workdir / PLAN, json.dumps(there | of_runs, indent=1) + '\n')
    return there | of_runs


def planned_before(workdir: Path) -> dict[str, dict[str, Any]]:
    """The runs of a sweep that was started, as `write_plan` returns them; none if it was not."""
    path = workdir / PLAN
    return json.loads(path.read_text()) if path.is_file() else {}


def _tasks(config: ConfigDict) -> dict[str, ConfigDict]:
    """The config's tasks in their order."""
    if 'task' in config:
        return {config.task: config}
    unknown = [name for name in config if name not in CHAIN]
    if unknown or not len(config):
        raise UserError(
            f'A sweep has the config of one task, or of a chain of {", ".join(CHAIN)}; '
            f"'{unknown[0] if unknown else ''}' is neither."
        )
    return {task: config[task] for task in CHAIN if task in config}


def _override(configs: Mapping[str, ConfigDict], fields: Overrides) -> None:
    """Sets the fields in the configs of a run's tasks, and checks their types."""
    for name, value in fields.items():
        only, _, field = name.rpartition(':')
        found = [c for task, c in configs.items() if only in ('', task) and _has(c, field)]
        # What only a task that this run leaves out would read is no mistake.
        if not found and not (only and only not in configs):
            raise UserError(f'The sweep sets {name}, but no task of it has such a field.')
        for config in found[:1] if field == 'policy' else found:
            *parts, last = field.split('.')
            part = config
            for inner in parts:
                part = part[inner]
            with config.ignore_type():
                part[last] = value
    for config in configs.values():
        if config.task != 'base':
            check_types(config)


def _has(config: ConfigDict, field: str) -> bool:
    part, _, rest = field.partition('.')
    if not isinstance(config, ConfigDict) or part not in config:
        return False
    return not rest or _has(config[part], rest)


def _setting(fields: Overrides) -> str:
    """The fields but for the seeds, as a name."""
    said = [
        f'{name.rpartition(".")[2]}={value}'
        for name, value in fields.items()
        if re.split(r'[.:]', name)[-1] != 'seed'
    ]
    return ' '.join(said) or 'all'


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return {'true': True, 'false': False}.get(text.lower(), text)
