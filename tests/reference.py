"""Slow, obvious versions of what decorlib does fast: written from the published equations, sample by sample.

Nothing here imports decorlib. Every ``*_step`` is one published equation R -> R_new for one batch of inputs x (rows are
samples) at rate lr; every ``*_loss`` is the definition of the number that a rule reports, with loops over the entries.
"""

import itertools
import math

import numpy as np
import torch

# ----------------------------------------------------------------------------------------------------------- moments


def states(R, x):
    """y = R x, one sample after the other."""
    return torch.stack([R @ sample for sample in x])


def second_moment(y):
    """X = <y y'>: the mean of one outer product per sample."""
    X = torch.zeros(y.shape[1], y.shape[1], dtype=y.dtype)
    for sample in y:
        X += torch.outer(sample, sample)
    return X / len(y)


def off_diagonal(X):
    """C = X - diag(X)."""
    C = X.clone()
    for i in range(len(C)):
        C[i, i] = 0
    return C


def mean_gain(x, y):
    """<||x|| / sqrt(||y||^2 + 1e-8)>."""
    ratios = [math.sqrt(a @ a) / math.sqrt(b @ b + 1e-8) for a, b in zip(x, y, strict=True)]
    return sum(ratios) / len(ratios)


def gaussian_divergence(R, S):
    """KL(N(0, X) || N(0, I)) with X = R S R'."""
    X = R @ S @ R.T
    return (X.trace() - len(X) - torch.logdet(X)) / 2


# ------------------------------------------------------------------------------------------------------ rule of 2024


def target(t, x, D):
    """The 2024 notebook's target variance as a list: a number, one per feature, or that of the inputs."""
    if isinstance(t, str):
        return [float(sum(sample[i] ** 2 for sample in x) / len(x)) for i in range(D)]
    return [float(value) for value in t] if isinstance(t, torch.Tensor) else [t] * D


def notebook_step(R, x, lr, t=None, eta=1.0):
    """grad R = R - diag(n)(I - eta C) R with n_i = t_i / v_i, n_i = 1 without a target or where v_i < 1e-8."""
    D = len(R)
    C = second_moment(states(R, x))
    n = torch.ones(D, dtype=R.dtype)
    if t is not None:
        for i, goal in enumerate(target(t, x, D)):
            if C[i, i] >= 1e-8:
                n[i] = goal / C[i, i]
    grad = R - torch.diag(n) @ (torch.eye(D, dtype=R.dtype) - eta * C) @ R
    return R - lr * grad


def notebook_loss(y, x, t=None):
    """Mean over all D^2 entries of (C - diag(t))^2; of C^2 without a target."""
    X, D = second_moment(y), y.shape[1]
    goal = [0.0] * D if t is None else target(t, x, D)
    return sum((X[i, j] - (goal[i] if i == j else 0)) ** 2 for i in range(D) for j in range(D)) / D**2


# -------------------------------------------------------------------------- decorrelation, (1 - k) C + k V, whitening


def copi_step(R, x, lr):
    """R <- R - lr C R."""
    return R - lr * off_diagonal(second_moment(states(R, x))) @ R


def excess(X, i, t, dead=1e-8):
    """v_i - t, and 0 where the feature is dead."""
    return X[i, i] - t if X[i, i] >= dead else 0.0


def weights(D, k, constants):
    """The published constants in front of C and V."""
    return {"standard": (1 - k, k), "normalized": ((1 - k) / (D - 1), 2 * k)}[constants]


def kappa_step(R, x, lr, k, t=1.0, constants="standard"):
    """Row i: R_i <- R_i - lr [c sum_j C_ij R_j + k v_i R_i]."""
    X, new = second_moment(states(R, x)), R.clone()
    C = off_diagonal(X)
    c, kv = weights(len(R), k, constants)
    for i in range(len(R)):
        new[i] = R[i] - lr * (c * sum(C[i, j] * R[j] for j in range(len(R))) + kv * excess(X, i, t) * R[i])
    return new


def column_kappa_step(R, x, lr, k, t=1.0, constants="standard"):
    """As published in code: entry (i, j) is scaled by v_j, not by v_i."""
    X = second_moment(states(R, x))
    c, kv = weights(len(R), k, constants)
    new = R - lr * c * off_diagonal(X) @ R
    for i in range(len(R)):
        for j in range(len(R)):
            new[i, j] -= lr * kv * (X[j, j] - t) * R[i, j]
    return new


