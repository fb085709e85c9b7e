"""The benchmark: methods of continual learning on published streams, beside what was reported of them."""

from retain.studies.benchmark.study import BenchmarkStudy

__all__ = ["BenchmarkStudy"]
