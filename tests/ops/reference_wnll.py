"""A reference implementation of WNLL, eq. 5, with loops in float64 NumPy."""

import numpy as np


def weights(points, m, n, kernel):
    """Computes the directed weights, shape (N, N)."""
    count = len(points)
    result = np.zeros((count, count))
    for i in range(count):
        distances = [np.sum((points[i] - points[j]) ** 2) for j in range(count)]
        others = sorted((j for j in range(count) if j != i), key=lambda j: distances[j])[:m]
        sigma = distances[others[min(n, len(others)) - 1]]
        if sigma == 0:
            sigma = min((distances[j] for j in others if distances[j] > 0), default=1.0)
        for j in others:
            ratio = distances[j] / sigma
            result[i, j] = np.exp(-ratio if kernel == "gaussian" else -(ratio**2))
    return result


def solve(w, values, num_queries, gamma):
    """Solves for u on the queries, which come first in `w`. `values` are those of the template."""
    matrix = np.zeros((num_queries, num_queries))
    right = np.zeros((num_queries, values.shape[1]))
    for x in range(num_queries):
        for y in range(len(w)):
            weight = w[x, y] + w[y, x]
            if y >= num_queries:
                weight += gamma * w[y, x]
                right[x] += weight * values[y - num_queries]
            elif y != x:
                matrix[x, y] -= weight
            if y != x:
                matrix[x, x] += weight
    return np.linalg.solve(matrix, right)


def wnll(queries, template, values, m=30, n=15, kernel="gaussian", gamma=None, joint=True):
    queries, template = np.asarray(queries, float), np.asarray(template, float)
    values = np.asarray(values, float)
    if not joint:
        rows = [wnll(query[None], template, values, m, n, kernel, gamma) for query in queries]
        return np.concatenate(rows)
    if gamma is None:
        gamma = len(queries) / len(template)
    w = weights(np.concatenate([queries, template]), m, n, kernel)
    return solve(w, values, len(queries), gamma)
