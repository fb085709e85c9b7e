"""A rule made of tables: for the hidden plastic matrices and for the output."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from retain.errors import InputError, check_count, check_positive, nearest
from retain.models.assembly import Assembly
from retain.plasticity.rules.base import Rule
from retain.plasticity.rules.counts import PostCount, PrePostCount, PrePostPercent
from retain.plasticity.rules.network import NetworkRule
from retain.plasticity.rules.prepost import PrePost
from retain.plasticity.rules.table import Table

Form = Literal["additive", "multiplicative"]
When = Literal["always", "mistakes"]
Edges = Literal["all", "label and predicted"]
TABLES: dict[str, type[Table]] = {kind.name: kind for kind in (PrePost, PrePostCount, PrePostPercent, PostCount, NetworkRule)}


class TableRule(Rule):
    r"""After each sample, :math:`w_{ji} \leftarrow w_{ji} + s\,\beta[\text{states of } i \text{ and } j]` on every edge, or :math:`w_{ji}(1 + s\,\beta)`.

    One table serves all hidden plastic matrices (``hidden=1``, "universal") or each has its own; the output has a table of its own, whose columns say what an
    output unit is: ``label`` or ``other``, and with ``gated`` also whether it was predicted. The perceptron is a gated table or, with ``when="mistakes"``
    and ``edges="label and predicted"``, [[0, 0], [1, -1]]. States are discrete, so the final weights are linear in the tables at fixed firing; that is what
    :func:`~retain.meta_learn` lives from. As in "Learning with Plasticity Rules: Generalization and Robustness" (Cristian, Dabagia, Papadimitriou and
    Vempala 2021), whose tables start standard normal (hidden) and zero (output).

    Args:
        table: ``prepost``, ``prepostcount``, ``prepostpercent``, ``postcount`` or ``network``.
        hidden: Tables for hidden matrices: 0, 1 for all of them, or one for each.
        states: States of a unit: 2 in feed-forward networks, 2^(rounds + 1) in recurrent ones.
        cap: The networks' cap, for tables that count.
        form: ``additive`` or ``multiplicative``.
        when: Change weights ``always`` or on ``mistakes`` only.
        edges: At the output, change ``all`` rows or those of ``label and predicted`` only.
        gated: Tell apart at the output whether a unit was predicted: four columns instead of two.
        rate: s.
        average: Answer with the mean of the weights after each sample instead of the last (additive rules).
        seed: Of the hidden tables' first values.

    Raises:
        InputError: If a setting is out of range or two do not go together.

    Example:
        >>> from retain.plasticity import TableRule
        >>> TableRule("prepost", when="mistakes").description()
        'prepost, on mistakes'
    """

    family = "table"

    def __init__(
        self,
        table: str = "prepost",
        *,
        hidden: int = 1,
        states: int = 2,
        cap: int | None = None,
        form: Form = "additive",
        when: When = "always",
        edges: Edges = "all",
        gated: bool = False,
        rate: float = 0.01,
        average: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        known: tuple[tuple[str, str, tuple[str, ...]], ...] = (
            ("table", table, tuple(TABLES)),
            ("form", form, get_args(Form)),
            ("when", when, get_args(When)),
            ("edges", edges, get_args(Edges)),
        )
        for name, value, choices in known:
            if value not in choices:
                raise InputError(name, f"one of {', '.join(choices)}", repr(value), nearest(str(value), choices))
        if check_count("hidden", hidden, least=0) > 1000:
            raise InputError("hidden", "at most 1000 tables", hidden, "Pass hidden=1, one table for all layers.")
        if check_count("states", states, least=2) > 256:
            raise InputError("states", "at most 256, the firing histories of 7 rounds", states)
        for name, flag in (("gated", gated), ("average", average)):
            if not isinstance(flag, bool):
                raise InputError(name, "True or False", repr(flag))
        if average and form == "multiplicative":
            raise InputError("average", "an additive rule to average the weights of", "a multiplicative one", "Pass average=False.")
        kind = TABLES[table]
        if kind.counting != "none" and states != 2 and hidden:
            raise InputError("table", "'prepost' in recurrent networks: a count of what fired is not defined over several rounds", repr(table))
        self.kind, self.form, self.when, self.edges, self.gated = table, form, when, edges, gated
        self.rate, self.average = check_positive("rate", rate), average
        self.hidden = nn.ModuleList(kind(states, states, cap, 1000 * seed + i) for i in range(hidden))
        self.output = kind(states, 4 if gated else 2, cap, None)

    @classmethod
    def fit(cls, net: Assembly, table: str = "prepost", *, universal: bool = True, **settings: Any) -> TableRule:
        """The rule with tables as this network needs them.

        Args:
            net: The network.
            table: Kind of table.
            universal: One hidden table for all matrices.
            **settings: As for the class.

        Returns:
            The rule.
        """
        matrices = len(net.hidden)
        return cls(table, hidden=min(1, matrices) if universal else matrices, states=net.states, cap=net.cap, **settings)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, without the seed."""
        names = ("form", "when", "edges", "gated", "rate", "average")
        return {"table": self.kind, "hidden": len(self.hidden), **{name: self.output.settings()[name] for name in ("states", "cap")}} | {
            name: getattr(self, name) for name in names
        }

    def table_of(self, net: Assembly) -> list[Table]:
        """A table for each plastic matrix of a network, the output's last."""
        self.check(net)
        own = [table for table in self.hidden if isinstance(table, Table)]
        return [*(own * len(net.hidden) if len(own) == 1 else own), self.output]

    def tables(self, net: Assembly) -> list[Tensor]:
        """``[S, P, C]`` for each plastic matrix of a network, the output's last."""
        return [table.table() for table in self.table_of(net)]

    def check(self, net: Assembly) -> None:
        """Raise if the rule can't be used in this network.

        Raises:
            InputError: With the reason and the alternative.
        """
        if net.states != self.output.states:
            raise InputError(
                "rule",
                f"one for {net.states} states of a unit, as this {net.kind} network has",
                f"one for {self.output.states}",
                "Learn the rule on a network of this kind, and of as many rounds.",
            )
        if len(self.hidden) not in (1, len(net.hidden)):
            found = f"{len(self.hidden)}"
            raise InputError("rule", f"one table for all, or one for each of {len(net.hidden)} hidden plastic matrices", found, "Learn it with hidden=1.")
        if self.output.counting == "count" and net.cap != self.output.cap:
            raise InputError(
                "rule",
                f"a rule that fits the network's cap, {net.cap}",
                f"{type(self.output).__name__}, which has a number for each count up to its own cap, {self.output.cap}",
                "PrePostPercent counts shares and can be carried to another cap.",
            )
        if self.form == "multiplicative" and net.start == "zeros":
            raise InputError("start", "weights that are not all zero, which a multiplicative rule never changes", "'zeros'", "Build the net with start='ones'.")

    def description(self) -> str:
        """One line for tables and cards."""
        words = [self.kind, "one a layer" if len(self.hidden) > 1 else "", "gated" if self.gated else "", "multiplicative" * (self.form != "additive")]
        words += ["on mistakes" * (self.when == "mistakes"), "label and predicted" * (self.edges != "all"), "averaged" * self.average]
        return ", ".join(filter(None, words))
