"""Fit numbers to sums of what was counted, near to numbers that are known already."""

from collections.abc import Sequence

Matrix = list[list[float]]


def solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """
    Return the solution of linear equations whose matrix is symmetric and positive definite, by elimination.

    Raises:
        ZeroDivisionError: There is none, or many.
    """
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for column in range(size):
        best = max(range(column, size), key=lambda row: abs(rows[row][column]))
        rows[column], rows[best] = rows[best], rows[column]
        pivot = rows[column]
        for row in rows[column + 1 :]:
            share = row[column] / pivot[column]
            for place in range(column, size + 1):
                row[place] -= share * pivot[place]
    result = [0.0] * size
    for column in reversed(range(size)):
        known = sum(rows[column][place] * result[place] for place in range(column + 1, size))
        result[column] = (rows[column][size] - known) / rows[column][column]
    return result
