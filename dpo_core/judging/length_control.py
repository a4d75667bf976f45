"""The length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475), for one pair of models.

Their model of the preference for model m over the baseline b on instruction x is logistic, with three terms:

    logit P = (theta_m - theta_b) + phi tanh((len_m - len_b) / std(len_m - len_b)) + (psi_m - psi_b) gamma_x

lengths in characters, std over the instructions. Preferences between 0 and 1 are fitted by log loss; the figure is the mean
of P with the second term set to nought. The third term, how hard an instruction is, needs gamma_x, which they estimated once
from all models of their leaderboard for their own 805 instructions. For other prompts there is none, so it is left out, and
with it the rows of their "gamed" baselines. What is left is a model of two parameters, and the figure is sigmoid(theta).

They choose the strength of an L1 penalty by five-fold cross-validation, which a few prompts do not carry. Here phi alone has
a fixed ridge penalty, phi^2 / 2, which is little beside hundreds of prompts. So without differences in length the figure is
the win rate itself.
"""

import math
from typing import NamedTuple

import numpy as np

RIDGE = np.array([0.0, 1.0])  # on theta, phi
MOST_STEPS, SMALL, NEAR = 200, 1e-12, 1e-6
FARTHEST = 1e-9  # of a chance from 0 or 1, beyond which curvature is lost in rounding


class Controlled(NamedTuple):
    """The win rate at equal lengths and its standard error over prompts."""

    rate: float
    stderr: float


def length_controlled(preferences: np.ndarray, more_characters: np.ndarray) -> Controlled | None:
    """Return the figure of preferences [N], by how many characters the preferred model's answers are longer [N]; None of
    fewer than two prompts, or where all differ by the same length, which cannot be told from who is better."""
    size = len(preferences)
    if size < 2:
        return None
    spread = float(np.std(more_characters, ddof=1))
    if spread == 0 and np.any(more_characters):
        return None
    if (mean := float(np.mean(preferences))) < FARTHEST or mean > 1 - FARTHEST:  # theta is infinite
        return Controlled(float(round(mean)), 0.0)
    lengths = np.tanh(more_characters / spread) if spread else np.zeros(size)
    features = np.stack([np.ones(size), lengths], axis=1)
    weights = _fit(features, preferences)
    chances = _sigmoid(features @ weights)
    # Robust to preferences that are no coin flips (Papke & Wooldridge 1996); without lengths it is the mean's own error.
    bread = np.linalg.inv(_curvature(features, chances))
    scores = features * (preferences - chances)[:, None]
    covariance = bread @ (scores.T @ scores) @ bread * size / (size - 1)
    rate = float(_sigmoid(weights[0]))
    return Controlled(rate, rate * (1 - rate) * math.sqrt(covariance[0, 0]))


def _fit(features: np.ndarray, preferences: np.ndarray) -> np.ndarray:
    """Newton's method; steps are halved until the loss, which is convex, falls, but for the last, which rounding would halve
    for ever. -> weights [2]"""

    def loss(weights: np.ndarray) -> float:
        logits = features @ weights
        return float(np.sum(np.logaddexp(0.0, logits) - preferences * logits) + RIDGE @ weights**2 / 2)

    weights = np.zeros(2)
    for _ in range(MOST_STEPS):
        chances = _sigmoid(features @ weights)
        gradient = features.T @ (chances - preferences) + RIDGE * weights
        step = np.linalg.solve(_curvature(features, chances), gradient)
        now = loss(weights)
        while np.max(np.abs(step)) > NEAR and loss(weights - step) > now:
            step = step / 2
        weights = weights - step
        if np.max(np.abs(step)) <= SMALL:
            break
    return weights


def _curvature(features: np.ndarray, chances: np.ndarray) -> np.ndarray:
    chances = np.clip(chances, FARTHEST, 1 - FARTHEST)
    return features.T @ (features * (chances * (1 - chances))[:, None]) + np.diag(RIDGE)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits))
