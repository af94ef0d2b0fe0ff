"""Agreement of raters beyond chance: kappa statistics."""

import itertools

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError


def fleiss_kappa(counts: ArrayLike) -> float:
    """Return the agreement of several raters on unordered categories (Fleiss 1971, Psychological Bulletin 76(5)).

    κ = (P̄ − P̄e) / (1 − P̄e), where P̄ is the mean over items of the share of rater pairs that agree, and
    P̄e = Σ_j p_j² with the share p_j of category j in all answers. Fleiss requires the same number of raters for every
    item. Here the share of an item is computed from the raters it has, and items with fewer than two raters are
    ignored.

    Args:
        counts: number of raters who chose each category for each item, shape (items, categories).

    Returns:
        Kappa, which is 1 for perfect agreement and 0 for agreement by chance. NaN if it is undefined: no item has two
        raters, or all answers are the same.

    Raises:
        UserError: the shape is wrong, or a count is negative.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or (table < 0).any():
        raise UserError(f"expected counts of shape (items, categories), none below 0, got shape {table.shape}")
    raters = table.sum(axis=1)
    table, raters = table[raters >= 2], raters[raters >= 2]
    if len(table) == 0:
        return float("nan")
    agreeing = ((table * (table - 1)).sum(axis=1) / (raters * (raters - 1))).mean()
    by_chance = np.square(table.sum(axis=0) / table.sum()).sum()
    return float("nan") if by_chance == 1 else float((agreeing - by_chance) / (1 - by_chance))


def weighted_kappa(first: ArrayLike, second: ArrayLike, categories: int) -> float:
    """Return the agreement of two raters on ordered categories (Cohen 1968, Psychological Bulletin 70(4)).

    κ = 1 − Σ w_ij o_ij / Σ w_ij e_ij with the quadratic weights w_ij = (i − j)², where o_ij is the share of items that
    the first rater put in category i and the second in category j, and e_ij the product
    of the first rater's share of i and the second rater's share of j.

    Args:
        first: categories of the first rater, integers from 0 to ``categories`` - 1, shape (items,).
        second: categories of the second rater, shape (items,).
        categories: number of categories.

    Returns:
        Kappa, which is 1 for perfect agreement and 0 for agreement by chance. NaN if it is undefined: there are no
        items, or both raters gave the same single answer to all items.

    Raises:
        UserError: the shapes differ, a value is not a category, or scikit-learn is not installed.
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or a.ndim != 1:
        raise UserError(f"expected two lists of categories of equal length, got shapes {a.shape} and {b.shape}")
    if a.size == 0:
        return float("nan")
    both = np.concatenate([a, b])
    if not np.issubdtype(both.dtype, np.integer) or both.min() < 0 or both.max() >= categories:
        raise UserError(f"a category is invalid: expected integers from 0 to {categories - 1}")
    if both.min() == both.max():
        return float("nan")
    try:
        from sklearn.metrics import cohen_kappa_score
    except ImportError as error:
        raise UserError("the agreement needs scikit-learn: pip install scikit-learn") from error
    return float(cohen_kappa_score(a, b, labels=np.arange(categories), weights="quadratic"))


def mean_weighted_kappa(ratings: ArrayLike, categories: int) -> float:
    """Return the mean of ``weighted_kappa`` over all pairs of raters for whom it is defined.

    Args:
        ratings: categories from 0 to ``categories`` - 1, shape (raters, items), NaN where a rater did not answer.
        categories: number of categories.

    Returns:
        The mean, or NaN if ``weighted_kappa`` is undefined for every pair.

    Raises:
        UserError: scikit-learn is not installed.
    """
    kappas = []
    for first, second in itertools.combinations(np.asarray(ratings, dtype=np.float64), 2):
        rated = np.isfinite(first) & np.isfinite(second)
        kappas.append(weighted_kappa(first[rated].astype(int), second[rated].astype(int), categories))
    defined = [kappa for kappa in kappas if np.isfinite(kappa)]
    return float(np.mean(defined)) if defined else float("nan")
