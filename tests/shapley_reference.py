"""Slow, independent references for games, straight from the definitions."""

import itertools
import math

import numpy as np


def row(players):
    return sum(1 << p for p in players)


def random_table(n, *out, seed=0, order=None):
    """A random game as a table; with `order` only dividends of so many players."""
    rng = np.random.default_rng(seed)
    if order is None:
        return rng.normal(size=(2**n, *out))
    table = np.zeros((2**n, *out))
    for size in range(1, order + 1):
        for players in itertools.combinations(range(n), size):
            table += unanimity(n, players).reshape(-1, *[1] * len(out)) * rng.normal(
                size=out
            )
    return table


def unanimity(n, players):
    """[2**n] 1 where all these players are present."""
    code = row(players)
    return np.array([(r & code) == code for r in range(2**n)], float)


def over_orders(table, n, orders):
    """Mean marginal contribution over the orders given."""
    total = np.zeros((n, *table.shape[1:]))
    for order in orders:
        before = 0
        for player in order:
            total[player] += table[before | 1 << player] - table[before]
            before |= 1 << player
    return total / len(orders)


def shapley(table, n):
    return over_orders(table, n, list(itertools.permutations(range(n))))


def cluster_orders(clusters):
    """Orders that keep every cluster together: what the Owen value averages over."""
    inner = [list(itertools.permutations(c)) for c in clusters]
    return [
        [p for c in order for p in parts[c]]
        for order in itertools.permutations(range(len(clusters)))
        for parts in itertools.product(*inner)
    ]


def contracted(table, n, players):
    """The game whose players are these sets of players: its table."""
    rows = [
        row(p for i in range(len(players)) if r >> i & 1 for p in players[i])
        for r in range(2 ** len(players))
    ]
    return table[rows]


def dividends(table, n):
    """Harsanyi dividends by the double sum."""
    result = np.zeros_like(table)
    for big in range(2**n):
        for small in range(2**n):
            if small & big == small:
                result[big] += (-1) ** (big ^ small).bit_count() * table[small]
    return result


def derivative(table, n, players, present):
    """Discrete derivative of these players at a coalition without them."""
    return sum(
        (-1) ** (len(players) - size) * table[row(part) | present]
        for size in range(len(players) + 1)
        for part in itertools.combinations(players, size)
    )


def interaction(table, n, players, weight):
    """sum over T without the players of weight(|T|) times the derivative at T."""
    others = [p for p in range(n) if p not in players]
    return sum(
        weight(size) * derivative(table, n, players, row(part))
        for size in range(len(others) + 1)
        for part in itertools.combinations(others, size)
    )


def sii_weight(n, s):
    return lambda t: (
        math.factorial(n - t - s) * math.factorial(t) / math.factorial(n - s + 1)
    )


def faithful(table, n, order, weights, equal=()):
    """Weighted least squares of the game on all dividends of up to `order` players.

    weights [2**n]; rows in `equal` are met exactly. Returns {players: coefficient}.
    """
    sets = [
        s for size in range(order + 1) for s in itertools.combinations(range(n), size)
    ]
    design = np.stack([unanimity(n, s) for s in sets], 1)
    square = design.T @ (weights[:, None] * design)
    right = design.T @ (weights * table)
    exact = design[list(equal)]
    system = np.block([[square, exact.T], [exact, np.zeros((len(exact),) * 2)]])
    found = np.linalg.solve(system, np.concatenate([right, table[list(equal)]]))
    return dict(zip(sets, found))
