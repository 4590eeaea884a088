"""How often the classes come in training, where some have many more images than others."""

from __future__ import annotations

import numpy as np

from codegrid.errors import require


def class_weights(labels: np.ndarray | None, balance: float) -> np.ndarray | None:
    """How often an epoch has each row, float64 [N] with mean 1; None where each comes once.

    A row of a class of n rows weighs n^-balance, so that the class weighs n^(1 - balance). Rows without a label count
    as a class of their own.

    Args:
        labels: int [N], -1 where there is none; None if the rows have no classes.

    Raises:
        CodegridError: there are no classes to balance.
    """
    if not balance:
        return None
    require(
        labels is not None,
        f"class_balance is {balance:g}, and these codes have no classes.",
        "Set it to 0, or tokenize the pictures with their labels.",
    )
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = counts.astype(np.float64)[places] ** -balance
    return weights / weights.mean()
