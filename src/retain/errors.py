"""What goes wrong, said once and clearly: parameter, expected, found, what to do."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable


class RetainError(Exception):
    """Anything Retain refuses or cannot finish. The message is meant for the person at the keyboard."""


class DivergedError(RetainError):
    """Training came to numbers that are not finite."""


class InputError(RetainError, ValueError):
    """A value given by the user does not fit.

    Args:
        parameter: The name the user knows the value by.
        expected: What would have been accepted.
        found: What was given instead.
        hint: What to do about it.

    Example:
        >>> from retain.errors import InputError
        >>> str(InputError("epochs", "a whole number of at least 1", 0, "Pass epochs=1 or more."))
        'epochs: expected a whole number of at least 1, found 0. Pass epochs=1 or more.'
    """

    def __init__(self, parameter: str, expected: str, found: object, hint: str = "") -> None:
        message = f"{parameter}: expected {expected}, found {found}."
        super().__init__(f"{message} {hint}".rstrip())
        self.parameter = parameter


class RetainWarning(UserWarning):
    """Something legal that is unlikely to be what was meant."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, and all of them when none is close.

    Args:
        word: What was typed.
        known: What would have been understood.

    Returns:
        One sentence for the end of an error message.

    Example:
        >>> nearest("forgeting", ["forgetting", "bayes"])
        "Did you mean 'forgetting'? Known: bayes, forgetting."
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    listing = f"Known: {', '.join(names)}."
    return f"Did you mean '{close[0]}'? {listing}" if close else listing


def check_positive(parameter: str, value: float, *, zero: bool = False) -> float:
    """Return ``value`` if it is a finite number above zero (or at zero, with ``zero=True``).

    Args:
        parameter: The name for the error message.
        value: The number to check.
        zero: Whether zero is allowed.

    Returns:
        The value as a float.

    Raises:
        InputError: If it is not such a number.
    """
    number = float(value) if isinstance(value, numbers.Real) else float("nan")
    if number != number or number in (float("inf"), float("-inf")) or number < 0 or (number == 0 and not zero):
        raise InputError(parameter, "a finite number of at least 0" if zero else "a finite number above 0", repr(value))
    return number


def check_count(parameter: str, value: int, *, least: int = 1) -> int:
    """Return ``value`` if it is a whole number of at least ``least``.

    Args:
        parameter: The name for the error message.
        value: The number to check.
        least: The smallest value allowed.

    Returns:
        The value.

    Raises:
        InputError: If it is not such a number.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise InputError(parameter, f"a whole number of at least {least}", repr(value))
    return int(value)


def check_share(parameter: str, value: float) -> float:
    """Return ``value`` if it is a number in [0, 1].

    Args:
        parameter: The name for the error message.
        value: The number to check.

    Returns:
        The value as a float.

    Raises:
        InputError: If it is not such a number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        raise InputError(parameter, "a number between 0 and 1", repr(value))
    return number
