"""Local rules: the formula by hand, kernel against reference, units that carry over, divergence that is seen, evolution."""

import math

import pytest
import torch

import retain
from retain import plasticity, tasks
from retain.errors import InputError
from retain.models import FeedForwardAssembly, RecurrentAssembly
from retain.plasticity import LocalRule
from retain.plasticity.learners import learner

EVERYTHING = {"error": 0.3, "label": 0.05, "decay": 2e-3, "feedback": 0.2, "hebb": -0.02, "oja": 3e-3, "exponent": 0.4, "horizon": 30.0}


def samples(n=60, inputs=12, classes=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, inputs, generator=g, dtype=torch.float64)
    return x * (torch.rand(n, inputs, generator=g) < 0.5), torch.randint(classes, (n,), generator=g)


def by_hand(net, rule, x, labels):
    """Weight by weight, as the docstring has it, in loops."""
    c, m, w, d = rule.coefficients(), net.classes, net.width, net.inputs
    win = (net.input_weight * net.input_mask).detach().tolist()
    wout = [[0.0] * w for _ in range(m)]
    b, edge = rule.drawn_feedback(net).tolist(), net.input_mask.tolist()
    for t, (sample, label) in enumerate(zip(x.tolist(), labels.tolist(), strict=True)):
        a = [sum(win[j][k] * sample[k] for k in range(d)) for j in range(w)]
        ranked = sorted(range(w), key=lambda j: (-max(a[j], 0), j))[: net.cap]
        h = [max(a[j], 0) if j in ranked else 0.0 for j in range(w)]
        o = [sum(wout[r][j] * h[j] for j in range(w)) for r in range(m)]
        z = sum(math.exp(v) for v in o)
        e = [(r == label) - math.exp(o[r]) / z for r in range(m)]
        eta = (1 + t / c["horizon"]) ** -c["exponent"]
        hh, xx, n = sum(v * v for v in h), sum(v * v for v in sample), len(ranked)
        f = [sum((b if rule.feedback == "random" else wout)[r][j] * e[r] for r in range(m)) for j in range(w)]
        if rule.feedback == "transport":
            norm = math.sqrt(sum(f[j] ** 2 for j in ranked))
            f = [v * math.sqrt(n * sum(v * v for v in e)) / norm if norm else 0.0 for v in f]
        for r in range(m):
            for j in range(w):
                wout[r][j] += eta * ((c["error"] * e[r] + c["label"] * (r == label)) * h[j] / hh - c["decay"] * n * h[j] ** 2 / hh * wout[r][j])
        for j in ranked if rule.feedback != "none" else []:
            for k in range(d):
                grow = c["feedback"] * f[j] * sample[k] / math.sqrt(xx) + c["hebb"] * h[j] * sample[k] / xx
                win[j][k] += edge[j][k] * eta * (grow - c["oja"] * n * h[j] ** 2 / hh * win[j][k])
    return torch.tensor(win, dtype=torch.float64), torch.tensor(wout, dtype=torch.float64)