def triangular_step(R, x, lr, k, t=1.0, constants="standard"):
    """Row i: R_i <- R_i - lr [c sum_{j < i} X_ij R_j + k v_i R_i]."""
    X, new = second_moment(states(R, x)), R.clone()
    c, kv = weights(len(R), k, constants)
    for i in range(len(R)):
        below = sum((X[i, j] * R[j] for j in range(i)), torch.zeros_like(R[i]))
        new[i] = R[i] - lr * (c * below + kv * excess(X, i, t) * R[i])
    return new


def whitening_step(R, x, lr, t=1.0):
    """R <- R - lr (X - t I) R."""
    return R - lr * (second_moment(states(R, x)) - t * torch.eye(len(R), dtype=R.dtype)) @ R


def kappa_loss(y, x, k, t=1.0, constants="standard", pairs=1.0):
    """(1 - k) sum C^2 + k sum (v - t)^2 over D^2; normalized: (1 - k)/(D - 1), over D. ``pairs``: 1/2 counts once."""
    X, D = second_moment(y), y.shape[1]
    off = pairs * sum(X[i, j] ** 2 for i in range(D) for j in range(D) if i != j)
    diagonal = sum((X[i, i] - t) ** 2 for i in range(D))
    if constants == "normalized":
        return ((1 - k) / (D - 1) * off + k * diagonal) / D
    return ((1 - k) * off + k * diagonal) / D**2


def covariance_loss(y, x):
    """sum C^2 / D^2."""
    return kappa_loss(y, x, k=0.0)


def whitening_loss(y, x, t=1.0):
    """sum (X - t I)^2 / D^2."""
    return 2 * kappa_loss(y, x, k=0.5, t=t)


# ---------------------------------------------------------------------------------------------------------------- maps


def adaptive_gain_step(R, x, lr):
    """R <- g R, then R <- R - lr X R, with the g and X of the states before."""
    y = states(R, x)
    R, X = mean_gain(x, y) * R, second_moment(y)
    return R - lr * X @ R


def foldiak_step(R, x, lr):
    """y = M^-1 x; M <- M + lr C."""
    M = torch.linalg.inv(R)
    y = torch.stack([torch.linalg.solve(M, sample) for sample in x])
    return torch.linalg.inv(M + lr * off_diagonal(second_moment(y)))


def foldiak_with_diagonal(M, S, lr):
    """M <- M + lr X, as in published code: the diagonal is kept."""
    inverse = torch.linalg.inv(M)
    return M + lr * inverse @ S @ inverse.T


def exact_step(R, x, lr, kind, shrinkage):
    """R <- R + lr (W - R) with W S W' = I; numpy, one definition for each kind."""
    S = second_moment(x).numpy()
    S = (1 - shrinkage) * S + shrinkage * np.trace(S) / len(S) * np.eye(len(S))
    values, vectors = np.linalg.eigh(S)
    if kind == "zca":
        W = sum(np.outer(u, u) / math.sqrt(value) for value, u in zip(values, vectors.T, strict=True))
    elif kind == "pca":
        rows = [vectors[:, i] / math.sqrt(values[i]) for i in np.argsort(-values)]
        W = np.stack([row if row[np.argmax(np.abs(row))] > 0 else -row for row in rows])
    else:
        W = np.linalg.inv(np.linalg.cholesky(S))
    return R + lr * (torch.from_numpy(W) - R)


# ------------------------------------------------------------------------ published defects, for the golden tables only


def missing_rate_step(R, C, v, lr, c, k):
    """The variance term is not multiplied by the rate, and scales columns."""
    return R - lr * c * C @ R - k * v * R


def scalar_variance_step(R, C, v, lr, c, k):
    """One mean variance for all features."""
    return R - lr * (c * C @ R + k * v.mean() * R)


def equicorrelated(D, samples, strength, seed):
    """Standardised Gaussian samples (float32), one correlation for all pairs: what the golden tables were made on."""
    torch.manual_seed(seed)
    covariance = torch.full((D, D), strength).fill_diagonal_(1.0)
    x = torch.distributions.MultivariateNormal(torch.zeros(D), covariance).sample((samples,))
    return (x - x.mean(0)) / x.std(0)


# ------------------------------------------------------------------------------------------------- training, literally


