"""BibTeX for what a run used."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources

from retain.errors import InputError


def entries() -> dict[str, str]:
    """Every entry of ``references.bib`` by key."""
    text = (resources.files("retain.report") / "references.bib").read_text()
    return {match.group(1): match.group(0).strip() for match in re.finditer(r"@\w+\{([^,]+),.*?\n\}", text, re.S)}


def bibliography(keys: Iterable[str]) -> str:
    """BibTeX entries by key, Retain's own first.

    Args:
        keys: Keys of ``references.bib``.

    Returns:
        The entries, a blank line between them.

    Raises:
        InputError: If a key is unknown.
    """
    known = entries()
    wanted = ["retain", *dict.fromkeys(keys)]
    for key in wanted:
        if key not in known:
            raise InputError("citation", "a key of references.bib", repr(key))
    return "\n\n".join(known[key] for key in wanted)
