"""From many dimensions to two or three: principal components, t-SNE, UMAP."""

import math
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from fourm_ser.errors import InputError

LEAST = 10  # utterances that neighbours are found among: of fewer, all are neighbours
PERPLEXITY = 30.0  # scikit-learn's default, within the 5 to 50 that the paper on t-SNE advises
NEIGHBOURS, MINIMUM_DISTANCE = 15, 0.1  # umap-learn's defaults


def project(vectors: np.ndarray, others: np.ndarray, dims: int = 2) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Principal components (PCA) of vectors, and other vectors in the same space.

    Args:
        vectors: (n, dim) vectors that the components are taken from.
        others: (m, dim) vectors that are brought into the same space; a row with NaN stays one.
        dims: the number of components.

    Returns:
        (n, dims), (m, dims), and the share of the vectors' variance along each of the axes; NaN where there is none.

    Raises:
        InputError: fewer vectors or dimensions than components.
    """
    from sklearn.decomposition import PCA

    if min(vectors.shape) < dims:
        raise InputError(
            f"{len(vectors)} embeddings of width {vectors.shape[1]}: {dims} components take {dims} or more of both."
        )
    with np.errstate(invalid="ignore"):
        pca = PCA(dims, svd_solver="full").fit(vectors)
    flat = (others - pca.mean_) @ pca.components_.T
    return pca.transform(vectors), flat, tuple(float(share) for share in pca.explained_variance_ratio_)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, dim) at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(vectors.dtype).tiny)


def class_means(vectors: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean of each class's rows (n, ...), (classes, ...); NaN for a class that does not occur."""
    means = np.full((classes, *vectors.shape[1:]), math.nan, dtype=vectors.dtype)
    for label in np.unique(labels):
        means[label] = vectors[labels == label].mean(0)
    return means


def check_embeddings(vectors: np.ndarray, name: str, side: str) -> None:
    """Refuse a run's embeddings (n, dim) of a side that are too few for neighbours, all the same, or not numbers.

    Raises:
        InputError: there are under ten.
        UnsuitedError: there is no direction in which they differ.
    """
    from fourm_ser.analysis.findings import UnsuitedError

    if len(vectors) < LEAST:
        raise InputError(
            f"side={side}: {len(vectors)} utterances are too few to draw neighbourhoods of: expected {LEAST} or more. "
            "Take side=all, or a larger corpus."
        )
    if not np.isfinite(vectors).all():
        raise UnsuitedError(f"Embeddings of {name} are not finite: its training diverged, and nothing can be drawn.")
    if not unit(vectors).std(0).max() > 1e-6:
        raise UnsuitedError(f"The embeddings of {name} all point the same way: there is nothing to tell apart.")


def perplexity(n: int) -> float:
    """The perplexity of t-SNE for n vectors: 30, or a third of the others where that is less."""
    return min(PERPLEXITY, (n - 1) / 3)


def tsne(vectors: np.ndarray, dims: int, seed: int) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008), begun at the principal components: (n, dim) -> (n, dims), 2 or 3.

    There have to be ten vectors or more; see `perplexity`.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # Several threads would add up rounding in the order they come in: the same seed would draw other pictures.
    with threadpool_limits(1):
        model = TSNE(dims, perplexity=perplexity(len(vectors)), init="pca", random_state=seed)
        return model.fit_transform(vectors.astype(np.float32))


def neighbour_map(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Vectors in a plane that keeps neighbours together: by UMAP (McInnes et al. 2018) where it is there, or t-SNE.

    Returns:
        (n, dim), ten or more, -> (n, 2), and how it was made, such as `t-SNE, perplexity 30`.
    """
    if find_spec("umap") is None:
        return tsne(vectors, 2, seed), f"t-SNE, perplexity {perplexity(len(vectors)):.3g}"
    umap = import_module("umap")
    neighbours = min(NEIGHBOURS, len(vectors) - 1)
    model = umap.UMAP(n_neighbors=neighbours, min_dist=MINIMUM_DISTANCE, random_state=seed, n_jobs=1)
    points = np.asarray(model.fit_transform(vectors.astype(np.float32)))
    return points, f"UMAP, {neighbours} neighbours, least distance {MINIMUM_DISTANCE:g}"
