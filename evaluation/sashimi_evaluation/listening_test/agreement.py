"""How far raters agree beyond what chance would give."""

import itertools

import numpy as np

from sashimi_diffusion.errors import UserError


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement of several raters on unordered categories (Fleiss 1971, Psychological Bulletin 76(5), 378-382).

    κ = (P̄ − P̄e) / (1 − P̄e), with P̄ the mean over items of the share of rater pairs that agree, and P̄e = Σ_j p_j² for
    the shares p_j of all answers. Fleiss has equally many raters for every item; where some are missing, each item's
    share is computed from the raters it has, and items with fewer than two are left out.

    Args:
        counts: how many raters put each item in each category, whole numbers, shape (items, categories).

    Returns:
        At most 1; 0 at chance. NaN where it is undefined: no item has two raters, or all answers are the same.

    Raises:
        UserError: another shape, or negative counts.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 2 or (counts < 0).any():
        raise UserError(f"expected counts of shape (items, categories), none below 0, got shape {counts.shape}")
    raters = counts.sum(axis=1)
    counts, raters = counts[raters >= 2], raters[raters >= 2]
    if len(counts) == 0:
        return float("nan")
    agreeing = ((counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))).mean()
    by_chance = np.square(counts.sum(axis=0) / counts.sum()).sum()
    return float("nan") if by_chance == 1 else float((agreeing - by_chance) / (1 - by_chance))


def weighted_kappa(first: np.ndarray, second: np.ndarray, categories: int) -> float:
    """Agreement of two raters on ordered categories (Cohen 1968, Psychological Bulletin 70(4), 213-220).

    κ = 1 − Σ w_ij o_ij / Σ w_ij e_ij with the quadratic weights w_ij = (i − j)², o_ij the share of items that the first
    rater put in category i and the second one in j, and e_ij the product of the shares of i and of j.

    Args:
        first: categories of the first rater, whole numbers from 0 to ``categories`` - 1, shape (items,).
        second: of the second one, likewise.
        categories: their number.

    Returns:
        At most 1; 0 at chance. NaN where it is undefined: no items, or both raters only ever gave the same answer.

    Raises:
        UserError: different shapes, or values that are no categories.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim != 1:
        raise UserError(f"expected two lists of equally many categories, got shapes {first.shape} and {second.shape}")
    if first.size == 0:
        return float("nan")
    both = np.concatenate([first, second])
    if not np.issubdtype(both.dtype, np.integer) or both.min() < 0 or both.max() >= categories:
        raise UserError(f"expected whole numbers from 0 to {categories - 1}")
    observed = np.square(first - second).mean()
    expected = np.square(first[:, None] - second[None, :]).mean()
    return float("nan") if expected == 0 else float(1 - observed / expected)


def mean_weighted_kappa(ratings: np.ndarray, categories: int) -> float:
    """``weighted_kappa``, averaged over all pairs of raters for whom it is defined.

    Args:
        ratings: categories as numbers from 0 to ``categories`` - 1, NaN where a rater did not rate, shape
            (raters, items).
        categories: their number.

    Returns:
        NaN where no pair has one.
    """
    kappas = []
    for first, second in itertools.combinations(np.asarray(ratings, dtype=np.float64), 2):
        rated = np.isfinite(first) & np.isfinite(second)
        kappas.append(weighted_kappa(first[rated].astype(int), second[rated].astype(int), categories))
    defined = [kappa for kappa in kappas if np.isfinite(kappa)]
    return float(np.mean(defined)) if defined else float("nan")
