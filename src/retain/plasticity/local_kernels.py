"""Learning by a local rule, sample by sample, compiled for the CPU by numba; imported only where numba is installed.

Everything here does what :func:`~retain.plasticity.local_trace.present` does. Input weights lie input first, so that only the rows of inputs that are not zero
are touched, in loops over neighbouring units; a unit's decay is a factor of its own, so that the other rows need not be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from retain.plasticity.kernels import kcap

FEEDBACK = {"none": 0, "random": 1, "transport": 2}
TINY = 1e-12
# sums may be reordered, but NaN and infinity stay what they are: a rule that diverges must be seen
LOOSE = {"reassoc", "contract", "nsz"}


@njit(cache=True, nogil=True, fastmath=LOOSE)
def gather(row: Any, where: Any, values: Any) -> Any:
    """Positions and values of what is not zero in an input; returns how many there are and the sum of their squares."""
    found, square = 0, 0.0
    for k in range(len(row)):
        if row[k] != 0:
            where[found], values[found] = k, row[k]
            square += float(row[k]) * float(row[k])
            found += 1
    return found, square


@njit(cache=True, nogil=True, fastmath=LOOSE)
def spread(found: int, where: Any, values: Any, weights: Any, scale: Any, sums: Any) -> None:
    """What the inputs send through the weights; four rows at a time, so that the sums are read and written less often."""
    sums[:] = 0
    whole = found - found % 4
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        row0, row1, row2, row3 = weights[where[i]], weights[where[i + 1]], weights[where[i + 2]], weights[where[i + 3]]
        for j in range(len(sums)):
            sums[j] += x0 * row0[j] + x1 * row1[j] + x2 * row2[j] + x3 * row3[j]
    for i in range(whole, found):
        x0, row0 = values[i], weights[where[i]]
        for j in range(len(sums)):
            sums[j] += x0 * row0[j]
    for j in range(len(sums)):
        sums[j] *= scale[j]


@njit(cache=True, nogil=True, fastmath=LOOSE)
def deposit(found: int, where: Any, values: Any, change: Any, weights: Any, edges: Any) -> None:
    """Add the outer product of inputs and ``change`` to the weights, on the edges there are (all of them if ``edges`` is empty)."""
    for i in range(found):
        x, row = values[i], weights[where[i]]
        if len(edges):
            edge = edges[where[i]]
            for j in range(len(change)):
                row[j] += x * change[j] * edge[j]
        else:
            for j in range(len(change)):
                row[j] += x * change[j]


@njit(cache=True, nogil=True, fastmath=LOOSE)
def outputs(rates: Any, out: Any, logits: Any) -> int:
    """The logits of a layer's rates; returns the first largest."""
    best = 0
    for r in range(len(logits)):
        total, row = rates[0] * 0, out[r]
        for j in range(len(rates)):
            total += row[j] * rates[j]
        logits[r] = total
        if total > logits[best]:
            best = r
    return best


@njit(cache=True, nogil=True)
def errors_of(logits: Any, label: int, error: Any) -> float:
    """The label's indicator minus the softmax; returns the sum of squares."""
    top, total, square = logits[0], 0.0, 0.0
    for r in range(len(logits)):
        top = max(top, logits[r])
    for r in range(len(logits)):
        error[r] = np.exp(logits[r] - top)
        total += error[r]
    for r in range(len(logits)):
        error[r] = (1 if r == label else 0) - error[r] / total
        square += error[r] * error[r]
    return square


@njit(cache=True, nogil=True, fastmath=LOOSE)
def decay_units(rate: Any, rates: Any, scale: Any, weights: Any, lag: Any, past: Any) -> None:
    """Shrink all weights of a unit by its squared rate: its factor takes it, until that would leave the range of numbers."""
    for j in range(len(scale)):
        scale[j] *= 1 - rate * rates[j] * rates[j]
        if not 0.05 < abs(scale[j]) < 20.0:  # further off, differences in single precision would lose digits
            if len(lag):
                for k in range(len(weights)):
                    lag[k, j] -= past[j] * weights[k, j]
                past[j] = 0
            for k in range(len(weights)):
                weights[k, j] *= scale[j]
            scale[j] = 1


