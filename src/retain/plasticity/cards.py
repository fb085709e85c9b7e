"""Rules in files: the numbers as safetensors, and a card that people can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from retain.errors import InputError, nearest
from retain.plasticity.rules import FAMILIES, Rule
from retain.training.checkpoints import write_file

SCHEMA = 1


def save_rule(folder: str | Path, rule: Rule) -> Path:
    """Keep a rule: ``rule.safetensors`` holds its numbers and ``rule.json``, its card, everything else.

    Args:
        folder: The folder; made if missing.
        rule: The rule; its ``facts`` go into the card.

    Returns:
        The folder.

    Raises:
        InputError: If the facts hold something that JSON cannot, or a number isn't finite.
        RetainError: If the folder can't be written.

    Example:
        >>> import tempfile
        >>> from retain.plasticity import TableRule, load_rule, save_rule
        >>> folder = save_rule(tempfile.mkdtemp(), TableRule("prepost", seed=3))
        >>> load_rule(folder).description()
        'prepost'
    """
    target = Path(folder)
    numbers = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in rule.numbers().items()}
    for name, value in numbers.items():
        if not value.isfinite().all():
            raise InputError(f"'{name}'", "finite numbers in a rule that is kept", "NaN or infinity")
    card = {
        "schema": SCHEMA,
        "family": rule.family,
        "description": rule.description(),
        "settings": rule.settings(),
        "tensors": {name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")} for name, value in numbers.items()},
        "facts": rule.facts,
    }
    try:
        text = json.dumps(card, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError("facts", "plain values that JSON can hold", str(error)) from error
    write_file(target / "rule.safetensors", to_bytes(numbers))
    write_file(target / "rule.json", text.encode())
    return target


def load_rule(folder: str | Path) -> Rule:
    """Read what :func:`save_rule` wrote.

    Args:
        folder: The folder.

    Returns:
        The rule, with its facts.

    Raises:
        InputError: If there is none, it is damaged, or the card and the tensors do not agree.
    """
    source = Path(folder)
    card_file, tensor_file = source / "rule.json", source / "rule.safetensors"
    for path in (card_file, tensor_file):
        if not path.exists():
            raise InputError("folder", f"a rule in {source}", f"no file {path.name}", "Pass a folder that save_rule wrote.")
    try:
        card: dict[str, Any] = json.loads(card_file.read_text())
        with safe_open(tensor_file, "pt") as file:
            numbers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError("folder", f"a rule that can be read in {source}", f"a damaged one ({error})") from error
    if not isinstance(card, dict) or card.get("schema") != SCHEMA:
        found = card.get("schema", "none") if isinstance(card, dict) else type(card).__name__
        raise InputError("schema", f"{SCHEMA} in {card_file}", found, "It was written by another version of retain.")
    family = card.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError("family", f"a known family of rules in {card_file}", repr(family), nearest(str(family), FAMILIES))
    try:
        rule = FAMILIES[family].from_settings(card["settings"])
        promised = {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in card["tensors"].items()}
        facts = dict(card.get("facts", {}))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:  # the last two: sizes that no memory holds
        raise InputError("card", f"a whole card in {card_file}", f"a damaged one ({error!r})") from error
    own = {name: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in rule.numbers().items()}
    stored = {name: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in numbers.items()}
    for name in sorted({*own, *promised, *stored}):
        for what, other in (("settings", own), ("tensors", promised)):
            if other.get(name) != stored.get(name):
                said, there = (" ".join(map(str, found[name])) if name in found else "no such tensor" for found in (other, stored))
                raise InputError(
                    f"'{name}'", f"{said}, as the card's {what} say", f"{there} in {tensor_file.name}", "The card and the tensors are not of one rule."
                )
        if not numbers[name].isfinite().all():
            raise InputError(f"'{name}'", "finite numbers", f"NaN or infinity in {tensor_file}")
    rule.load_state_dict(numbers)
    rule.facts = facts
    return rule
