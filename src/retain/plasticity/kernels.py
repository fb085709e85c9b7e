"""The presentation of samples one after the other, compiled for the CPU by numba; imported only where numba is installed.

Everything here does what :func:`~retain.plasticity.trace.present` does, for one network. Matrices lie with the presynaptic unit first, so that the innermost
loops run over neighbouring numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

COUNTING = {"none": 0, "count": 1, "percent": 2}


@njit(cache=True, nogil=True)
def _kth_largest(values: Any, k: int) -> Any:
    """The k-th largest entry, by Hoare's selection; the entries change places."""
    left, right = 0, len(values) - 1
    while left < right:
        pivot = values[(left + right) >> 1]
        i, j = left, right
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            right = j
        elif k - 1 >= i:
            left = i
        else:
            break
    return values[k - 1]


@njit(cache=True, nogil=True)
def _threshold(rates: Any, cap: int, top: Any, scratch: Any) -> Any:
    """A number that exactly ``cap`` rates are above, or the largest of which fewer than that are above: where rates tie.

    Halving an interval counts without branches, which takes a quarter of a selection's time; ties end in the selection.

    Returns:
        The number.
    """
    low, high = 0.0 * top, top
    for _ in range(24):
        middle = 0.5 * (low + high)
        above = 0
        for i in range(len(rates)):
            above += rates[i] > middle
        if above == cap:
            return middle
        if above > cap:
            low = middle
        else:
            high = middle
    for i in range(len(rates)):
        scratch[i] = rates[i]
    return _kth_largest(scratch, cap)


@njit(cache=True, nogil=True)
def kcap(values: Any, cap: int, silent: bool, rates: Any, fired: Any, scratch: Any) -> None:
    """ReLU and k-cap of ``values`` into ``rates`` and ``fired``; of equal units the first fire; a cap of -1 is none."""
    n = len(values)
    positive = 0
    top = 0.0 * values[0]
    for i in range(n):
        rate = max(values[i], 0.0)
        rates[i] = rate
        positive += rate > 0
        top = max(top, rate)
    if cap < 0 or positive <= cap:
        for i in range(n):
            fired[i] = rates[i] > 0
        left = 0 if cap < 0 or silent else cap - positive
        for i in range(n):
            if left == 0:
                break
            if fired[i] == 0:
                fired[i] = 1
                left -= 1
        return
    threshold = _threshold(rates, cap, top, scratch)
    above = 0
    for i in range(n):
        fires = rates[i] > threshold
        above += fires
        fired[i] = fires
    for i in range(n):
        if above == cap:
            break
        if rates[i] == threshold:
            fired[i] = 1
            above += 1
    for i in range(n):
        if fired[i] == 0:
            rates[i] = 0.0


@njit(cache=True, nogil=True)
def drive(rates: Any, weights: Any, sums: Any) -> None:
    """What units with these rates send through the weights."""
    sums[:] = 0.0
    for i in range(len(rates)):
        rate = rates[i]
        if rate != 0.0:
            row = weights[i]
            for j in range(len(sums)):
                sums[j] += rate * row[j]


@njit(cache=True, nogil=True)
def count_classes(fired: Any, edges: Any, indegree: Any, counting: int, count: Any) -> None:
    """The class of the number of presynaptic units that fired, for every unit."""
    count[:] = 0
    if counting == 0:
        return
    for i in range(len(fired)):
        if fired[i] & 1:
            row = edges[i]
            for j in range(len(count)):
                count[j] += row[j]
    if counting == 2:
        for j in range(len(count)):
            count[j] = 20 * count[j] // max(indegree[j], 1)


@njit(cache=True, nogil=True)
def update(weights: Any, edges: Any, table: Any, pre: Any, post: Any, count: Any, rate: float, multiplicative: bool, lag: Any, age: int, changes: Any) -> None:
    """Change the weights by the table's numbers for the states; ``lag`` gathers each change times how many samples came before it."""
    states, units = table.shape[0], len(post)
    still = np.ones(states, np.bool_)
    for state in range(states):
        for j in range(units):
            changes[state, j] = rate * table[state, post[j], count[j]] if post[j] >= 0 else 0.0
            still[state] &= changes[state, j] == 0.0
    for i in range(len(pre)):
        if still[pre[i]]:
            continue
        change, row, edge = changes[pre[i]], weights[i], edges[i]
        if multiplicative:
            for j in range(units):
                row[j] *= 1 + edge[j] * change[j]
        else:
            for j in range(units):
                row[j] += edge[j] * change[j]
            if age > 0 and len(lag) > 0:
                behind = lag[i]
                for j in range(units):
                    behind[j] += age * (edge[j] * change[j])


@njit(cache=True, nogil=True)
def output_columns(label: int, predicted: int, gated: bool, everywhere: bool, post: Any) -> None:
    """The output units' columns; -1 for rows that stay as they are."""
    for r in range(len(post)):
        column = 0 if r == label else 1
        if gated:
            column = 2 * column + (0 if r == predicted else 1)
        post[r] = column if everywhere or r in (label, predicted) else -1


