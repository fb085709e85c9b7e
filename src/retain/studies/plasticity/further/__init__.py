"""What the parts beyond the published rows show."""

from retain.studies.plasticity.further import carried, noise, varied

__all__ = ["carried", "noise", "varied"]
