"""The small problem of the fine-tuning study: its functions, its closed form, what descends, and what is shown."""

import copy
import json
import math

import numpy as np
import pytest
import torch

import retain
from retain.figures import draw
from retain.likelihoods import Gaussian
from retain.metrics import Estimate, Interval
from retain.models import MLP
from retain.studies.finetune import small, small_figures, small_problem
from retain.studies.finetune.small import run, stages, starts_of
from retain.studies.finetune.small_problem import descend, error, functions, ridge, sampled
from retain.studies.finetune.spec import FinetuneSpec
from retain.training.recorder import Silent

TINY = {"small_dim": 8, "small_width": 16, "small_source": 1000, "small_samples": (5, 40), "small_steps": 60}


class Keeper:
    """Keeps what stages save, and the events."""

    def __init__(self):
        self.stored, self.events = {}, []

    def recorder(self, arm):
        keeper = self

        class Kept(Silent):
            def event(self, kind, **fields):
                keeper.events.append((arm, kind, fields))

            def save(self, state, *, final=False):
                keeper.stored[arm] = state()

            def load(self):
                return keeper.stored.get(arm)

        return Kept()


@pytest.fixture(scope="module")
def spec():
    return FinetuneSpec(**TINY)


@pytest.fixture(scope="module")
def results(spec):
    return [run(spec, seed, Keeper()) for seed in (0, 1)]


def test_the_same_seed_gives_the_same_plain_values(spec, results):
    keeper = Keeper()
    again = run(spec, 0, keeper)
    assert again == results[0] and json.loads(json.dumps(again)) == again and again != results[1]
    assert list(keeper.stored) == stages(spec) == ["random start@small", "related 0@small", "related 0.9@small"]
    assert [fields["epoch"] for arm, kind, fields in keeper.events if arm == stages(spec)[1] and kind == "step"] == [1, 2]
    before = copy.deepcopy(keeper.stored)
    keeper.events.clear()
    assert run(spec, 0, keeper) == again and not keeper.events and keeper.stored == before  # what is stored is not made again


def test_every_arm_is_there_and_only_the_first_seed_has_pictures(spec, results):
    arms = {(cell["arm"], cell["related"], cell["n"]) for cell in results[0]["cells"]}
    assert len(arms) == len(results[0]["cells"]) == 2 * 2 + 2 * 3 * 2
    assert [picture["arm"] for picture in results[0]["pictures"]] == ["random start", "pretrained", "pretrained"] and not results[1]["pictures"]
    for cell in results[0]["cells"]:
        assert math.isfinite(cell["test"]) and cell["train"] >= 0
        if "tried" in cell:  # the rate is chosen on held-out points, not on test points
            assert cell["held"] == min(tried["held"] for tried in cell["tried"]) and cell["moved"] > 0


def test_pictures_are_of_the_path_that_was_taken(spec, results):
    for picture in results[0]["pictures"]:
        (way,) = (way for way in results[0]["ways"] if (way["arm"], way["related"]) == (picture["arm"], picture["related"]))
        assert picture["plane"]["steps"] == way["steps"] and way["steps"][0] == 0 and way["steps"][-1] == spec.small_steps
        # nats of the likelihood that landscapes measure are told as squared errors
        assert picture["plane"]["true"] == pytest.approx(way["train"], rel=1e-4)
        middle = len(picture["surface"]["offsets"]) // 2
        assert picture["surface"]["error"][middle][middle] == pytest.approx(way["train"][-1], rel=1e-4)


def test_features_in_common():
    target, same = functions(20, 1.0, 3)
    assert torch.equal(target.directions, same.directions) and not torch.equal(target.coefficients, same.coefficients)
    apart, other = functions(20, 0.0, 3)
    assert torch.equal(apart.directions, target.directions) and apart.mean == target.mean  # the target is one, whatever the source
    assert float((apart.directions @ other.directions.T).max()) < 0.9
    part = functions(20, 0.9, 3)[1]
    assert torch.equal(part.directions[:9], target.directions[:9]) and torch.equal(part.directions[9], other.directions[9])


