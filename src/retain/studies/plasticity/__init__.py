"""The plasticity study."""

from retain.studies.plasticity.study import PlasticityStudy

__all__ = ["PlasticityStudy"]
