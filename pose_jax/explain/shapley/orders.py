"""Antithetic pairs: an order of the players and its reversal."""

from __future__ import annotations

import numpy as np


class Orders:
    """Pairs of orders whose prefixes fit into the budget.

    Pairs are independent draws. A prefix that occurred before is not evaluated again; its
    value is shared, so the number of pairs is what the *distinct* prefixes allow.

    Attributes:
      coalitions: [rows, n], empty and full first, then in order of first occurrence.
      stages: rows after which the first so-and-so many pairs are complete.
    """

    def __init__(self, n: int, budget: int, stages: int, generator) -> None:
        step = 2 * (n - 1)
        least = 2 + 2 * step
        if budget < min(least, 2**n):
            raise ValueError(
                f"budget={budget} is too small: two antithetic pairs of orders of {n} "
                f"players take up to {least} evaluations (all coalitions: {2**n})"
            )
        # More pairs than fit if no prefix came twice; small games repeat themselves.
        draws = budget // step * (4 if n <= 16 else 2) + 2
        orders = generator.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)
        prefixes = _prefixes(orders)
        ends = np.stack([np.zeros(n, bool), np.ones(n, bool)])
        rows = np.concatenate([ends, prefixes.reshape(-1, n)])
        codes = np.packbits(rows, axis=1)
        codes = codes.view(np.dtype((np.void, codes.shape[1]))).ravel()
        _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        numbers = rank[inverse.ravel()]  # Row -> place in order of first occurrence.
        used = np.maximum.accumulate(numbers[2:].reshape(draws, step).max(1)) + 1
        pairs = int(np.searchsorted(used, budget, side="right"))
        self.coalitions = rows[np.sort(first)][: used[pairs - 1]]
        self._orders = orders[:pairs]
        self._index = numbers[2 : 2 + pairs * step].reshape(pairs, 2, n - 1)
        self._complete = used[:pairs]
        parts = np.linspace(0, pairs, stages + 1)[1:].astype(int)
        self.stages = sorted({int(self._complete[max(p, 2) - 1]) for p in parts})

    def estimate(self, values: np.ndarray):
        """[rows so far, f] -> values, standard errors [n, f], pairs, degrees of freedom."""
        pairs = int(np.searchsorted(self._complete, len(values), side="right"))
        n = self._orders.shape[1]
        mean, square = np.zeros((n, values.shape[1])), 0.0
        # Blocks of 32 MiB, merged by the rule of Chan et al. (1983).
        block = max(2**22 // mean.size, 1)
        for done in range(0, pairs, block):
            sample = self._gains(slice(done, min(done + block, pairs)), values)
            change = sample.mean(0) - mean
            total = done + len(sample)
            mean = mean + change * (len(sample) / total)
            square = square + sample.var(0) * len(sample)
            square = square + change**2 * (done * len(sample) / total)
        error = np.sqrt(square / (pairs - 1) / pairs)
        return mean, error, pairs, pairs - 1

    def _gains(self, pairs: slice, values: np.ndarray) -> np.ndarray:
        """[pairs, n, f] marginal contributions, mean over both directions."""
        orders = self._orders[pairs]
        path = values[self._index[pairs]]  # [pairs, 2, n - 1, f]
        ends = np.broadcast_to(
            values[:2, None, None, None], (2, *path.shape[:2], 1, path.shape[3])
        )
        path = np.concatenate([ends[0], path, ends[1]], axis=2)
        steps = np.diff(path, axis=2)
        place = np.argsort(orders, axis=1)[:, :, None]
        forward = np.take_along_axis(steps[:, 0], place, axis=1)
        backward = np.take_along_axis(steps[:, 1], orders.shape[1] - 1 - place, axis=1)
        return (forward + backward) / 2


def _prefixes(orders: np.ndarray) -> np.ndarray:
    """[draws, n] -> [draws, 2, n - 1, n]: proper prefixes of the order and its reversal."""
    n = orders.shape[1]
    place = np.argsort(orders, axis=1)
    sizes = np.arange(1, n)[:, None]
    forward = place[:, None] < sizes
    backward = (n - 1 - place)[:, None] < sizes
    return np.stack([forward, backward], axis=1)