@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize("feedback", ["random", "transport", "none"])
def test_formula(feedback, engine):
    rule, net = LocalRule(feedback, coefficients=EVERYTHING), FeedForwardAssembly(12, 4, layers=1, width=9, cap=4, p=0.7)
    x, labels = samples()
    win, wout = by_hand(net, rule, x, labels)
    work = learner(net, rule, engine)
    work.present(work.prepare(x), labels)
    work.store()
    assert torch.allclose(net.output_weight, wout, rtol=1e-9, atol=1e-12)
    assert torch.allclose(net.input_weight * net.input_mask, win, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(wout, torch.zeros_like(wout))


@pytest.mark.parametrize("cap", [None, 1, 7, 20])
@pytest.mark.parametrize("when", ["always", "mistakes"])
@pytest.mark.parametrize("feedback", ["random", "transport", "none"])
def test_kernel_is_the_reference(feedback, when, cap):
    rule = LocalRule(feedback, when=when, average=True, coefficients=EVERYTHING)
    for p, ties in ((1.0, "fire"), (0.5, "silent")):
        nets = [FeedForwardAssembly(12, 4, layers=1, width=20, cap=cap, p=p, ties=ties) for _ in range(2)]
        works = [learner(net, rule, engine) for net, engine in zip(nets, ("torch", "numba"), strict=True)]
        x, labels = samples(300)
        for rows in torch.arange(300).split(130):  # state goes on from call to call
            answers = [work.present(work.prepare(x)[rows], labels[rows]) for work in works]
            assert torch.equal(*answers)
        assert torch.equal(*[work.answer(work.prepare(x)) for work in works])
        first, second = (work.state for work in works)
        for name in ("effective", "output", "mean", "answering_inputs"):
            assert torch.allclose(getattr(first, name), getattr(second, name), rtol=1e-9, atol=1e-12), name
        for work, net in zip(works, nets, strict=True):
            work.store()
            assert torch.equal(net(x).argmax(1), work.answer(work.prepare(x)))


def test_factors_of_units_are_put_into_the_weights_when_they_get_small():
    rule = LocalRule("random", average=True, coefficients={"oja": 0.03})
    works = [learner(FeedForwardAssembly(12, 4, layers=1, width=6, cap=None), rule, engine) for engine in ("torch", "numba")]
    x, labels = samples(1500)
    for work in works:
        work.present(work.prepare(x), labels)
    first, second = (work.state for work in works)
    # without a cap a unit shrinks by about 3 % a sample, to far below the smallest factor
    assert float(second.scale.min()) > 0.05 and torch.allclose(first.effective, second.effective, rtol=1e-9, atol=1e-12)
    assert torch.allclose(first.answering_inputs, second.answering_inputs, rtol=1e-9, atol=1e-12)


def test_single_precision_stays_single():
    net = FeedForwardAssembly(12, 4, layers=1, width=20, cap=7, dtype=torch.float32)
    work = learner(net, LocalRule("random", coefficients=EVERYTHING), "numba")
    x, labels = samples()
    x = x.float()
    work.present(work.prepare(x), labels)
    other = FeedForwardAssembly(12, 4, layers=1, width=20, cap=7)
    other.input_weight.data[:] = net.input_weight
    exact = learner(other, LocalRule("random", coefficients=EVERYTHING), "numba")
    exact.present(exact.prepare(x.double()), labels)
    assert work.state.output.dtype == torch.float32
    assert torch.allclose(work.state.output.double(), exact.state.output, atol=1e-4) and not torch.equal(work.state.output.double(), exact.state.output)


@pytest.mark.parametrize("feedback", ["random", "transport"])
def test_the_scale_of_the_inputs_does_not_matter(feedback):
    x, labels = samples(200)
    rule, found = LocalRule(feedback, coefficients=EVERYTHING), []
    for scale in (1.0, 300.0):
        work = learner(FeedForwardAssembly(12, 4, layers=1, width=20, cap=7), rule, "numba")
        found.append((work.present(work.prepare(scale * x), labels), work.state.effective))
    assert torch.equal(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1])


def test_duplicated_inputs_change_currents_alike():
    """Twice as many inputs of half the energy each: the same currents, and the same change of them."""
    x, labels = samples(100)
    changes = []
    net = FeedForwardAssembly(12, 4, layers=1, width=20, cap=7, p=1.0)
    twice = FeedForwardAssembly(24, 4, layers=1, width=20, cap=7, p=1.0)
    twice.input_weight.data[:] = torch.cat([net.input_weight, net.input_weight], 1)
    for own, inputs in ((net, x), (twice, torch.cat([x, x], 1) / 2)):
        work = learner(own, LocalRule("random", coefficients=EVERYTHING | {"feedback": 0.2 if own is net else 0.2 * math.sqrt(2)}), "numba")
        work.present(work.prepare(inputs), labels)
        changes.append(inputs @ work.state.effective)
    assert torch.allclose(*changes) and not torch.allclose(changes[0], x @ net.input_weight.T.detach())


def test_units_without_input_and_samples_of_zeros_change_nothing():
    net = FeedForwardAssembly(12, 4, layers=1, width=20, cap=7)
    work = learner(net, LocalRule("random"), "numba")
    before = work.state.effective.clone()
    work.present(torch.zeros(5, 12, dtype=torch.float64), torch.zeros(5, dtype=torch.long))
    assert torch.equal(work.state.effective, before) and torch.equal(work.state.output, torch.zeros(4, 20, dtype=torch.float64))


