"""Probabilistic anchor assignment (PAA, Kim and Lee 2020, section 3.2).

Legend: P places (anchors) of one image, M objects, C candidates of the object that has most, L levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinox.structures import BACKGROUND

# Of scikit-learn's GaussianMixture, which the authors' code fits with.
_MOST_STEPS = 100
_LEAST_CHANGE = 1e-3  # of the mean log-likelihood between two steps
_ADDED_VARIANCE = 1e-6


@torch.no_grad()
def assign_paa(
    candidates: Tensor, losses: Tensor, level_sizes: Sequence[int], num_objects: int, *, top_k: int = 9
) -> Tensor:
    """Which candidates of one image stay positive: those that predict their object well, relative to the others.

    The losses of an object's ``top_k`` best candidates of every level are taken for a mixture of two normal
    distributions. Positive are those that rather belong to the one of low losses and whose loss is not above the most
    likely one's ("(c)" of figure 3, as the authors' code). An object with fewer than two candidates gets none.

    Args:
        candidates: (P,) int64, the object that each anchor may learn, negative = none.
        losses: (P,) of learning it, finite where there is one.
        level_sizes: L, how many of the anchors are of each level.
        num_objects: M.

    Returns:
        (P,) int64: index of the object, -1 = background.
    """
    assigned = torch.full_like(candidates, BACKGROUND)
    if num_objects == 0 or len(candidates) == 0:
        return assigned
    best, places = _best_candidates(candidates, losses, level_sizes, num_objects, top_k)  # (M, C) each
    best, order = best.sort(1)
    # A hundred small steps are done on the host, after one copy.
    positive = select_by_mixture(best.cpu()).to(places.device)
    index = torch.arange(num_objects, device=places.device)[:, None].expand_as(places)
    # A place has one object at most: what is not positive goes to a place beyond the last.
    targets = torch.where(positive, places.gather(1, order), len(candidates)).flatten()
    beyond = assigned.new_full((1,), BACKGROUND)
    return torch.cat([assigned, beyond]).scatter(0, targets, index.flatten())[:-1]


def _best_candidates(
    candidates: Tensor, losses: Tensor, level_sizes: Sequence[int], num_objects: int, top_k: int
) -> tuple[Tensor, Tensor]:
    """Losses and places (M, C) of the best candidates of every level; an infinite loss where there is none."""
    objects = torch.arange(num_objects, device=losses.device)[:, None]
    best, places, start = [], [], 0
    for size in level_sizes:
        own = slice(start, start + size)
        of_object = torch.where(candidates[own] == objects, losses[own], torch.inf)  # (M, size)
        level_best, level_places = of_object.topk(min(top_k, size), dim=1, largest=False)
        best.append(level_best)
        places.append(level_places + start)
        start += size
    return torch.cat(best, dim=1), torch.cat(places, dim=1)


def select_by_mixture(losses: Tensor) -> Tensor:
    """losses: (M, C) in rising order, infinite where there is none -> (M, C) bool, those that stay positive."""
    present = losses.isfinite()
    mixture = fit_mixture(losses)
    low = (mixture.log_density[..., 0] >= mixture.log_density[..., 1]) & present  # (M, C)
    likelihood = torch.where(low, mixture.log_density.logsumexp(-1), -torch.inf)
    up_to_most_likely = torch.arange(losses.shape[1]) <= likelihood.argmax(1, keepdim=True)
    return low & up_to_most_likely & (present.sum(1, keepdim=True) >= 2)


@dataclass(frozen=True)
class Mixture:
    """means, variances, weights: (M, 2). log_density: (M, C, 2) of each loss, weight included."""

    means: Tensor
    variances: Tensor
    weights: Tensor
    log_density: Tensor


def fit_mixture(values: Tensor) -> Mixture:
    """Two normal distributions per row (M, C), by expectation maximisation from means at the least and the greatest
    value, variances of 1 and equal weights; infinite values do not count. In float64, all rows at once.

    scikit-learn keeps the float32 losses that the authors' code gives it, and so squares them in float32: its variances
    differ from these by about 1e-7 of the squared losses, which may choose otherwise where two anchors are as likely.
    """
    present = values.isfinite()
    x = torch.where(present, values, 0).double()[..., None]  # (M, C, 1)
    counted = present[..., None].double()
    number = counted.sum(1).clamp(min=1)  # (M, 1)
    least = values.double().amin(1).nan_to_num(posinf=0.0)
    greatest = torch.where(present, values.double(), -torch.inf).amax(1).nan_to_num(neginf=0.0)
    means = torch.stack([least, greatest], dim=1)  # (M, 2)
    variances, weights = torch.ones_like(means), torch.full_like(means, 0.5)
    before, converged = torch.full_like(number, -torch.inf), torch.zeros_like(number, dtype=torch.bool)
    for _ in range(_MOST_STEPS):
        density = _log_density(x, means, variances, weights)
        share = density.softmax(-1) * counted  # (M, C, 2)
        mass = share.sum(1) + 10 * torch.finfo(x.dtype).eps  # (M, 2)
        new_means = (share * x).sum(1) / mass
        new_variances = (share * (x - new_means[:, None]) ** 2).sum(1) / mass + _ADDED_VARIANCE
        means = torch.where(converged, means, new_means)
        variances = torch.where(converged, variances, new_variances)
        weights = torch.where(converged, weights, mass / number)
        likelihood = (density.logsumexp(-1, keepdim=True) * counted).sum(1) / number  # (M, 1)
        converged = converged | ((likelihood - before).abs() < _LEAST_CHANGE)
        before = likelihood
        if converged.all():
            break
    return Mixture(means, variances, weights, _log_density(x, means, variances, weights))


def _log_density(x: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """x: (M, C, 1), the others (M, 2) -> (M, C, 2)."""
    means, variances, weights = means[:, None], variances[:, None], weights[:, None]
    return weights.log() - 0.5 * (math.log(2 * math.pi) + variances.log() + (x - means) ** 2 / variances)
