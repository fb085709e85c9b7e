"""The fine-tuning study."""

from retain.studies.finetune.study import FinetuneStudy

__all__ = ["FinetuneStudy"]
