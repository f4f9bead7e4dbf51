"""Mesh simplification by geodesic Voronoi clustering: fine where asked for, coarse elsewhere, deterministic.

Every kept vertex is a vertex of the original mesh, so blendshapes carry over by indexing. Clusters grow along the
surface, never through the air: closed lips and lids stay two surfaces.
"""

import numpy as np


def mesh_edges(triangles: np.ndarray) -> np.ndarray:
    """Directed edges [E, 2] of triangles [T, 3], each once in either direction."""
    sides = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return np.unique(np.concatenate([sides, sides[:, ::-1]]), axis=0)


def nearest_seed(positions: np.ndarray, edges: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """For each vertex of positions [V, 3] the seed that is nearest along edges [E, 2]; -1 where none can be reached."""
    source, target = edges.T
    length = np.linalg.norm(positions[source] - positions[target], axis=1)
    distance = np.full(len(positions), np.inf)
    distance[seeds] = 0
    label = np.full(len(positions), -1)
    label[seeds] = seeds
    while True:
        offer = distance[source] + length
        closer = offer < distance[target] - 1e-9
        if not closer.any():
            return label
        best = distance.copy()
        np.minimum.at(best, target[closer], offer[closer])
        winner = closer & (offer == best[target])
        label[target[winner]] = label[source[winner]]
        distance = best


def _grid_seeds(positions: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """One vertex a grid cell, the first in vertex order; each distinct spacing has a grid of its own."""
    seeds = []
    for cell in np.unique(spacing):
        members = np.flatnonzero(spacing == cell)
        _, first = np.unique(np.floor(positions[members] / cell).astype(np.int64), axis=0, return_index=True)
        seeds.append(members[first])
    return np.unique(np.concatenate(seeds))


def _recentre(positions: np.ndarray, label: np.ndarray, pinned: np.ndarray) -> np.ndarray:
    """Move each seed to the member nearest the mean of its cluster; pinned vertices stay seeds."""
    members = np.flatnonzero(label >= 0)
    group = label[members]
    count = np.bincount(group, minlength=len(positions))[:, None]
    mean = np.stack([np.bincount(group, positions[members, axis], len(positions)) for axis in range(3)], 1)
    gap = np.linalg.norm(positions[members] - (mean / np.maximum(count, 1))[group], axis=1)
    order = np.lexsort((members, gap, group))
    _, first = np.unique(group[order], return_index=True)
    moved = members[order][first]
    keep = ~np.isin(label[moved], pinned)
    return np.unique(np.concatenate([moved[keep], pinned]))


def simplify(
    positions: np.ndarray, triangles: np.ndarray, spacing: np.ndarray, pinned: np.ndarray, rounds: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster a mesh of positions [V, 3] and triangles [T, 3] to about `spacing` [V] (same unit as positions).

    Returns kept vertex indices [K] (ascending, among them `pinned`) and triangles [T', 3] that index into them.
    """
    edges = mesh_edges(triangles)
    seeds = np.union1d(_grid_seeds(positions, spacing), pinned)
    for _ in range(rounds):
        seeds = _recentre(positions, nearest_seed(positions, edges, seeds), pinned)
    label = nearest_seed(positions, edges, seeds)
    mapped = label[triangles]
    a, b, c = mapped.T
    mapped = mapped[(a != b) & (b != c) & (c != a)]
    # Rotate each triangle to begin with its lowest index: equal rows are then the same oriented triangle.
    turn = (np.arange(3) + mapped.argmin(1)[:, None]) % 3
    mapped = np.unique(np.take_along_axis(mapped, turn, 1), axis=0)
    kept, flat = np.unique(np.concatenate([mapped.ravel(), pinned]), return_inverse=True)
    return kept, flat[: mapped.size].reshape(-1, 3)