def test_functions_have_mean_0_and_variance_1():
    for function in functions(6, 0.5, 1):
        values = sampled(function, 50_000, 0.0, 1, "points")[1]
        assert abs(float(values.mean())) < 0.03 and abs(float(values.std()) - 1) < 0.03
    clean, noisy = (sampled(function, 50_000, noise, 1, "points")[1] for noise in (0.0, 0.5))
    assert abs(float((noisy - clean).std()) - 0.5) < 0.01


def test_linear_arm_is_ridge_regression():
    torch.manual_seed(0)
    X, y = torch.randn(30, 7) + 3, torch.randn(30, 1) + 2
    for strength in (1e-12, 0.3):
        # the same problem as least squares with rows for the penalty and a column for the constant, which has none
        A = np.vstack([np.hstack([X.numpy(), np.ones((30, 1))]), np.hstack([np.sqrt(30 * strength) * np.eye(7), np.zeros((7, 1))])]).astype(float)
        expected = np.linalg.lstsq(A, np.vstack([y.numpy(), np.zeros((7, 1))]).astype(float), rcond=None)[0]
        assert np.allclose(ridge(X, y, strength).numpy(), expected, atol=1e-8)


def test_the_stack_descends_as_the_library_does():
    points = sampled(functions(5, 0.0, 0)[0], 20, 0.1, 0, "points")
    models = [MLP(5, 9, 9, 1, seed=seed) for seed in (0, 1)]
    before = copy.deepcopy(models)
    found = descend(models, [0.05, 0.2], points, 30, 0, [0, 30])
    for model, start, end, rate in zip(models, before, found[30], (0.05, 0.2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
        task = retain.Task(points, likelihood=Gaussian(), id="points")
        retain.learn(model, [task], epochs=30, batch_size=20, optimizer="momentum", lr=rate, schedule="cosine", device="cpu", score_every=30)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(model.parameters(), end.parameters(), strict=True))


def test_more_points_than_a_step_takes_are_all_seen(monkeypatch):
    """A rate of 0 for one model leaves it; the other sees every point once in a pass."""
    monkeypatch.setattr(small_problem, "BATCH", 4)
    inputs = torch.eye(12)
    models = [MLP(12, 3, 1, seed=0), MLP(12, 3, 1, seed=0)]
    end = descend(models, [0.0, 0.1], (inputs, torch.ones(12, 1)), 3, 0, [3])[3]
    moved = [(model.layers.fc1.weight - models[0].layers.fc1.weight).abs().sum(0) for model in end]
    assert not moved[0].any() and moved[1].all()


def test_starts():
    spec = FinetuneSpec(**{**TINY, "small_source": 3000})
    starts = starts_of(spec, 0.9, 5)
    assert starts.sources[0]["test"] < 0.2 and starts.sources[0]["common"] == 9
    inputs = torch.randn(50, 8)
    pretrained, scaled = starts.models["pretrained"], starts.models["same scale"]
    assert not pretrained(inputs).any() and not scaled(inputs).any()  # new heads answer 0
    assert torch.equal(small.body(pretrained)(inputs), starts.features(inputs))
    first, other = pretrained.layers.fc2.weight.detach(), scaled.layers.fc2.weight.detach()
    assert abs(float(other.std() / first.std()) - 1) < 0.2 and abs(float(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1])) < 0.2


def test_a_related_start_beats_a_random_one_where_points_are_few():
    spec = FinetuneSpec(small_samples=(50,), small_steps=200)
    found = [run(spec, seed, Keeper()) for seed in (100, 101, 102)]
    related, unrelated = (small_figures.against(found, ("pretrained", share), 50) for share in (0.9, 0.0))
    assert related.mean < -0.1 and all(small_figures.against([result], ("pretrained", 0.9), 50).mean < 0 for result in found)  # in every run
    # as a regulariser: both fit the points
    assert all(cell["train"] < 0.03 for result in found for cell in result["cells"] if cell["arm"] in ("random start", "pretrained"))
    assert unrelated.mean > related.mean + 0.1  # it is what they have in common, not that there was a source


def test_at_equal_training_error():
    way = {"train": [1.0, 0.1, 0.2, 0.001], "test": [1.0, 0.5, 0.4, 0.3]}
    assert small_figures.at_level(way, 1.0) == 1.0 and small_figures.at_level(way, 0.1) == 0.5
    assert small_figures.at_level(way, 10**-0.5) == pytest.approx(0.75)
    assert small_figures.at_level(way, 1e-4) is None
    assert small_figures.at_level({"train": [1.0, 0.0], "test": [1.0, 0.5]}, 0.01) == 0.5