@njit(cache=True, nogil=True, fastmath=LOOSE)
def answer(current: Any, out: Any, cap: int, silent: bool) -> Any:
    """What is predicted of currents ``[T, w]``."""
    width = current.shape[1]
    rates, scratch, fired = np.empty(width, out.dtype), np.empty(width, out.dtype), np.empty(width, np.int64)
    logits, predicted = np.empty(len(out), out.dtype), np.empty(len(current), np.int64)
    for t in range(len(current)):
        kcap(current[t], cap, silent, rates, fired, scratch)
        predicted[t] = outputs(rates, out, logits)
    return predicted


@njit(cache=True, nogil=True, fastmath=LOOSE)
def learn(inputs: Any, labels: Any, start: int, graph: Any, rule: Any, state: Any) -> Any:
    """Present samples one after the other and change the weights.

    Args:
        inputs: ``[T, inputs]``, or currents ``[T, w]`` where there is no feedback.
        labels: ``[T]``.
        start: Samples presented before.
        graph: Cap (-1: none), whether units of rate 0 are silent, edges ``[inputs, w]`` (empty where all are there).
        rule: Kind of feedback, on mistakes only, the coefficients.
        state: Input weights ``[inputs, w]`` and the factor of each unit ``[w]``, output weights ``[m, w]``, feedback weights ``[m, w]``; where weights
            are averaged (else empty) the mean of the output weights, and of each unit the sum of its factor after each sample, ``past``, and of each input
            weight what ``past`` times it is too much by, ``lag``: their difference is the sum of the weight after each sample.

    Returns:
        What was predicted before each update, ``[T]``.
    """
    cap, silent, edges = graph
    kind, mistakes, numbers = rule
    weights, scale, out, back, mean, past, lag = state
    c_error, c_label, c_decay, c_feedback, c_hebb, c_oja, exponent, horizon = numbers
    classes, width = out.shape
    real = out.dtype
    rates, scratch, current, fired = np.empty(width, real), np.empty(width, real), np.empty(width, real), np.empty(width, np.int64)
    change, keep = np.empty(width, real), np.empty(width, real)
    values, where = np.empty(inputs.shape[1], real), np.empty(inputs.shape[1], np.int64)
    logits, error = np.empty(classes, real), np.empty(classes, real)
    predicted = np.empty(len(inputs), np.int64)
    found, square = 0, 0.0
    for t in range(len(inputs)):
        if kind == 0:
            kcap(inputs[t], cap, silent, rates, fired, scratch)
        else:
            found, square = gather(inputs[t], where, values)
            spread(found, where, values, weights, scale, current)
            kcap(current, cap, silent, rates, fired, scratch)
        predicted[t] = outputs(rates, out, logits)
        if not mistakes or predicted[t] != labels[t]:
            wrong = errors_of(logits, labels[t], error)
            length, count = TINY, 0
            for j in range(width):
                length += float(rates[j]) * float(rates[j])
                count += fired[j]
            power = length / max(count, 1)
            eta = (1.0 + (start + t) / horizon) ** -exponent
            if kind > 0:
                change[:] = 0
                source = out if kind == 2 else back
                for r in range(classes):
                    e, row = error[r], source[r]
                    for j in range(width):
                        change[j] += e * row[j]
                factor = eta * c_feedback / np.sqrt(square + TINY)
                if kind == 2:
                    norm = TINY * TINY
                    for j in range(width):
                        norm += float(change[j]) * float(change[j]) * fired[j]
                    factor *= np.sqrt(count * wrong / norm)
                own, hebb = real.type(factor), real.type(eta * c_hebb / (square + TINY))
                if c_oja != 0.0:
                    decay_units(real.type(eta * c_oja / power), rates, scale, weights, lag, past)
                for j in range(width):
                    change[j] = fired[j] * (own * change[j] + hebb * rates[j]) / scale[j]
                deposit(found, where, values, change, weights, edges)
                if len(lag):
                    for j in range(width):
                        change[j] *= past[j]
                    deposit(found, where, values, change, lag, edges)
            decay = real.type(eta * c_decay / power)
            for j in range(width):
                keep[j] = 1 - decay * rates[j] * rates[j]
            for r in range(classes):
                grow, row = real.type(eta * (c_error * error[r] + (c_label if r == labels[t] else 0.0)) / length), out[r]
                for j in range(width):
                    row[j] = row[j] * keep[j] + grow * rates[j]
        if len(mean):
            for j in range(len(past)):
                past[j] += scale[j]
            share = real.type(1.0 / (start + t + 1))
            for r in range(classes):
                row, behind = out[r], mean[r]
                for j in range(width):
                    behind[j] += (row[j] - behind[j]) * share
    return predicted