def test_fixed_input_weights_stay():
    net = FeedForwardAssembly(64, 10, layers=1, width=100, cap=40)
    before = net.input_weight.detach().clone()
    result = retain.learn_online(net, LocalRule("none", coefficients={"error": 1.0}), tasks.digits(), score_every=0)
    assert torch.equal(net.input_weight, before) and result.final() > 0.8


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_learning_online(engine):
    digits = tasks.digits()
    net = FeedForwardAssembly(64, 10, layers=1, width=200, cap=80, p=1.0, dtype=torch.float32)
    n = 1437 if engine == "numba" else 300
    task = tasks.Task((digits.data.inputs[:n], digits.data.targets[:n]), test=(digits.test.inputs, digits.test.targets))
    result = retain.learn_online(net, LocalRule("random", coefficients={"error": 1.0}), task, engine=engine, score_every=250)
    assert result.final() > (0.85 if engine == "numba" else 0.6) and result.diverged is None
    assert float((net(digits.test.inputs).argmax(1) == digits.test.targets).double().mean()) == result.final()


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("coefficients", [{"error": 40.0, "decay": 9.0}, {"hebb": 30.0, "oja": -5.0}])
def test_divergence_is_seen(engine, coefficients, blobs):
    rule = LocalRule("transport", coefficients=coefficients)
    result = retain.learn_online(
        FeedForwardAssembly(4, 3, layers=1, width=30, cap=10, dtype=torch.float32), rule, blobs(0, n=1200), engine=engine, score_every=100, epochs=2
    )
    assert result.diverged is not None and "Diverged" in result.table().note


def test_what_does_not_fit_is_refused(blobs):
    for net, word in ((RecurrentAssembly(4, 3), "feed-forward"), (FeedForwardAssembly(4, 3, layers=2), "layers=1")):
        with pytest.raises(InputError, match=word):
            retain.learn_online(net, LocalRule(), blobs(0))
    with pytest.raises(InputError, match="input_lr"):
        retain.learn_online(FeedForwardAssembly(4, 3, layers=1), LocalRule(), blobs(0), input_lr=0.1)
    for wrong in ({"feedback": "rondom"}, {"when": "never"}, {"coefficients": {"eror": 1.0}}, {"coefficients": {"error": math.nan}}):
        with pytest.raises(InputError):
            LocalRule(**wrong)
    with pytest.raises(InputError, match="horizon"):
        LocalRule(coefficients={"horizon": 0.0})


def test_through_a_file(tmp_path):
    rule = LocalRule("transport", when="mistakes", average=True, coefficients=EVERYTHING)
    rule.facts["why"] = "test"
    back = plasticity.load_rule(plasticity.save_rule(tmp_path, rule))
    assert isinstance(back, LocalRule) and back.coefficients() == rule.coefficients() and back.settings() == rule.settings() and back.facts == rule.facts


def test_genes_and_back():
    rule, other = LocalRule(coefficients=EVERYTHING), LocalRule()
    other.express(rule.genes())
    assert all(math.isclose(value, rule.coefficients()[name], rel_tol=1e-12) for name, value in other.coefficients().items())


FAST = {"generations": 4, "population": 6, "tasks_each": 2, "nets": ({"width": 40, "cap": 15, "p": 1.0, "dtype": torch.float32},)}


@pytest.mark.parametrize("method", ["cmaes", "xnes"])
def test_evolution_finds_a_better_rule(method):
    made = {"kinds": ("teacher", "images"), "n": 300, "validation": 200}
    found = []
    for _ in range(2):
        rule = LocalRule("random", coefficients={"error": -1e-4})  # learns the opposite
        own, choice = plasticity.draw_tasks(3, **made, seed=1), plasticity.draw_tasks(2, **made, seed=2)
        result = plasticity.evolve(rule, own, choice=choice, method=method, spread=2.0, horizons=(100, 300), **FAST | {"population": 12})
        found.append(rule.coefficients())
    assert found[0] == found[1]  # the seed decides everything
    assert result.horizons == [100, 100, 300, 300] and len(result.best) == len(result.mean) == len(result.diverged) == 4
    assert result.chosen > result.start + 0.1 and rule.facts["accuracy"]["chosen"] == result.chosen
    assert not set(rule.facts["learned_on"]) & set(rule.facts["chosen_on"])
    assert f"{100 * result.chosen:.1f}" in str(result.table()) and result.plot().axes


def test_what_is_chosen_is_measured_again():
    from retain.plasticity.evolution import success

    tasks_ = plasticity.draw_tasks(2, kinds=("teacher",), n=200, validation=200, seed=3)
    rule = LocalRule("none")
    result = plasticity.evolve(rule, tasks_, horizons=(200,), **FAST)
    from retain.seeds import derive

    again = [success(rule, task, 200, FAST["nets"][0], derive(0, "networks", 0, i)) for i, task in enumerate(tasks_)]
    assert result.chosen == sum(again) / 2


