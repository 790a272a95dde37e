"""Bootstrap intervals for means, for clustered questions, for seeds and for paired differences.

Percentile bootstrap (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13).
Questions about one picture succeed and fail together, so where several share a scene (or one
question appears in several option orders) whole clusters are drawn, as in Field & Welsh 2007 (J. R.
Stat. Soc. B 69): drawing questions would claim too much.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

_ENTRIES_AT_ONCE = 4_000_000
"""Most counts held at a time: 32 MB, however many questions and resamples there are."""


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, in the unit of the values.

    Attributes:
      mean: mean of the values; NaN without values.
      low, high: ends of the interval; NaN with fewer than two clusters, which say nothing about
          spread.
      count: number of values.
      clusters: number of clusters they fall into.
    """

    mean: float
    low: float
    high: float
    count: int
    clusters: int

    def bounds(self) -> dict[str, float | None]:
        """Mean, low and high as JSON values, None in place of NaN."""
        bounds = {'mean': self.mean, 'low': self.low, 'high': self.high}
        return {name: None if np.isnan(value) else value for name, value in bounds.items()}


def mean_of(values: Sequence[float]) -> float | None:
    """Mean of the values; None without any."""
    return float(np.mean(values)) if len(values) else None


def mean_interval(
    values: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval for a mean.

    With clusters, each resample draws as many clusters as there are, with replacement, and takes
    the mean over all their values, so clusters of unequal size keep their weight.

    Args:
      values: [n] scores, finite; leave out what could not be scored before calling.
      clusters: [n] name of the picture (or question) each value belongs to; None takes each for
          itself.
      level: coverage of the interval, in (0, 1).
      resamples: number of bootstrap resamples, at least 1.
      seed: of the random generator; equal seeds give equal intervals.

    Returns:
      The mean and its interval. Values that are all equal give an interval of width 0: the
          bootstrap cannot
      know what it has not seen, so with few questions such an interval is too narrow.

    Raises:
      ValueError: a value is not finite, lengths differ, or level or resamples is out of range.
    """
    values = _scores('values', values)
    sums, sizes = _cluster_totals(values, clusters)
    _check_resampling(level, resamples)
    mean = float(values.mean()) if len(values) else float('nan')
    low = high = float('nan')
    if len(sums) > 1:
        means = _resampled_means(sums, sizes, resamples, np.random.default_rng(seed))
        low, high = (float(end) for end in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(mean, low, high, len(values), len(sums))


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval for mean(second) - mean(first) over the same questions in the same order.

    Questions (or clusters) are drawn with both scores together, so what makes a question hard for
    both policies cancels; the interval is narrower than two separate ones suggest.

    Args:
      first: [n] scores of the policy compared with, finite.
      second: [n] scores of the other policy on the same questions, finite.
      clusters: as for `mean_interval`.
      level: as for `mean_interval`.
      resamples: as for `mean_interval`.
      seed: as for `mean_interval`.

    Returns:
      The mean difference and its interval; positive where `second` is better.

    Raises:
      ValueError: lengths differ, or as for `mean_interval`.
    """
    first, second = _scores('first', first), _scores('second', second)
    if first.shape != second.shape:
        raise ValueError(
            f'Paired scores need the same questions, got {len(first)} and {len(second)} scores.'
        )
    return mean_interval(
        second - first, clusters=clusters, level=level, resamples=resamples, seed=seed
    )


def seeds_interval(
    values: Sequence[float] | np.ndarray,
    *,
    seeds: Sequence[Hashable] | np.ndarray,
    clusters: Sequence[Hashable] | np.ndarray,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval for a mean over runs with several seeds, and the questions within them.

    A resample draws as many seeds as there are and as many clusters of questions, both with
    replacement, and takes the mean over what the drawn seeds scored on the drawn clusters. The
    seeds answer the same questions, so these are drawn once for all seeds (the pigeonhole bootstrap
    of Owen, Ann. Appl. Stat. 1, 2007): drawn anew within each seed, the chance of the questions
    would shrink as seeds are added, though no question was. Of additive effects its variance is
    var(seeds) / S + var(clusters) / C, each with all degrees of freedom; that is too small by
    (S − 1) / S in the first term, so of few seeds the interval is rather too narrow.

    With a single seed this is `mean_interval`, and says nothing about other seeds.

    Args:
      values: [n] scores, finite, or paired differences of two settings.
      seeds: [n] the run that each value is of.
      clusters: [n] name of the picture (or question) that each value belongs to.
      level: as for `mean_interval`.
      resamples: as for `mean_interval`.
      seed: as for `mean_interval`.

    Returns:
      The mean over all values and its interval; its ends are NaN with a single seed and cluster.

    Raises:
      ValueError: as for `mean_interval`.
    """
    values = _scores('values', values)
    _check_resampling(level, resamples)
    if not len(seeds) == len(clusters) == len(values):
        raise ValueError(
            f'{len(values)} values have {len(seeds)} seeds and {len(clusters)} clusters; give one each.'
        )
    row, column = _numbered(seeds), _numbered(clusters)
    shape = row.max(initial=-1) + 1, column.max(initial=-1) + 1
    sums, sizes = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (row, column), values)
    np.add.at(sizes, (row, column), 1)
    mean = float(values.mean()) if len(values) else float('nan')
    low = high = float('nan')
    if max(shape) > 1:
        rng = np.random.default_rng(seed)
        # As in `_resampled_means`, clusters that are alike in all seeds are drawn together.
        kinds, counts = np.unique(np.concatenate([sums, sizes]).T, axis=0, return_counts=True)
        of_kinds, means = counts / counts.sum(), []
        for start in range(0, resamples, batch := max(1, _ENTRIES_AT_ONCE // len(kinds))):
            now = min(batch, resamples - start)
            drawn = rng.multinomial(shape[1], of_kinds, size=now) @ kinds
            times = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=now)
            totals = [(part * times).sum(1) for part in np.split(drawn, 2, axis=1)]
            means.append(totals[0] / np.where(totals[1] > 0, totals[1], np.nan))
        ends = np.nanquantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
        low, high = map(float, ends)
    return Interval(mean, low, high, len(values), int(shape[1]))


def _check_resampling(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f'level must lie in (0, 1), got {level}.')
    if resamples < 1:
        raise ValueError(f'resamples must be at least 1, got {resamples}.')


def _numbered(names: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """A number from 0 for each name, equal for equal ones."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], int)


def _scores(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f'{name} must be a vector of scores, got shape {values.shape}.')
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f'{name} holds scores that are not finite: leave out what could not be scored.'
        )
    return values


def _cluster_totals(
    values: np.ndarray, clusters: Sequence[Hashable] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values in each cluster."""
    if clusters is None:
        return values, np.ones(len(values))
    if len(clusters) != len(values):
        raise ValueError(
            f'clusters must name one cluster per value, got {len(clusters)} for {len(values)} values.'
        )
    index = _numbered(clusters)
    return np.bincount(index, values), np.bincount(index).astype(float)


def _resampled_means(
    sums: np.ndarray, sizes: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means [resamples] over clusters drawn with replacement.

    A resample's mean depends only on how often each kind of cluster (equal sum, equal size) is
    drawn. Right or wrong answers come in a handful of kinds, so drawing their counts is exact and
    costs the same for 200 questions and 20,000.
    """
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    batch = max(1, _ENTRIES_AT_ONCE // len(kinds))
    means = []
    for start in range(0, resamples, batch):
        drawn = rng.multinomial(len(sums), counts / len(sums), size=min(batch, resamples - start))
        totals = drawn @ kinds
        means.append(totals[:, 0] / totals[:, 1])
    return np.concatenate(means)