@njit(cache=True, nogil=True)
def feed_forward(current: Any, labels: Any, learn: bool, net: Any, rule: Any, state: Any, kept: Any) -> Any:
    """Present samples to a feed-forward network; returns what was predicted, before each update.

    Args:
        current: ``[T, w]``.
        labels: ``[T]``.
        learn: Change the weights.
        net: Edges ``[K, w, w]``, indegrees ``[K, w]``, cap (-1: none), whether units of rate 0 are silent.
        rule: Hidden tables ``[K, S, P, C]``, output table, kind of counting, rate, multiplicative, on mistakes only, all rows, gated.
        state: Hidden weights ``[K, w, w]``, output weights ``[w, m]``, and a lag for each (empty where nothing is averaged).
        kept: What fired ``[T, K + 1, w]``, the output's columns ``[T, m]``, classes of counts ``[T, K, w]``; empty where nothing is to be kept.

    Returns:
        ``[T]``.
    """
    edges, indegree, cap, silent = net
    tables, out_table, counting, rate, multiplicative, mistakes, everywhere, gated = rule
    weights, out, lag, out_lag = state
    kept_fired, kept_columns, kept_counts = kept
    matrices, width, classes = len(weights), current.shape[1], out.shape[1]
    ones, full = np.ones((width, classes), current.dtype), np.full(classes, width)
    rates, fired = np.empty((matrices + 1, width), current.dtype), np.empty((matrices + 1, width), np.int64)
    scratch, sums, logits = np.empty(width, current.dtype), np.empty(width, current.dtype), np.empty(classes, current.dtype)
    post, columns = np.empty(width, np.int64), np.empty(classes, np.int64)
    counts, out_count = np.zeros(width, np.int64), np.zeros(classes, np.int64)
    changes, out_changes = np.empty((2, width), current.dtype), np.empty((2, classes), current.dtype)
    predicted = np.empty(len(current), np.int64)
    keep = len(kept_fired) > 0
    for t in range(len(current)):
        kcap(current[t], cap, silent, rates[0], fired[0], scratch)
        for k in range(matrices):
            drive(rates[k], weights[k], sums)
            kcap(sums, cap, silent, rates[k + 1], fired[k + 1], scratch)
        drive(rates[matrices], out, logits)
        answer = int(np.argmax(logits))
        predicted[t] = answer
        if not learn:
            continue
        still = mistakes and answer == labels[t]
        output_columns(labels[t], answer, gated, everywhere, columns)
        if still:
            columns[:] = -1
        if keep:
            kept_fired[t] = fired
            kept_columns[t] = columns
        if still:
            continue
        for k in range(matrices):
            count_classes(fired[k], edges[k], indegree[k], counting, counts)
            if keep:
                kept_counts[t, k] = counts
            post[:] = fired[k + 1]
            update(weights[k], edges[k], tables[k], fired[k], post, counts, rate, multiplicative, lag[k] if len(lag) else out_lag[:0], t, changes)
        count_classes(fired[matrices], ones, full, counting, out_count)
        update(out, ones, out_table, fired[matrices], columns, out_count, rate, multiplicative, out_lag, t, out_changes)
    return predicted


@njit(cache=True, nogil=True)
def recurrent(current: Any, labels: Any, learn: bool, net: Any, rule: Any, state: Any, kept: Any, rounds: int) -> Any:
    """Present samples to a recurrent network; as :func:`feed_forward`, with one matrix, histories in ``kept[0]`` and ``rounds``."""
    edges, _, cap, silent = net
    tables, out_table, counting, rate, multiplicative, mistakes, everywhere, gated = rule
    weights, out, lag, out_lag = state
    kept_fired, kept_columns, _ = kept
    width, classes, states = current.shape[1], out.shape[1], 2 ** (rounds + 1)
    ones, full = np.ones((width, classes), current.dtype), np.full(classes, width)
    rates, fired, history = np.empty(width, current.dtype), np.empty(width, np.int64), np.empty(width, np.int64)
    scratch, sums, logits = np.empty(width, current.dtype), np.empty(width, current.dtype), np.empty(classes, current.dtype)
    columns, counts, out_count = np.empty(classes, np.int64), np.zeros(width, np.int64), np.zeros(classes, np.int64)
    changes, out_changes = np.empty((states, width), current.dtype), np.empty((states, classes), current.dtype)
    predicted = np.empty(len(current), np.int64)
    keep = len(kept_fired) > 0
    for t in range(len(current)):
        kcap(current[t], cap, silent, rates, fired, scratch)
        history[:] = fired
        for _ in range(rounds):
            rates += current[t]
            drive(rates, weights[0], sums)
            kcap(sums, cap, silent, rates, fired, scratch)
            for i in range(width):
                history[i] = 2 * history[i] + fired[i]
        drive(rates, out, logits)
        answer = int(np.argmax(logits))
        predicted[t] = answer
        if not learn:
            continue
        still = mistakes and answer == labels[t]
        output_columns(labels[t], answer, gated, everywhere, columns)
        if still:
            columns[:] = -1
        if keep:
            kept_fired[t, 0] = history
            kept_columns[t] = columns
        if still:
            continue
        if rounds > 0:
            update(weights[0], edges[0], tables[0], history, history, counts, rate, multiplicative, lag[0] if len(lag) else out_lag[:0], t, changes)
        count_classes(fired, ones, full, counting, out_count)  # rules that count fit networks of no rounds only
        update(out, ones, out_table, history, columns, out_count, rate, multiplicative, out_lag, t, out_changes)
    return predicted