def train_literally(W, b, batches, epochs, lr, rate, t, eta=1.0):
    """The loop of 2024 for one DecorLinear and squared error: Adam's equations on (W, b), plain SGD on R from R = I.

    Returns R, W, b and, for each epoch, (mean task loss, mean decorrelation loss), epoch 0 measured without a step.
    """
    R, step = torch.eye(W.shape[1], dtype=W.dtype), 0
    first = {name: torch.zeros_like(p) for name, p in (("W", W), ("b", b))}
    second = {name: torch.zeros_like(p) for name, p in (("W", W), ("b", b))}
    rows = []
    for epoch in range(epochs + 1):
        task, decor = [], []
        for x, goal in batches:
            y = states(R, x)
            error = y @ W.T + b - goal
            task.append(error.square().mean())
            decor.append(notebook_loss(y, x, t))
            if epoch == 0:
                continue
            step += 1
            delta = 2 * error / error.numel()
            for name, p, gradient in (("W", W, delta.T @ y), ("b", b, delta.sum(0))):
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                change = lr * (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8)
                W, b = (p - change, b) if name == "W" else (W, p - change)
            R = notebook_step(R, x, rate, t, eta)
        rows.append((float(sum(task) / len(task)), float(sum(decor) / len(decor))))
    return R, W, b, rows


# -------------------------------------------------------------------------------------------------- a layer's forward


def centred_decor_linear(x, R, b_R, W, b):
    """W (R (x - <x>) + b_R) + b, one operation after the other."""
    y = (x - x.reshape(-1, x.shape[-1]).mean(0)) @ R.T + b_R
    z = y @ W.T
    return z if b is None else z + b


def convolved_patches(x, R, b_R, mean, W, b, stride, dilation, groups, span):
    """W (R (patch - mean) + b_R) + b for x (N, C, *size) that is padded already: tap by tap, position by position.

    R: (groups, D, D); D is a patch's C / groups * taps features, or with ``span="channel"`` its C / groups channels.
    """
    kernel, size = W.shape[2:], x.shape[2:]
    taps = list(itertools.product(*(range(k) for k in kernel)))
    count = [(n - d * (k - 1) - 1) // s + 1 for n, k, d, s in zip(size, kernel, dilation, stride, strict=True)]
    channels, rows = x.shape[1] // groups, []
    for place in itertools.product(*(range(n) for n in count)):
        patch = []  # one (N, C) for each tap
        for tap in taps:
            at = tuple(p * s + t * d for p, s, t, d in zip(place, stride, tap, dilation, strict=True))
            patch.append(x[(slice(None), slice(None), *at)])
        patch, parts = torch.stack(patch, 2), []  # (N, C, taps)
        for g in range(groups):
            mine, weight = patch[:, g * channels : (g + 1) * channels], W.chunk(groups)[g].flatten(2)
            D = R.shape[-1]
            m = torch.zeros(D, dtype=x.dtype) if mean is None else mean[g * D : (g + 1) * D]
            shift = torch.zeros(D, dtype=x.dtype) if b_R is None else b_R[g * D : (g + 1) * D]
            if span == "channel":
                y = [(mine[:, :, t] - m) @ R[g].T + shift for t in range(len(taps))]
                parts.append(sum(y_t @ weight[:, :, t].T for t, y_t in enumerate(y)))
            else:
                parts.append(((mine.flatten(1) - m) @ R[g].T + shift) @ weight.flatten(1).T)
        rows.append(torch.cat(parts, 1))
    out = torch.stack(rows, 2).unflatten(2, count)
    return out if b is None else out + b.reshape(-1, *[1] * len(count))


# --------------------------------------------------------------------------- a step of R that keeps the function


def weight_that_keeps_the_function(W, R, new, kind):
    """The weight that with ``new`` computes what W computes with R: block by block, tap by tap, with the inverse.

    R, new: (groups, d, d). kind: ``"linear"`` (M, D); ``"patch"`` and ``"channel"`` (M, C / groups, *taps), whose rows
    are divided among the groups; ``"transposed"`` (C, M / groups, *taps), whose rows are what R multiplies.
    """
    groups, d = R.shape[:2]
    made = W.clone()
    for g in range(groups):
        M = R[g] @ torch.linalg.inv(new[g])
        if kind == "linear":
            made[:, g * d : (g + 1) * d] = W[:, g * d : (g + 1) * d] @ M
            continue
        rows = slice(g * len(W) // groups, (g + 1) * len(W) // groups)
        mine = W[rows]
        if kind == "patch":
            made[rows] = (mine.flatten(1) @ M).reshape(mine.shape)
            continue
        for tap in itertools.product(*(range(k) for k in W.shape[2:])):
            at = (slice(None), slice(None), *tap)
            made[rows][at] = M.T @ mine[at] if kind == "transposed" else mine[at] @ M
    return made