def test_evolution_counts_divergence_and_gives_it_the_worst_rank():
    tasks_ = plasticity.draw_tasks(2, kinds=("teacher",), n=600, validation=100)
    rule = LocalRule("random", coefficients={"hebb": -3.0, "oja": -0.9})  # grows without end
    with pytest.raises(InputError, match="divergence of all"):
        plasticity.evolve(rule, tasks_, horizons=(600,), spread=1e-3, **FAST)
    edge = LocalRule("random", coefficients={"error": 1.0, "oja": -0.02})
    result = plasticity.evolve(edge, tasks_, horizons=(6000,), spread=6.0, **FAST | {"generations": 3})
    assert sum(result.diverged) > 0 and result.chosen > 0 and edge.facts["divergences"] == sum(result.diverged)


def test_evolution_of_tables():
    rule = plasticity.TableRule("prepost", hidden=0, when="mistakes", edges="label and predicted")
    own = plasticity.draw_tasks(2, kinds=("halfspace",), n=300, validation=300)
    result = plasticity.evolve(rule, own, horizons=(300,), **FAST | {"nets": ({"width": 40, "cap": 15},)}, spread=1.0)
    assert result.chosen > 0.7 > result.start


def test_evolution_refuses(monkeypatch):
    own = plasticity.draw_tasks(1, kinds=("teacher",), n=20, validation=0)
    with pytest.raises(InputError, match="validation"):
        plasticity.evolve(LocalRule(), own, generations=1)
    for wrong in ({"method": "cma"}, {"population": 2}, {"horizons": ()}, {"horizons": (0,)}, {"spread": 0.0}, {"nets": ()}):
        with pytest.raises(InputError):
            plasticity.evolve(LocalRule(), own, **wrong)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"retain\[plasticity\]"):
        plasticity.evolve(LocalRule(), own)


def test_pictures_are_like_pictures():
    task = plasticity.image_like(20, 400, classes=6, seed=4)
    x, y = task.data.inputs, task.data.targets
    assert x.shape == (400, 400) and float(x.min()) == 0 and 0.5 < float(x.max()) <= 1 and task.classes == tuple(range(6))
    assert 0.4 < float((x == 0).double().mean()) < 0.95
    grid = x.view(-1, 20, 20) - x.view(-1, 20, 20).mean(0)
    near, far = ((grid[:, :, :-k] * grid[:, :, k:]).mean() / grid.square().mean() for k in (1, 10))
    assert near > 0.6 and far < 0.3
    own = torch.stack([x[y == c].mean(0) for c in range(6)])
    asked = task.validation
    nearest = torch.cdist(asked.inputs, own).argmin(1)
    assert 0.6 < float((nearest == asked.targets).double().mean()) < 1  # telling them apart can be learned, and is not trivial
    again, other = plasticity.image_like(20, 400, classes=6, seed=4), plasticity.image_like(20, 400, classes=6, seed=5)
    assert torch.equal(again.data.inputs, x) and not torch.equal(other.data.inputs, x)


def test_families_differ_by_seed_and_kind():
    drawn = plasticity.draw_tasks(8, n=60, validation=20, seed=7)
    assert [task.id.split("-")[0] for task in drawn] == ["images", "halfspace", "relu", "teacher"] * 2
    assert len({float(task.data.inputs.sum()) for task in drawn}) == 8
    assert all(task.validation.size == 20 and task.test is None for task in drawn)
    assert [task.id for task in plasticity.draw_tasks(8, n=60, validation=20, seed=8)] != [task.id for task in drawn]
    for wrong in ({"kinds": ("image",)}, {"n": 0}):
        with pytest.raises(InputError):
            plasticity.draw_tasks(2, **wrong)
    for wrong in ({"ink": 1.0}, {"side": 3}, {"alike": -0.1}):
        with pytest.raises(InputError):
            plasticity.image_like(**wrong)


@pytest.mark.parametrize("name", plasticity.learned_names())
def test_rules_that_come_along_beat_their_start(name):
    rule = plasticity.learned(name)
    start = LocalRule(**rule.settings())
    assert isinstance(rule, LocalRule) and rule.facts["accuracy"]["chosen"] > rule.facts["accuracy"]["start"]
    assert not any(word in task for task in rule.facts["learned_on"] for word in ("mnist", "fashion", "digits"))
    scores = []
    for own in (start, rule):
        net = FeedForwardAssembly(64, 10, layers=1, width=200, cap=60, p=1.0, dtype=torch.float32)
        scores.append(retain.learn_online(net, own, tasks.digits(), score_every=0).final())
    assert scores[1] > scores[0]


def test_learned_names_what_there_is():
    assert {"local-fixed", "local-random", "local-transport"} <= set(plasticity.learned_names())
    with pytest.raises(InputError, match="local-random"):
        plasticity.learned("local-rondom")
