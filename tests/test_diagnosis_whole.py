"""All measures at once."""

import copy
import json
import math

import pytest
import torch
from torch import nn

import retain
from retain import Task, models
from retain.diagnosis import Trajectory, barrier, diagnose
from retain.errors import InputError
from retain.figures import draw


class Log:
    def __init__(self):
        self.kinds = []

    def event(self, kind, **fields):
        json.dumps(fields)  # plain values
        self.kinds.append((kind, fields.get("task") or fields.get("measure")))


@pytest.fixture(scope="module")
def learned():
    """A start, two runs from it, and the trajectory of the first."""
    g = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(80, 1, 6, 6, generator=g), torch.arange(80) % 3
    inputs[:, 0, 0, 0] += 2.0 * labels
    task = Task((inputs[:60], labels[:60]), test=(inputs[60:], labels[60:]))
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
    runs, trajectory = [], None
    for seed in (0, 1):
        run = copy.deepcopy(before)
        trajectory = trajectory or Trajectory(run)
        retain.learn(run, [task], epochs=3, lr=1e-2, seed=seed, recorder=trajectory if not seed else None)
        runs.append(run)
    return before, *runs, task, trajectory


def test_everything_at_once(learned):
    before, after, other, task, trajectory = learned
    kept, log = [copy.deepcopy(model.state_dict()) for model in (before, after, other)], Log()
    found = diagnose(before, after, task, other, trajectory=trajectory, samples=40, recorder=log)
    names = ["distance", "distance between runs", "cka", "cka between runs", "barrier", "landscape", "sharpness", "spectrum", "trajectory"]
    assert list(found.found) == names and not found.left_out
    assert found["barrier"].height == barrier(after, other, task, samples=40).height
    numbers = found.numbers()
    assert all(math.isfinite(value) for value in numbers.values()) and numbers["distance, L2"] > 0 and numbers["barrier, train, nats"] >= 0
    assert found["landscape"].centre == pytest.approx(found["sharpness"].loss, rel=1e-5)
    for model, state in zip((before, after, other), kept, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    shown = found._repr_html_()
    assert shown.count("<table>") == 10 and shown.count("<svg") == len(found.figures()) and "does not show" in str(found.table())
    assert all(table.note for table in found.tables())  # what each does not show
    assert len({figure.id for figure in found.figures()}) == len(found.figures())
    assert all(draw(figure) for figure in found.figures()) and found.plot() and found.plot("spectrum")
    assert {name for kind, name in log.kinds if kind == "diagnosis"} == {name for name in names if " " not in name}
    assert sum(name == "landscape" for _, name in log.kinds) == 12  # eleven rows and the end
    assert diagnose(before, after, task, other, "landscape", samples=40)["landscape"].loss == pytest.approx(found["landscape"].loss)


def test_a_head_of_another_size_leaves_the_line_out(learned):
    _, after, other, task, _ = learned
    torch.manual_seed(1)
    before = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))  # too few outputs for the task, too
    found = diagnose(before, after, task, measures=("distance", "cka"), samples=40)
    assert found["distance"].left_out == ("4.weight", "4.bias") and len(found["cka"].same) == 2
    settings = {"landscape": {"dims": 1, "points": 3}, "spectrum": {"k": 1, "steps": 3, "probes": 2}, "sharpness": {"steps": 1, "draws": 1}}
    whole = diagnose(before, after, task, samples=40, settings=settings)
    assert set(whole.left_out) == {"barrier", "trajectory"} and "'4.weight' has another size" in whole.table().note and whole["landscape"].dims == 1
    assert "barrier" in diagnose(before, after, task, other, ("barrier",), samples=40).found
    with pytest.raises(InputError, match=r"measures: expected measures that can be taken, found 'barrier'\. '4\.weight' has another size"):
        diagnose(before, after, task, measures="barrier")
    with pytest.raises(InputError, match=r"measure: expected one that was taken, found 'trajectory'\. none was recorded"):
        whole["trajectory"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"measures": "landscpe"}, "measures: expected known measures, found 'landscpe'. Did you mean 'landscape'"),
        ({"measures": ()}, "measures: expected at least one measure, found none"),
        ({"measures": "trajectory"}, "found 'trajectory'. None was recorded"),
        ({"settings": {"land": {}}}, "settings: expected known measures, found 'land'. Did you mean 'landscape'"),
        ({"settings": {"landscape": {"point": 3}}}, r"settings\['landscape'\]: expected known settings, found 'point'. Did you mean 'points'"),
        ({"samples": 0}, "samples: expected a whole number of at least 1, found 0"),
        ({"other": models.MLP(64, 3)}, r"other: expected the same architecture, with '0\.weight' of shape \[4, 1, 3, 3\], found no such parameter"),
    ],
)
def test_bad_input(learned, settings, words):
    before, after, _, task, _ = learned
    with pytest.raises(InputError, match=words):
        diagnose(before, after, task, **settings)


def test_a_loader_of_any_batches_will_do(learned):
    before, after, _, task, _ = learned
    data = task.data
    loader = [(x, y) for x, y in zip(data.inputs.split([1, 2, 3, 40, 14]), data.targets.split([1, 2, 3, 40, 14]), strict=True)]
    found = diagnose(before, after, loader, measures=("cka", "barrier", "sharpness", "spectrum"), samples=60, settings={"sharpness": {"steps": 2}})
    whole = diagnose(before, after, task, measures=("cka", "barrier", "sharpness", "spectrum"), samples=60, settings={"sharpness": {"steps": 2}})
    assert found["cka"].samples == 60 and whole["cka"].samples == 20  # the loader has no test part
    assert found["barrier"].stored["train"] == pytest.approx(whole["barrier"].stored["train"], rel=1e-4)
    assert found["sharpness"].worst == pytest.approx(whole["sharpness"].worst, rel=1e-3)
    assert found["spectrum"].largest[0] == pytest.approx(whole["spectrum"].largest[0], rel=1e-3)
