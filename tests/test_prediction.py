"""Answers and how sure they are, pruning, and beliefs from posteriors and back."""

import math

import pytest
import torch
from torch import nn

from retain import beliefs, fisher, methods, models, predict, tasks
from retain.errors import InputError
from retain.likelihoods import Gaussian
from retain.models.bayesian import bayesian_layers


@pytest.fixture
def digits():
    return tasks.digits()


def linear(logvar: float = -2.0):
    return models.bayesian(models.MLP(64, 10, seed=0), logvar=logvar)


def test_a_plain_model_has_one_draw_and_no_epistemic_part(digits):
    found = predict(models.MLP(64, 10, seed=0), digits)
    assert found.draws.shape == (1, 360, 10)
    assert float(found.uncertainty.epistemic.abs().max()) < 1e-5
    assert torch.allclose(found.uncertainty.total, -(found.mean * found.mean.log()).sum(1), atol=1e-5)


def test_draws_differ_repeat_and_their_mean_is_the_integral_over_the_weights(digits):
    model = linear(-1.0)
    first, second = predict(model, digits, samples=400), predict(model, digits, samples=400)
    assert torch.equal(first.draws, second.draws) and not torch.equal(first.draws[0], first.draws[1])
    layer = model.layers.fc1
    x = digits.test.inputs[:3].flatten(1)
    with torch.no_grad():  # the logits of a linear model are Gaussian: an independent way to the same integral
        mean = x @ layer.weight.T + layer.bias
        width = (x.square() @ layer.weight_logvar.exp().T + layer.bias_logvar.exp()).sqrt()
        oracle = (mean + width * torch.randn(40000, *mean.shape)).softmax(-1).mean(0)
    error = first.draws[:, :3].std(0) / 20 + 1e-4
    assert ((first.mean[:3] - oracle).abs() < 4.5 * error).all()


def test_members_of_an_ensemble_are_draws(digits):
    nets = [models.MLP(64, 10, seed=k) for k in range(3)]
    found = predict(models.Ensemble(nets), digits)
    assert found.draws.shape[0] == 3
    with torch.no_grad():
        assert torch.allclose(found.mean.log(), models.Ensemble(nets)(digits.test.inputs.flatten(1)), atol=1e-5)


def test_numbers_of_a_prediction(digits):
    found = predict(linear(), digits, samples=7, batch_size=100)
    right = torch.tensor([float(p[t]) for p, t in zip(found.mean, digits.test.targets, strict=True)])
    assert found.nll == pytest.approx(float(-right.log().mean()), rel=1e-5)
    assert found.accuracy == pytest.approx(float((found.mean.argmax(1) == digits.test.targets).float().mean()))
    assert 0 <= found.calibration.error <= 1


def test_masked_classes_get_no_probability():
    task = tasks.split(tasks.digits(), 2, scenario="task")[1]
    found = predict(linear(), task, samples=2)
    assert float(found.draws[:, :, :5].abs().max()) == 0.0


def test_mode_and_weights_are_as_they_were(digits):
    model = linear().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, digits, samples=2)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("options", "word"), [({"samples": 0}, "samples"), ({"batch_size": 0}, "batch_size"), ({"part": "validation"}, "validation")])
def test_bad_input_of_predict(digits, options, word):
    with pytest.raises(InputError, match=word):
        predict(linear(), digits, **options)


def test_only_classes_are_predicted():
    task = tasks.arrays(torch.rand(4, 2), torch.rand(4, 1), test=(torch.rand(4, 2), torch.rand(4, 1)), likelihood=Gaussian())
    with pytest.raises(InputError, match="classification task"):
        predict(nn.Linear(2, 1), task)


def test_pruning_takes_the_noisiest_weights_of_all_layers_and_leaves_the_biases():
    model = models.bayesian(models.MLP(6, 5, 3, seed=0), logvar=-4)
    with torch.no_grad():
        model.layers.fc2.weight_logvar.fill_(2.0)  # noisy: these go first
    ratios = torch.cat([(layer.weight.abs() / (0.5 * layer.weight_logvar).exp()).flatten() for layer in bayesian_layers(model).values()]).detach()
    lighter = models.prune(model, 0.4)
    gone = torch.cat([(layer.weight == 0).flatten() for layer in bayesian_layers(lighter).values()])
    assert int(gone.sum()) == round(0.4 * 45) and ratios[gone].max() <= ratios[~gone].min()
    assert torch.equal(lighter.layers.fc1.bias, model.layers.fc1.bias) and not bool((model.layers.fc1.weight == 0).any())
    with models.sampling(lighter), torch.no_grad():
        weight = lighter.layers.fc2.draw("weight")
    assert float(weight[lighter.layers.fc2.weight == 0].abs().max()) < 1e-10
    for share in (-0.1, 1.1):
        with pytest.raises(InputError, match="share"):
            models.prune(model, share)


