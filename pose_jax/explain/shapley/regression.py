"""Shapley values as the weighted regression of a game on its players, from sampled rows.

The values minimise sum over S of mu(|S|) (v(S) - v(0) - sum of phi in S)^2 with
mu(s) = (n-1) / (C(n,s) s (n-s)), subject to sum(phi) = v(N) - v(0) (Charnes et al. 1988;
Lundberg and Lee 2017). Here coalitions come in pairs with their complements, in strata by
size: size 1 whole, the rest of the budget in equal shares (equal shares of all sizes are
leverage scores, Musco and Witter 2025), without replacement, small strata whole.

Intervals: the pairs of a stratum are exchangeable, so each stratum is cut into blocks and
one block at a time is left out (stratified jackknife, Jones 1974), with the correction
1 - f for a stratum of which the fraction f was drawn.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

BLOCKS = 10


class Regression:
    """Pairs of complements by strata of size.

    Attributes:
      coalitions: [rows, n], empty and full first, then the pairs stage by stage.
      stages: rows after which an estimate can be made.
    """

    def __init__(self, n: int, budget: int, stages: int, generator) -> None:
        sizes = range(1, n // 2 + 1)
        self._population = [math.comb(n, s) // (2 if 2 * s == n else 1) for s in sizes]
        least = 2 + 2 * n + 4 * max(len(sizes) - 1, 1)
        if n < 4 or budget < least:
            raise ValueError(
                f"budget={budget} is too small for the regression of {n} players: it needs "
                f"{least} evaluations and 4 players at least; use estimator='antithetic' "
                "or all coalitions"
            )
        # Stages grow by equal factors: what was spent before is a fixed part of the next.
        budgets = np.geomspace(max(least, budget / 2 ** (stages - 1)), budget, stages)
        counts = [_shares(self._population, (int(b + 1e-9) - 2) // 2) for b in budgets]
        self._counts = np.maximum.accumulate(np.array(counts))
        drawn = [
            _draw(n, s, int(c), total, generator)
            for s, c, total in zip(sizes, self._counts[-1], self._population)
        ]
        rows = [np.zeros((1, n), bool), np.ones((1, n), bool)]
        self._where: list[list[np.ndarray]] = [[] for _ in sizes]
        self.stages, place = [], 2
        before = np.zeros(len(drawn), int)
        for now in self._counts:
            for stratum, pairs in enumerate(drawn):
                new = pairs[before[stratum] : now[stratum]]
                rows.append(np.stack([new, ~new], 1).reshape(-1, n))
                self._where[stratum].append(place + 2 * np.arange(len(new)))
                place += 2 * len(new)
            before = now
            self.stages.append(place)
        self.coalitions = np.concatenate(rows)
        self.stages = sorted(set(self.stages))

    def estimate(self, values: np.ndarray):
        """[rows so far, f] -> values, standard errors [n, f], pairs, degrees of freedom."""
        n = self.coalitions.shape[1]
        gain, target = values - values[0], values[1] - values[0]
        strata = []
        for where, population in zip(self._where, self._population):
            found = np.concatenate(where)
            first = found[found < len(values)]
            size = int(self.coalitions[first[0]].sum())
            mass = (n - 1) / (size * (n - size)) / (2 if 2 * size == n else 1)
            strata.append((first, mass, len(first) / population))
        parts = [self._normal(first, gain) for first, _, _ in strata]
        scale = [mass / len(first) for first, mass, _ in strata]
        matrix = np.sum([c * a for c, (a, _) in zip(scale, parts)], axis=0)
        right = np.sum([c * b for c, (_, b) in zip(scale, parts)], axis=0)
        best = _solve(matrix, right, target)
        variance, degrees = np.zeros_like(best), 0
        for (first, mass, fraction), (a, b), c in zip(strata, parts, scale):
            if fraction >= 1:
                continue
            blocks = len(first) if len(first) < 2 * BLOCKS else BLOCKS
            mean, square = np.zeros_like(best), np.zeros_like(best)
            for block in range(blocks):
                out = first[block::blocks]
                less_a, less_b = self._normal(out, gain)
                new = mass / (len(first) - len(out))
                left = _solve(
                    matrix - c * a + new * (a - less_a),
                    right - c * b + new * (b - less_b),
                    target,
                )
                change = left - mean
                mean = mean + change / (block + 1)
                square = square + change * (left - mean)
            variance += (1 - fraction) * (blocks - 1) / blocks * square
            degrees += blocks - 1
        pairs = sum(len(first) for first, _, _ in strata)
        return best, np.sqrt(variance), pairs, max(degrees, 1)

    def _normal(self, first: np.ndarray, gain: np.ndarray):
        """Sums of z z' [n, n] and z y [n, f] over these pairs."""
        rows = np.concatenate([first, first + 1])
        z = self.coalitions[rows].astype(np.float64)
        return z.T @ z, z.T @ gain[rows]


def _solve(matrix: np.ndarray, right: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The minimiser [n, f] under the constraint sum(phi) = target."""
    n = len(matrix)
    solved = np.linalg.solve(matrix, np.concatenate([right, np.ones((n, 1))], 1))
    free, ones = solved[:, :-1], solved[:, -1:]
    return free - ones * (free.sum(0) - target) / ones.sum()


def _shares(population: list[int], pairs: int) -> np.ndarray:
    """Pairs per stratum: the first whole, then equal shares, small strata whole."""
    counts = np.zeros(len(population), int)
    counts[0] = population[0]
    left = pairs - counts[0]
    order = sorted(range(1, len(population)), key=lambda s: population[s])
    for done, stratum in enumerate(order):
        counts[stratum] = min(population[stratum], left // (len(order) - done))
        left -= counts[stratum]
    return counts


def _draw(n: int, size: int, count: int, population: int, generator) -> np.ndarray:
    """`count` distinct coalitions [count, n] of this size, in random order.

    Of a size that is its own complement those with player 0, so that no pair comes twice.
    """
    fixed = 1 if 2 * size == n else 0
    players = np.arange(fixed, n)
    if population <= 4 * count:
        chosen = np.array(list(itertools.combinations(players, size - fixed)), int)
        rows = _rows(n, fixed, chosen)
        return rows[generator.permutation(population)[:count]]
    rows = np.zeros((0, n), bool)
    while len(rows) < count:
        shuffled = generator.permuted(np.tile(players, (2 * count, 1)), axis=1)
        rows = np.concatenate([rows, _rows(n, fixed, shuffled[:, : size - fixed])])
        codes = np.packbits(rows, axis=1)
        _, first = np.unique(codes, axis=0, return_index=True)
        rows = rows[np.sort(first)]
    return rows[:count]


def _rows(n: int, fixed: int, chosen: np.ndarray) -> np.ndarray:
    rows = np.zeros((len(chosen), n), bool)
    rows[:, :fixed] = True
    np.put_along_axis(rows, chosen, True, axis=1)
    return rows
