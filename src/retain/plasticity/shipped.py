"""Rules that come with Retain."""

from __future__ import annotations

from pathlib import Path

from retain.errors import InputError, nearest
from retain.plasticity.cards import load_rule
from retain.plasticity.rules import Rule

FOLDER = Path(__file__).parent / "learned"


def learned_names() -> list[str]:
    """The names of the rules that come with Retain."""
    return sorted(path.parent.name for path in FOLDER.glob("*/rule.json"))


def learned(name: str) -> Rule:
    """A rule that comes with Retain, learned on made-up tasks only; ``scripts/learn_rules.py`` is how.

    Args:
        name: One of :func:`learned_names`.

    Returns:
        The rule; its ``facts`` say what it was learned on.

    Raises:
        InputError: If there is none of that name.

    Example:
        >>> from retain import plasticity
        >>> plasticity.learned("local-random").description()
        'local, random feedback'
    """
    if name not in learned_names():
        raise InputError("name", f"one of {', '.join(learned_names())}", repr(name), nearest(str(name), learned_names()))
    return load_rule(FOLDER / name)