def test_a_posterior_as_a_belief_and_back():
    model = models.bayesian(models.MLP(6, 5, 3, seed=0), logvar=-3)
    with torch.no_grad():
        model.layers.fc1.weight_logvar.normal_(-4, 1)
    belief = beliefs.from_posterior(model, n=50, prior=1e-3)
    other = models.bayesian(models.MLP(6, 5, 3, seed=1))
    beliefs.as_prior(other, belief, start=True)
    assert float(models.kl(other).detach()) == pytest.approx(0.0, abs=1e-3)
    for (name, layer), there in zip(bayesian_layers(model).items(), bayesian_layers(other).values(), strict=True):
        for part in ("weight", "bias"):
            assert torch.allclose(belief.variance()[f"{name}.{part}"], layer.posterior[part][1].exp(), rtol=1e-4)
            assert torch.allclose(layer.posterior[part][1], there.posterior[part][1], rtol=1e-4)
            assert torch.equal(layer.posterior[part][0], there.posterior[part][0])


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_a_laplace_belief_as_prior_is_the_nearest_factorised_gaussian(structure):
    """The divergence of every other factorised Gaussian from the belief is larger: checked against the full matrix."""
    task = tasks.arrays(torch.randn(40, 3).numpy(), (torch.arange(40) % 2).numpy())
    plain = models.MLP(3, 2, seed=0).double()
    precision = fisher(plain, tasks.Task((task.data.inputs.double(), task.data.targets)), structure=structure)
    precision = beliefs.Diagonal(precision) if structure == "diagonal" else precision
    centre = {name: p.detach() for name, p in plain.named_parameters()}
    belief = beliefs.Belief(centre, precision, 40, prior=0.5)
    model = models.bayesian(plain)
    beliefs.as_prior(model, belief)
    layer = model.layers.fc1
    for name in ("weight", "bias"):
        expected = 40 * precision.diagonal()[f"layers.fc1.{name}"] + 0.5
        assert torch.allclose(layer.priors[name].precision, expected.double())
    # KL(q || belief) over variances, up to a constant: sum(H_ii v_i - log v_i) / 2 is least at 1 / H_ii
    H = 40 * precision.diagonal()["layers.fc1.weight"] + 0.5
    best = 1 / layer.priors["weight"].precision
    worse = best * torch.exp(0.1 * torch.randn_like(best))
    cost = lambda v: float((H * v - v.log()).sum())  # noqa: E731
    assert cost(best) < cost(worse) and math.isfinite(cost(best))


def test_learning_goes_on_from_a_laplace_belief(blobs):
    old, new = blobs(1), blobs(2)
    plain = models.MLP(4, 8, 3, seed=0)
    from retain import learn

    learn(plain, [old], epochs=10, lr=0.02)
    method = methods.EWC()
    method.consolidate(plain, old)
    ends = []
    for prior in (False, True):
        model = models.bayesian(plain, logvar=-8)
        if prior:
            beliefs.as_prior(model, method.belief, start=True)
        result = learn(model, [new], methods.VCL(strength=1, answers=0), epochs=10, lr=0.02, watch=[old, new])
        ends.append(result.accuracy[-1, 0])
    assert ends[1] > ends[0]


def test_bad_beliefs():
    model = models.bayesian(models.MLP(6, 5, 3, seed=0))
    belief = beliefs.from_posterior(models.bayesian(models.MLP(6, 4, 3, seed=0)), n=10)
    with pytest.raises(InputError, match=r"layers\.fc1\.weight.*\[5, 6\]"):
        beliefs.as_prior(model, belief)
    with pytest.raises(InputError, match="Bayesian"):
        beliefs.from_posterior(models.MLP(6, 3, seed=0), n=10)
    flowed = models.bayesian(models.MLP(6, 3, seed=0), estimator="weights", num_flows=1)
    with pytest.raises(InputError, match="flows"):
        beliefs.from_posterior(flowed, n=10)
