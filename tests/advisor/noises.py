"""Log times of a machine's runs, one after the other: normal, heavy-tailed, drifting and bimodal noise; and gates on them."""

from collections.abc import Callable

import numpy as np

BLOCKS = 40
Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
"""(generator, (machines, runs)) -> log times."""


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(0, 0.02, shape)


def heavy(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return 0.01 * rng.standard_t(1.5, shape)


def drifting(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """AR(1) at 0.97 from run to run, on a machine that gets 20 % slower over the session."""
    steps, noise = rng.normal(0, 0.01, shape), np.zeros(shape)
    for i in range(1, shape[1]):
        noise[:, i] = 0.97 * noise[:, i - 1] + steps[:, i]
    return noise + np.linspace(0, 0.2, shape[1])


def bimodal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Runs in a slow mode that lasts: one in five starts it, one in two leaves it."""
    mode, now = np.zeros(shape), np.zeros(shape[0], bool)
    for i in range(shape[1]):
        chance = rng.random(shape[0])
        now = np.where(now, chance < 0.5, chance < 0.2)
        mode[:, i] = now
    return 0.15 * mode + rng.normal(0, 0.005, shape)


NOISES = [normal, heavy, drifting, bimodal]


def simulated(noise: Noise, gates: int, seed: int, shift: float = 0.0, blocks: int = BLOCKS) -> np.ndarray:
    """Log ratios [gates, blocks] of A B B A or B A A B runs whose log times are `noise` (+ shift on side B)."""
    rng = np.random.default_rng(seed)
    runs = noise(rng, (gates, 4 * blocks)).reshape(gates, blocks, 4)
    sign = np.where(rng.random((gates, blocks)) < 0.5, 1.0, -1.0)
    return sign * (runs[..., 1] + runs[..., 2] - runs[..., 0] - runs[..., 3]) / 2 + shift
