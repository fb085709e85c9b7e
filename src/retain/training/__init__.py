"""The visible loop, evaluation, checkpoints and devices; and :func:`attach` for loops of your own."""

from retain.training.checkpoints import load, save
from retain.training.evaluation import Evaluation, evaluate
from retain.training.guard import Guard, attach
from retain.training.loop import learn, measure
from retain.training.prediction import Prediction, predict
from retain.training.recorder import Recorder
from retain.training.result import Result

__all__ = ["Evaluation", "Guard", "Prediction", "Recorder", "Result", "attach", "evaluate", "learn", "load", "measure", "predict", "save"]
