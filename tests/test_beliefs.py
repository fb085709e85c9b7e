"""Belief algebra against closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retain.beliefs import Belief, Diagonal, Identity, product, strength_from_importance, strength_from_lambda
from retain.errors import InputError


def belief(centre, precision, n=1.0):
    return Belief({"w": torch.tensor(centre).double()}, Diagonal({"w": torch.tensor(precision).double()}), n)


numbers = st.lists(st.floats(0.01, 5), min_size=3, max_size=3)


@given(tasks=st.lists(st.tuples(numbers, st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.integers(1, 50)), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_three_quadratic_tasks_in_sequence_are_the_joint_optimum(tasks):
    """Each task's loss is n/2 sum p (w - a)^2. Learning them in turn, each under the pull of the last belief, is learning all at once."""
    ps, centres, ns = ([torch.tensor(t[k]).double() for t in tasks] for k in (0, 1, 2))
    joint = sum(n * p * a for n, p, a in zip(ns, ps, centres, strict=True)) / sum(n * p for n, p in zip(ns, ps, strict=True))

    def optimum(prior, p, a, n):
        """Where the new task's loss plus the belief's energy is least."""
        old = prior.n * prior.precision.values["w"]
        return (n * p * a + old * prior.centre["w"]) / (n * p + old)

    def learn(combine):
        known = Belief({"w": centres[0]}, Diagonal({"w": ps[0]}), float(ns[0]))
        for p, a, n in zip(ps[1:], centres[1:], ns[1:], strict=True):
            known = combine(known, {"w": optimum(known, p, a, n)}, Diagonal({"w": p}), float(n))
        return known

    sequential = learn(lambda known, theta, P, n: known.update(theta, P, n))
    assert torch.allclose(sequential.centre["w"], joint, atol=1e-10)
    assert torch.allclose(sequential.n * sequential.precision.values["w"], sum(n * p for n, p in zip(ns, ps, strict=True)))
    # independent beliefs multiply to the same answer
    alone = [Belief({"w": a}, Diagonal({"w": p}), float(n)) for p, a, n in zip(ps, centres, ns, strict=True)]
    assert torch.allclose(product(product(alone[0], alone[1]), alone[2]).centre["w"], joint, atol=1e-10)


def test_averaging_the_centres_of_a_sequence_counts_the_first_task_twice():
    """What the right update is not: the product of the sequence's own centres misses the joint optimum from the third task on."""
    a, p = [0.0, 1.0, -1.0], 1.0
    theta2 = (a[0] + a[1]) / 2
    both = product(belief([a[0]], [p]), belief([theta2], [p]))
    theta3 = (2 * float(both.centre["w"]) + a[2]) / 3
    assert theta3 != pytest.approx(sum(a) / 3, abs=0.05)
    right = belief([a[0]], [p]).update({"w": torch.tensor([theta2]).double()}, Diagonal({"w": torch.tensor([p]).double()}), 1)
    assert (2 * float(right.centre["w"]) + a[2]) / 3 == pytest.approx(sum(a) / 3, abs=1e-12)


@given(numbers, numbers, st.floats(-2, 2), st.floats(0.1, 9), st.floats(0.1, 9))
@settings(max_examples=60, deadline=None)
def test_a_product_has_the_sum_of_the_energies_up_to_a_constant(p, q, shift, n, m):
    a, b = belief([0.0, 1.0, 2.0], p, n), belief([shift, shift, 1.0], q, m)
    both = product(a, b)
    points = [{"w": torch.tensor(w).double()} for w in ([0.0, 0.0, 0.0], [1.0, -1.0, 3.0])]
    differences = [a.energy(x) + b.energy(x) - both.energy(x) for x in points]
    assert differences[0] == pytest.approx(differences[1], abs=1e-9)


def test_product_without_any_precision_takes_the_current_centre():
    both = product(belief([1.0, 5.0], [0.0, 2.0]), belief([2.0, 7.0], [0.0, 0.0]))
    assert both.centre["w"].tolist() == [2.0, 5.0]


def test_a_product_keeps_the_centre_of_whoever_knows():
    a = Belief({"v": torch.zeros(1), "w": torch.zeros(1)}, Diagonal({"v": torch.ones(1)}), 1)
    b = Belief({"v": torch.full((1,), 5.0), "w": torch.ones(1)}, Diagonal({"w": torch.ones(1)}), 1)
    both = product(a, b)
    assert both.centre["v"] == 0 and both.centre["w"] == 1


