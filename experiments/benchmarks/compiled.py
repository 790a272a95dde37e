"""Collectives of a compiled program, read from its text, loops counted as often as they run."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict

# 4 of all others
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2}
BYTES |= {'s64': 8, 'u64': 8, 'f64': 8}
COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
COLLECTIVE = re.compile(
    r'= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\('
)
CALLED = re.compile(r'(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)')
BRANCHES = re.compile(r'(?:branch|called)_computations=\{([^}]*)\}')
TRIPS = re.compile(r'known_trip_count[^0-9]*(\d+)')
CONDITION = re.compile(r'condition=%?([\w.\-]+)')
LIMIT = re.compile(r' = [su]32\[\]\S* constant\((\d+)\)')
BELOW = re.compile(r'ROOT .* compare\(.*direction=LT')
GROUP = re.compile(r'replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}|mesh\[(.*?)\] \{(.*?)\})')
# Of one collective that is divided into pieces, to run beside computation.
CHAIN = re.compile(r'chain_id="(\d+)"')


def collectives(text: str, otherwise: int = 0) -> tuple[Counter, int]:
    """Bytes that each kind of collective must bring into one chip, and the loops whose length is
    not known.

    A loop's body counts as often as the compiler says that it runs, else as its condition does (a
    counter below one constant, the only form that loops over layers and pieces come in), else
    `otherwise`, and once where nothing tells.
    """
    own: dict[str, Counter] = defaultdict(Counter)
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    limits: dict[str, list[int]] = defaultdict(list)  # of computations that may be conditions
    below: set[str] = set()
    chains: set[str] = set()
    loops: list[tuple[str, str, str, int]] = []
    name, entry = '', ''
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            name = header[2]
            entry = name if header[1] else entry
            continue
        chain = CHAIN.search(line)
        # A piece repeats the whole collective; the first one stands where it starts, the others
        # maybe in inner loops.
        if (found := COLLECTIVE.search(line)) and not (chain and chain[1] in chains):
            chains |= {chain[1]} if chain else set()
            own[name][found[2]] += _brought_in(*found.groups(), line)
        if limit := LIMIT.search(line):
            limits[name].append(int(limit[1]))
        if BELOW.search(line):
            below.add(name)
        called = CALLED.findall(line) + [
            x.strip(' %') for b in BRANCHES.findall(line) for x in b.split(',')
        ]
        if ' while(' in line:
            trips, condition = TRIPS.search(line), CONDITION.search(line)
            loops += [
                (name, other, condition[1] if condition else '', int(trips[1]) if trips else 0)
                for other in called
            ]
        else:
            calls[name] += [(other, 1) for other in called]
    unknown = 0
    for caller, body, condition, times in loops:
        if not times and condition in below and len(limits[condition]) == 1:
            times = limits[condition][0]
        times = times or otherwise
        unknown += not times
        calls[caller].append((body, times or 1))

    known: dict[str, Counter] = {}

    def of(computation: str) -> Counter:
        if computation not in known:
            total = Counter(own[computation])
            for other, times in calls[computation]:
                for kind, size in of(other).items():
                    total[kind] += size * times
            known[computation] = total
        return known[computation]

    return of(entry), unknown


def in_words(moved: dict[str, float]) -> str:
    """Bytes of collectives by kind."""
    return ', '.join(f'{kind} {size / 1e9:.1f} GB' for kind, size in moved.items()) or 'none'


def _brought_in(shapes: str, kind: str, start: str | None, line: str) -> float:
    """Bytes that a chip must take in for one collective, whatever its algorithm."""
    sizes = [
        BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(',') if n)
        for dtype, dims in re.findall(r'([a-z]+\d*)\[([\d,]*)\]', shapes)
    ]
    if start and kind == 'all-gather':
        sizes = sizes[len(sizes) // 2 :]  # operands stand before results
    elif start and kind == 'collective-permute':
        sizes = sizes[1:2]
    group, n = GROUP.search(line), 2
    if group and group[3]:  # axes and their sizes, and those that are gathered over
        over = group[4].replace("'", '').split(',')
        axes = re.findall(r"'(\w+)'=(\d+)", group[3])
        n = math.prod(int(size) for axis, size in axes if axis in over)
    elif group:
        n = int(group[1]) if group[1] else group[2].count(',') + 1
    part = (n - 1) / n
    shares = {'all-gather': part, 'all-to-all': part, 'all-reduce': 2 * part}
    return sum(sizes) * (shares | {'reduce-scatter': n - 1, 'collective-permute': 1})[kind]