def test_choices_are_made_on_held_out_points(monkeypatch):
    monkeypatch.setattr(small, "RATES", (0.1, 0.2))
    zero, one = (small.silent_head(MLP(2, 3, 1, seed=seed)) for seed in (0, 1))
    torch.nn.init.ones_(one.layers[-1].bias)
    inputs = torch.ones(4, 2)
    zeros, ones = (inputs, torch.zeros(4, 1)), (inputs, torch.ones(4, 1))
    place, cell = small._chosen(zero, [zero, one], ones, zeros, ones)  # on test and training points the other is better
    assert place == 0 and cell["rate"] == 0.1 and (cell["held"], cell["test"], cell["train"], cell["moved"]) == (0, 1, 1, 0)
    line = torch.linspace(-1, 1, 20)[:, None]
    found = [
        small._linear(lambda x: x, (line, line), held, test)["strength"] for held, test in (((line, 0 * line), (line, line)), ((line, line), (line, 0 * line)))
    ]
    assert found == [max(small.STRENGTHS), min(small.STRENGTHS)]


def test_differences_are_those_of_one_run():
    cells = [[("random start", None, a), ("pretrained", 0.9, b)] for a, b in ((0.5, 0.4), (0.9, 0.8))]
    found = [{"cells": [{"arm": arm, "related": share, "n": 5, "test": test} for arm, share, test in run]} for run in cells]
    less = small_figures.against(found, ("pretrained", 0.9), 5)
    assert less.mean == pytest.approx(-0.1) and less.high - less.low == pytest.approx(0, abs=1e-9)


def test_verdicts():
    intervals = [(-0.1, -0.2, -0.01, 3), (0.1, 0.01, 0.2, 3), (0.1, -0.01, 0.2, 3), (0.1, math.nan, math.nan, 1)]
    said = [small_figures.verdict(Interval(*values)) for values in intervals]
    assert said[0].startswith("lower") and said[1].startswith("higher") and "not told apart" in said[2] and "one run" in said[3]


def test_tables_figures_and_numbers(spec, results):
    tables, figures = small_figures.shown(spec, results)
    errors, paired, equal, went = tables
    assert len(errors.rows) == 8 and len(paired.rows) == 7 and len(equal.rows) == 5 and len(went.rows) == 10
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    numbers = small_figures.numbers(spec, results)
    one = numbers["small, pretrained, 9 of 10 features"]["test error, 40 points"]
    cells = [cell["test"] for result in results for cell in result["cells"] if (cell["arm"], cell["related"], cell["n"]) == ("pretrained", 0.9, 40)]
    assert one["mean"] == pytest.approx(sum(cells) / 2) and one["seeds"] == 2
    assert Estimate(**one).percent() in small_figures.sentence(spec, results) and Estimate(**one).percent() in errors.text()
    assert "moved, 40 points" not in numbers["small, linear in the inputs"]
    assert len({figure.id for figure in figures}) == len(figures) == 8
    for figure in figures:
        assert figure.caption and draw(figure).axes
    assert all("random walk" in figure.caption for figure in figures if figure.id.startswith("small-path"))


def test_without_pictures_and_with_one_run(spec, results):
    _, figures = small_figures.shown(spec, results[1:])
    assert [figure.id for figure in figures] == ["small-error", "small-moved", "small-way"]
    assert "one run" in small_figures.sentence(spec, results[1:])


def test_a_rate_that_diverges_is_not_chosen(spec, monkeypatch):
    monkeypatch.setattr(small, "RATES", (0.05, 1e6))
    found = run(spec, 1, Keeper())
    tried = [cell["tried"] for cell in found["cells"] if "tried" in cell]
    assert all(cell["rate"] == 0.05 for cell in found["cells"] if "tried" in cell) and all(rate[1]["test"] == math.inf for rate in tried)
    assert error(MLP(2, 2, 1, seed=0), (torch.full((1, 2), math.nan), torch.zeros(1, 1))) == math.inf
