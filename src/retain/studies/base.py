"""What a study is."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, ClassVar, Protocol, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retain.errors import InputError, nearest
from retain.figures import Figure, Table
from retain.training.recorder import Recorder


class Spec(BaseModel):
    """A study's settings. Frozen, and a key that does not exist is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    preset: str = Field("quick", description="the preset that the settings started from")
    seeds: int = Field(3, ge=1, description="repetitions, seeds 0 to N-1")
    data: str | None = Field(None, description="folder with the raw data files; default RETAIN_DATA, then a download")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:0")
    start: str | None = Field(None, description="start from this run's (or saved) first-task model instead of training one")
    threads: int = Field(2, ge=1, le=1024, description="CPU threads; bits are promised at a fixed number")

    _unhashed: ClassVar[set[str]] = {"preset", "seeds", "data"}
    _later: ClassVar[set[str]] = set()
    """Settings that came when there were runs: at their defaults they leave a hash what it was."""

    def fingerprint(self, study: Study) -> str:
        """Eight characters that depend on the settings that change numbers, and on the study's version."""
        usual = {key for key in self._later if getattr(self, key) == type(self).model_fields[key].default}
        fields = self.model_dump(mode="json", exclude=self._unhashed | usual)
        text = json.dumps({"study": study.name, "version": study.version, **fields}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def changed(self, settings: Sequence[str]) -> Self:
        """The spec with ``key=value`` settings applied; values are read as YAML.

        Args:
            settings: Texts such as ``lr=0.01`` or ``hidden=[100, 100]``.

        Returns:
            The new spec.

        Raises:
            InputError: If a key does not exist or a value does not fit.
        """
        values: dict[str, Any] = {}
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise InputError("--set", "key=value", repr(setting))
            if key == "preset":
                raise InputError("--set", "a setting", "'preset'", "Pass --preset NAME.")
            if key not in type(self).model_fields:
                raise InputError("--set", "a setting of this study", repr(key), nearest(key, type(self).model_fields))
            try:
                values[key] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise InputError(key, "a value in YAML", repr(text), str(error).splitlines()[0]) from error
        return type(self).parse({**self.model_dump(mode="json"), **values})

    def check_once(self, *names: str) -> None:
        """Raise if one of these settings, which are lists, names something twice."""
        for name in names:
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InputError(name, "every entry once", list(values))

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """A spec from plain values.

        Args:
            values: Settings by name.

        Returns:
            The spec.

        Raises:
            InputError: If one does not fit.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "spec"
            hint = nearest(place, cls.model_fields) if first["type"] == "extra_forbidden" else ""
            expected = first["msg"].removeprefix("Input should be ").removeprefix("Tuple should have ").replace(" after validation", "")
            if first["type"] == "tuple_type":
                expected, hint = "a list in brackets", f"Write {place}=[{first['input']}]."
            raise InputError(place, expected, shorten(repr(first["input"]), 80), hint) from error


class Keeper(Protocol):
    """Where one seed of a study is kept; run folders implement it."""

    def recorder(self, arm: str) -> Recorder:
        """The recorder of one arm."""

    def keep(self, name: str, model: Any, belief: Any = None) -> None:
        """Store a model under a name."""

    def notice(self, kind: str, **fields: Any) -> None:
        """Tell the person who watches; not kept."""


@dataclass
class Outcome:
    """What a study found.

    Args:
        headline: One sentence.
        tables: Tables, in order.
        figures: Figures, in order; the first is on the first screen.
        notes: Remarks that have to stand beside the numbers.
        numbers: The main numbers, for machines.
    """

    headline: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """The size of a job.

    Args:
        parameters: Parameters of the model.
        samples: Training samples by task.
        stages: Names of the stages of one seed, in order.
        steps: Optimiser steps of one seed.
        seconds: Expected time of one seed, from one measured batch.
        batch: What the measured batch looked like.
        search_steps: Optimiser steps of the search that comes before all seeds.
        search_seconds: Its expected time.
    """

    parameters: int
    samples: dict[str, int]
    stages: list[str]
    steps: int
    seconds: float
    batch: str
    search_steps: int = 0
    search_seconds: float = 0.0


class Study(ABC):
    """A question and the experiment that answers it."""

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    version: ClassVar[int] = 1
    presets: ClassVar[dict[str, dict[str, Any]]]
    spec_type: ClassVar[type[Spec]]
    citations: ClassVar[list[str]] = []
    more: ClassVar[str] = "How the settings were chosen"
    """What its tables after the first are."""

    def spec(self, preset: str = "quick", settings: Sequence[str] = ()) -> Spec:
        """The settings of a preset, with changes.

        Args:
            preset: Its name.
            settings: ``key=value`` texts.

        Returns:
            The spec.

        Raises:
            InputError: If the preset or a key does not exist, or a value does not fit.
        """
        if preset not in self.presets:
            raise InputError("--preset", f"a preset of '{self.name}'", repr(preset), nearest(preset, self.presets))
        return self.spec_type.parse({"preset": preset, **self.presets[preset]}).changed(settings)

    @abstractmethod
    def plan(self, spec: Any) -> Plan:
        """Measure one batch and say how large the job is."""

    @abstractmethod
    def check(self, spec: Any) -> None:
        """Raise if the settings, the data or the device cannot be had, before anything is written."""

    @abstractmethod
    def stages(self, spec: Any) -> list[str]:
        """The stages of one seed, in order; each is an arm's name."""

    @abstractmethod
    def run(self, spec: Any, seed: int, keeper: Keeper) -> dict[str, Any]:
        """One seed; plain values only."""

    def cells(self, spec: Any) -> list[Any]:
        """The spec cut into pieces that can run apart, each a spec of this study; here the spec itself."""
        return [spec]

    def trials(self, spec: Any, rounds: Sequence[Sequence[dict[str, Any]]]) -> list[Any]:
        """Cells that have to be run, one seed of each, before those of the spec: the next round of a search, given the results of the rounds so far."""
        return []

    def settled(self, spec: Any, rounds: Sequence[Sequence[dict[str, Any]]]) -> Any:
        """The spec after the search."""
        return spec

    def join(self, spec: Any, found: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """One seed's result from those of its cells, in their order; ``None`` stands for a cell that is not finished."""
        return found[0] or {}

    @abstractmethod
    def summarise(self, spec: Any, results: list[dict[str, Any]]) -> Outcome:
        """What the seeds say together."""