def test_conjugate_gaussians():
    """Mean of normal data: the belief's centre and precision are those of the exact posterior."""
    torch.manual_seed(0)
    x, y = torch.randn(30).double(), torch.randn(20).double() + 1
    sigma = 0.5
    one = {"w": torch.ones(1).double() / sigma**2}
    both = product(Belief({"w": x.mean()[None]}, Diagonal(one), 30), Belief({"w": y.mean()[None]}, Diagonal(one), 20))
    assert float(both.centre["w"]) == pytest.approx(float(torch.cat([x, y]).mean()))
    assert both.n * float(both.precision.values["w"]) == pytest.approx(50 / sigma**2)


def test_energy_is_in_nats():
    """The energy of a Gaussian mean is the rise of the exact negative log likelihood."""
    x = torch.randn(40).double()
    known = Belief({"w": x.mean()[None]}, Diagonal({"w": torch.tensor([1 / 0.3**2]).double()}), 40)
    nll = lambda w: float(((x - w) ** 2).sum() / (2 * 0.3**2))  # noqa: E731
    assert known.energy({"w": x.mean()[None] + 0.7}) == pytest.approx(nll(x.mean() + 0.7) - nll(x.mean()))


def test_unknown_parameters_are_free_and_heads_may_grow():
    model = nn.Linear(2, 3)
    known = Belief({"weight": torch.zeros(2, 2)}, Diagonal({"weight": torch.ones(2, 2)}), 5)
    fitted = known.fitted(model)
    assert fitted.precision.values["weight"].tolist() == [[1, 1], [1, 1], [0, 0]]
    assert torch.equal(fitted.centre["weight"][2], model.weight.detach()[2])
    assert known.fitted(nn.Linear(2, 2)).precision.values["weight"].shape == (2, 2)
    assert torch.equal(known.variance()["weight"], torch.full((2, 2), 1 / 6))
    with pytest.raises(InputError, match="follows a head that grows"):
        known.fitted(nn.Linear(3, 2))
    with pytest.raises(InputError, match="renamed"):
        known.energy({"bias": torch.zeros(2)})


def test_identity_covers_parameters_of_any_shape():
    theta = {"a": torch.full((2, 3), 2.0), "b": torch.full((4,), 1.0)}
    known = Belief({k: torch.zeros_like(v) for k, v in theta.items()}, Identity(theta), n=3)
    assert known.energy(theta) == pytest.approx(1.5 * (6 * 4 + 4))
    grown = Belief({"weight": torch.zeros(2, 2)}, Identity(["weight"]), 1).fitted(nn.Linear(2, 3))
    assert grown.precision.values["weight"].sum() == 4


def test_state_goes_there_and_back():
    known = belief([1.0, 2.0], [0.5, 0.0], 7)
    again = Belief.from_state_dict(known.state_dict())
    assert again.n == 7 and torch.equal(again.centre["w"], known.centre["w"])
    assert torch.equal(again.precision.values["w"], known.precision.values["w"])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: belief([1.0], [-1.0]), "at least 0"),
        (lambda: belief([1.0], [float("nan")]), "finite"),
        (lambda: belief([1.0], [1.0], -1), "n: expected"),
        (lambda: belief([1.0, 2.0], [[1.0]]), "shape"),
        (lambda: Belief({}, Diagonal({"w": torch.ones(1)}), 1), "an entry for 'w'"),
        (lambda: Belief({}, Diagonal({}), 1, prior=0), "prior"),
        (lambda: strength_from_lambda(1, 0, 5), "n: expected"),
        (lambda: strength_from_lambda(1, 5, 5, "median"), "'mean' or 'sum'"),
    ],
)
def test_bad_input(build, words):
    with pytest.raises(InputError, match=words):
        build()


@given(st.floats(0.01, 100), st.integers(1, 10**6), st.integers(1, 10**6))
def test_conversions_give_the_same_loss(value, n, m):
    """strength * energy / m equals lambda/2 F d^2 (mean), the same over m (sum), importance F d^2."""
    F, d = 0.3, 0.7
    energy = n / 2 * F * d**2
    assert strength_from_lambda(value, n, m) * energy / m == pytest.approx(value / 2 * F * d**2)
    assert strength_from_lambda(value, n, m, "sum") * energy == pytest.approx(value / 2 * F * d**2)
    assert strength_from_importance(value, n, m) * energy / m == pytest.approx(value * F * d**2)
