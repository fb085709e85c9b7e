"""L2 towards the starting point."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from torch import nn

from retain.beliefs import Belief, Identity
from retain.errors import check_positive
from retain.methods.quadratic import Pull, Quadratic, Strength, _weights
from retain.models.parameters import named_parameters
from retain.tasks.task import Task


class L2SP(Quadratic):
    r"""L2-SP: all shared weights are held alike, by a prior :math:`\mathcal{N}(c, \tau^2 I)` around the old weights c.

    .. math:: \mathcal{L}(\theta) = \overline{\text{nll}}_B(\theta) + \frac{\text{strength}}{2 \tau^2 m} \|\theta - c\|^2

    Equation 2 of Li, Grandvalet and Davoine 2018 (https://arxiv.org/abs/1802.01483), whose alpha is ``strength / (tau**2 m)``. Departure:
    their separate decay of new layers is the optimiser's own weight decay here.

    The width of the prior is a setting of its own and says nothing of the number of old samples: with n samples behind an
    identity precision the pull would be far too stiff. After another task the prior moves on to its weights.

    Args:
        strength: See :class:`Quadratic`.
        tau: Standard deviation of the prior, in the weights' unit, above 0.
        exclude: Parameters that stay free, by name or pattern (``head.*``). Parameters added after :meth:`consolidate` are free anyway.
        pull: See :class:`Quadratic`.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain.methods import L2SP
        >>> L2SP(tau=0.1)
        L2SP(strength=1.0, pull='gradient', tau=0.1, exclude=())
    """

    name = "l2sp"
    summary = "L2-SP: hold all weights alike, around the old ones"
    citation = "li2018explicit"

    def __init__(self, strength: Strength = 1.0, tau: float = 0.1, *, exclude: Sequence[str] = (), pull: Pull = "gradient") -> None:
        super().__init__(strength, pull)
        self.tau = check_positive("tau", tau)
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def consolidate(self, model: nn.Module, task: Task | None = None) -> None:
        """Centre the prior at the model's weights; the task is not read."""
        names = [name for name in named_parameters(model) if not any(fnmatch(name, pattern) for pattern in self.exclude)]
        theta = _weights(model)
        self.retained = None
        self.belief = Belief({name: theta[name] for name in names}, Identity(names), 1 / self.tau**2)

    def settings(self) -> dict[str, Any]:
        """Everything the method was made with."""
        return {**super().settings(), "tau": self.tau, "exclude": self.exclude}
