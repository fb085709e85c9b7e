"""The posterior study, part by part."""

from retain.studies.bayes.study import BayesStudy

__all__ = ["BayesStudy"]
