# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Elastic weight consolidation, from the equation to the code
#
# A network that has learned task A and then learns task B usually loses A. Elastic weight consolidation (EWC) [1] holds every
# weight in place in proportion to how much task A depends on it. It adds one term to the loss on task B:
#
# $$
# \mathcal{L}(\theta) \;=\; \underbrace{\mathcal{L}_B(\theta)}_{\text{mean loss on B}} \;+\;
# \underbrace{\text{strength} \cdot \frac{n}{m}}_{\lambda} \cdot \frac{1}{2} \sum_j F_j \, (\theta_j - \theta^*_j)^2
# $$
#
# Here $\theta^*$ are the weights after task A, $F_j$ is the diagonal of the Fisher information on task A, $n$ is the number of
# samples of task A and $m$ that of task B. This notebook puts every symbol beside the code that computes it.
#
# - **Part 1** has two parameters, so the loss surfaces and the steps of three methods can be drawn.
# - **Part 2** computes $F$ by hand, compares it with the Hessian, and says where each symbol stands in the code.
# - **Part 3** learns MNIST and then Fashion-MNIST, and asks why the strength has to be what it is.
# - **Three exercises** follow, with answers.
#
# The plan of the lesson (two-dimensional picture, Fisher by hand, MNIST then Fashion-MNIST) follows a published tutorial by
# Carson Lam [2]; text and code here are our own. The images come with the library, so no network connection is needed.
# Every statement about a number is printed or asserted by a cell.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

import retain
from retain import Task, learn, likelihoods, methods, models, tasks
from retain.beliefs import strength_from_importance
from retain.figures import Table

torch.set_num_threads(1)  # small tensors: one thread is enough, and the numbers repeat
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
plt.rcParams.update({"figure.dpi": 90, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## Part 1. Two parameters
#
# The model is a logistic regression with two weights and no bias, $p(y = 1 \mid x, \theta) = \sigma(\theta^\top x)$. In PyTorch it
# is `nn.Linear(2, 1, bias=False)` with a Bernoulli likelihood. How well a task fixes a direction of $\theta$ depends on how far
# its inputs vary in that direction:
#
# - **Task A** has inputs that vary much along the first axis and little along the second. It pins down $\theta_1$.
# - **Task B** has inputs that vary much along $(1, 1)$ and little along $(1, -1)$. It pins down $\theta_1 + \theta_2$.


# %%
def make_task(id: str, theta: tuple[float, float], spread: torch.Tensor, seed: int, n: int = 1000) -> Task:
    """Inputs with covariance spread @ spread.T, labels drawn from the model with weights theta."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=g) @ spread.T
    y = torch.bernoulli((x @ torch.tensor(theta)).sigmoid(), generator=g)[:, None]
    return Task((x, y), likelihood=likelihoods.Bernoulli(), id=id)


along, across = torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([[0.5, -0.5], [-0.5, 0.5]])  # projections on (1, 1) and (1, -1)
task_a = make_task("A", (1.0, -1.0), torch.diag(torch.tensor([2.0, 0.15])), seed=1)
task_b = make_task("B", (3.0, 0.0), 1.5 * along + 0.2 * across, seed=4)
task_a, task_b

# %% [markdown]
# The loss is the mean negative log likelihood, $\mathcal{L}(\theta) = \frac1n \sum_i \log(1 + e^{f_i}) - y_i f_i$ with
# $f_i = \theta^\top x_i$. First we learn task A. Each step uses all the data, so the path does not depend on a data order.


# %%
def loss(task: Task, theta: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood for weights of shape [..., 2]."""
    f = theta @ task.data.inputs.T
    return (softplus(f) - task.data.targets[:, 0] * f).mean(-1)


FULL_BATCH = {"epochs": 200, "batch_size": 2000, "optimizer": "momentum", "lr": 1.0, "consolidate_last": False}  # 2000: all of A and B

model_a = nn.Linear(2, 1, bias=False)
nn.init.zeros_(model_a.weight)
learn(model_a, [task_a], **FULL_BATCH)
theta_a = model_a.weight.detach()[0].clone()

slope = torch.autograd.functional.jacobian(lambda theta: loss(task_a, theta), theta_a)
assert slope.norm() < 1e-4  # theta_a is the minimum of the loss on A
print("theta_A =", theta_a.numpy().round(3))

# %% [markdown]
# A method looks at task A once, in `consolidate`. EWC measures the Fisher there. It is large for $\theta_1$ and small for
# $\theta_2$: task A holds the first weight firmly and the second hardly at all.

# %%
ewc = methods.EWC(strength=1)
ewc.consolidate(model_a, task_a)
fisher_a = ewc.belief.precision.values["weight"][0]
assert fisher_a[0] > 20 * fisher_a[1]
print("F on task A =", fisher_a.numpy().round(4))

# %% [markdown]
# Now task B, three times from the same $\theta_A$:
#
# - **plain**: no penalty, $\mathcal{L}_B(\theta)$ alone.
# - **L2** (L2-SP [3]): all weights are held alike, $\mathcal{L}_B(\theta) + \frac{\text{strength}}{2 \tau^2 m} \lVert \theta - \theta_A \rVert^2$.
#   We choose $\tau$ so that its total stiffness equals EWC's, $2 / \tau^2 = n (F_1 + F_2)$.
# - **EWC**: each weight is held by its own $F_j$.
#
# For comparison we also learn A and B **jointly**, from the data of both. That is what we would do if we still had the data of A.

# %%
tau = float(2 / (task_a.n * fisher_a.sum())) ** 0.5
l2 = methods.L2SP(tau=tau)
l2.consolidate(model_a, task_a)


def end_of(method: methods.Method, task: Task = task_b) -> torch.Tensor:
    """Where training on a task ends, from theta_A."""
    model = models.copy(model_a)
    learn(model, [task], method, **FULL_BATCH)
    return model.weight.detach()[0]


ends = {"plain": end_of(methods.Plain()), "L2": end_of(l2), "EWC": end_of(ewc)}
ends["joint"] = end_of(methods.Plain(), tasks.union(task_a, task_b))

rows = [("theta_A", theta_a), *ends.items()]
cells = [[name, f"{t[0]:.2f}", f"{t[1]:.2f}", f"{loss(task_a, t):.4f}", f"{loss(task_b, t):.4f}"] for name, t in rows]
Table("Ends of training", ["", "theta 1", "theta 2", "loss on A, nats", "loss on B, nats"], cells)

# %%
total = {name: float(loss(task_a, t) + loss(task_b, t)) for name, t in ends.items()}
assert total["EWC"] < total["L2"] < total["plain"]
lowest_a, lowest_b = float(loss(task_a, theta_a)), float(loss(task_b, ends["plain"]))
assert loss(task_a, ends["EWC"]) - lowest_a < 0.03 and loss(task_b, ends["EWC"]) - lowest_b < 0.03  # EWC is low on both
assert loss(task_a, ends["L2"]) - lowest_a > 0.03 and loss(task_b, ends["L2"]) - lowest_b > 0.03  # L2 is low on neither
assert abs(total["EWC"] - total["joint"]) < 0.002  # EWC saw no data of A while it learned B, and ends where joint training ends
foreseen = ewc.belief.energy({"weight": ends["EWC"][None]}) / task_a.n  # what the quadratic says A loses by the move
assert abs(foreseen - float(loss(task_a, ends["EWC"]) - lowest_a)) < 0.002
for name, value in total.items():
    print(f"{name:6s} loss on A + loss on B = {value:.4f}")

# %% [markdown]
# The stiffness of L2 is a setting, so it is fair to ask whether another $\tau$ would do as well. The right panel below draws the two
# losses at the end for many values of $\tau$ and many values of EWC's strength.

# %%
tau_grid, strength_grid = [0.04, 0.08, 0.12, 0.2, 0.4], [0.03, 0.1, 1.0, 3.0, 10.0]
l2_ends, ewc_ends = [], []
for value in tau_grid:
    method = methods.L2SP(tau=value)
    method.consolidate(model_a, task_a)
    l2_ends.append(end_of(method))
for value in strength_grid:
    method = methods.EWC(strength=value)
    method.consolidate(model_a, task_a)
    ewc_ends.append(end_of(method))
assert min(float(loss(task_a, t) + loss(task_b, t)) for t in l2_ends) > total["EWC"] + 0.03  # no tau on the grid comes near

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 5.4), layout="constrained", width_ratios=[1.15, 1])
axis_1, axis_2 = torch.linspace(-0.6, 4.4, 101), torch.linspace(-2.4, 2.8, 105)
grid = torch.stack(torch.meshgrid(axis_1, axis_2, indexing="xy"), dim=-1)
for task, low, color, fill in ((task_a, lowest_a, GREY, "#d0d0d0"), (task_b, lowest_b, ORANGE, "#f7dfae")):
    rise = loss(task, grid).numpy() - low
    left.contourf(axis_1, axis_2, rise, levels=[-1e-3, 0.03], colors=[fill], alpha=0.7)
    left.contour(axis_1, axis_2, rise, levels=[0.03, 0.1, 0.2, 0.4, 0.8], colors=color, linewidths=0.8, alpha=0.8)
styles = {"plain": (ORANGE, (8, 6), "left"), "L2": (GREEN, (7, 4), "left"), "EWC": (BLUE, (10, 2), "left")}
for name, (color, shift, side) in styles.items():
    left.annotate("", ends[name], theta_a, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2.2, "shrinkA": 0, "shrinkB": 0})
    left.annotate(name, ends[name], shift, textcoords="offset points", color=color, ha=side, va="center", weight="bold")
left.plot(*theta_a, "o", color="black", markersize=6)
left.annotate(r"$\theta_A$", theta_a, (-8, -8), textcoords="offset points", ha="right", va="center", fontsize=12)
left.plot(*ends["joint"], "*", color="black", markersize=11, label="joint training on A and B")
left.plot([], [], color=GREY, label="loss on A")
left.plot([], [], color=ORANGE, linewidth=0.8, label="loss on B")
left.set(
    xlabel=r"$\theta_1$", ylabel=r"$\theta_2$", title="Three ways on from task A (shaded: within 0.03 nats of a minimum)", xlim=(-0.6, 4.4), ylim=(-2.4, 2.8)
)
left.title.set_fontsize(11)
left.set_aspect("equal")

curves = (l2_ends, tau_grid, GREEN, r"L2, by $\tau$", "o"), (ewc_ends, strength_grid, BLUE, "EWC, by strength", "s")
for found, values, color, label, mark in curves:
    points = np.array([[loss(task_a, t), loss(task_b, t)] for t in found])
    right.plot(*points.T, color=color, marker=mark, markersize=4.5, label=label)
    shift, across_, up = ((5, 5), "left", "bottom") if color == GREEN else ((-5, -5), "right", "top")
    for value, point in zip(values, points, strict=True):
        right.annotate(f"{value:g}", point, shift, textcoords="offset points", fontsize=8, color=color, ha=across_, va=up)
right.plot(loss(task_a, ends["joint"]), loss(task_b, ends["joint"]), "*", color="black", markersize=11, label="joint training")
right.set(xlabel="loss on A, nats", ylabel="loss on B, nats", title="What is kept, what is gained")
right.margins(0.1)
right.legend(fontsize=9)
figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=9)
plt.show()

# %% [markdown]
# **What to see.** The grey valley of A is long in $\theta_2$ and narrow in $\theta_1$; the valley of B runs diagonally.
#
# - **Plain** training walks to the minimum of B and leaves the valley of A.
# - **L2** gives way in the direction in which B pulls most, whatever A needs. It ends outside both low regions, and no $\tau$ leads it to
#   where they meet.
# - **EWC** walks along the valley of A, where $F_2$ is small, until it meets the valley of B. It ends beside the joint minimum, where
#   both losses are low.
#
# A strength of 1 is the Bayesian answer: the quadratic term is then the negative log posterior after task A, under a Gaussian (Laplace)
# approximation, divided by $m$. It comes out so well here for two reasons. The loss is close to quadratic over the move, and the valley of A runs
# along a coordinate axis, so a diagonal $F$ can describe it. Part 3 and Exercise 2 show what happens otherwise.

# %% [markdown]
# ## Part 2. What F is
#
# The Fisher information of a model $p(y \mid x, \theta)$ on the inputs $x_1, \dots, x_n$ is the matrix
#
# $$
# F \;=\; \frac1n \sum_{i=1}^n \; \mathbb{E}_{y \sim p(y \mid x_i, \theta)} \big[ g_i(y) \, g_i(y)^\top \big],
# \qquad g_i(y) = \nabla_\theta \log p(y \mid x_i, \theta) .
# $$
#
# EWC keeps its diagonal, $F_j = \frac1n \sum_i \mathbb{E}_y [ (\partial_j \log p(y \mid x_i, \theta))^2 ]$: a square, an expectation over
# labels, and a mean over samples. We take these one at a time, on a small network that has learned MNIST.

# %%
mnist, fashion = tasks.mnist(embedded=True), tasks.fashion_mnist(embedded=True)
small = models.MLP(784, 32, 10, seed=0)
trained_small = learn(small, [mnist], epochs=10, seed=0)
print(f"{sum(p.numel() for p in small.parameters())} weights, test accuracy {100 * trained_small.accuracy[1, 0]:.1f} %")

# %% [markdown]
# ### One image
#
# The network turns an image into ten logits $f_k$. The softmax makes them probabilities, and the loss is
# $-\log p_y = \log \sum_k e^{f_k} - f_y$. Its gradient has one entry for each weight.

# %%
image, label = mnist.data.inputs[:1], mnist.data.targets[:1]
logits = small(image)
one_loss = cross_entropy(logits, label)
assert torch.isclose(one_loss, -logits.log_softmax(1)[0, label[0]])
gradient = torch.autograd.grad(one_loss, list(small.parameters()))
named_gradient = dict(zip(dict(small.named_parameters()), gradient, strict=True))

figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.4), layout="constrained", width_ratios=[1, 2.4])
left.imshow(image[0, 0], cmap="gray_r")
left.set(title=f"label {int(label)}", xticks=[], yticks=[])
right.bar(range(10), logits[0].softmax(0).detach(), color=BLUE)
right.set(xlabel="class", ylabel="probability", yscale="log", xticks=range(10), title="What the network answers")
plt.show()

print("image  ", tuple(image.shape))
print("logits ", logits[0].detach().numpy().round(1))
print(f"loss    {one_loss:.5f} nats")
for name, g in named_gradient.items():
    print(f"gradient of {name:18s} {tuple(g.shape)!s:10s} sum of squares {g.square().sum():.2e}")

# %% [markdown]
# ### The square, and the mean over samples
#
# The square is taken per sample, before the mean. Squaring the gradient of a batch's mean loss gives something else: near a minimum
# the gradients of the samples cancel, and their mean says nothing about the curvature.

# %%
inputs, targets = mnist.data.inputs[:200], mnist.data.targets[:200]
parameters = list(small.parameters())
per_sample = [torch.autograd.grad(cross_entropy(small(x), y), parameters) for x, y in zip(inputs.split(1), targets.split(1), strict=True)]
mean_of_squares = sum(float(g.square().sum()) for one in per_sample for g in one) / len(inputs)
square_of_mean = sum(float(torch.stack(same).mean(0).square().sum()) for same in zip(*per_sample, strict=True))
assert square_of_mean < mean_of_squares / 10
print(f"mean of the squares {mean_of_squares:.4f}, square of the mean {square_of_mean:.4f}")

# %% [markdown]
# ### The label
#
# The expectation over $y$ is where implementations part. `retain.fisher` offers four rules [4]:
#
# | rule | the label $y$ | what it is |
# |---|---|---|
# | `exact` | all labels, weighted by the model's $p(y \mid x)$ | the Fisher |
# | `sampled` | drawn from the model's $p(y \mid x)$ | an unbiased estimate of the Fisher |
# | `empirical` | the label in the data | the "empirical Fisher", in general not the Fisher |
# | `predicted` | the most probable label | what some published code uses; not the Fisher |
#
# Here is the explicit loop, sample by sample and label by label, and the comparison with the library.


# %%
def fisher_by_hand(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, rule: str) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher by explicit loops."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        log_p = model(x).log_softmax(1)[0]
        if rule == "exact":
            weighted_labels = list(enumerate(log_p.detach().exp().tolist()))
        elif rule == "empirical":
            weighted_labels = [(int(y), 1.0)]
        else:  # predicted
            weighted_labels = [(int(log_p.argmax()), 1.0)]
        for k, weight in weighted_labels:
            gradient = torch.autograd.grad(log_p[k], list(parameters.values()), retain_graph=True)
            for name, g in zip(parameters, gradient, strict=True):
                total[name] += weight * g**2
    return {name: t / len(inputs) for name, t in total.items()}


for rule in ("exact", "empirical", "predicted"):
    ours, theirs = fisher_by_hand(small, inputs, targets, rule), retain.fisher(small, (inputs, targets), labels=rule)
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-8), (rule, name)
    print(f"{rule:10s} trace by hand {sum(float(f.sum()) for f in ours.values()):.4f}, with retain.fisher {sum(float(f.sum()) for f in theirs.values()):.4f}")

# %% [markdown]
# `sampled` is random, so it is compared in the mean: with more draws per sample it approaches `exact`.

# %%
exact = retain.fisher(small, (inputs, targets), labels="exact")


def relative_error(found: dict[str, torch.Tensor]) -> float:
    """|F - F_exact| / |F_exact| over all weights."""
    return float(torch.sqrt(sum((found[name] - exact[name]).square().sum() for name in exact) / sum(exact[name].square().sum() for name in exact)))


errors = {draws: relative_error(retain.fisher(small, (inputs, targets), labels="sampled", draws=draws)) for draws in (1, 10, 100, 1000)}
assert errors[1000] < 0.3 and errors[1000] < errors[1]
for draws, error in errors.items():
    print(f"{draws:4d} draws per sample: relative error {error:.2f}")

# %% [markdown]
# ### Why the rules differ on a confident network
#
# At the logits the gradient of $\log p_y$ is $e_y - p$. Take two classes and a network that gives its favourite the probability
# $1 - \varepsilon$. The squared length of $e_y - p$ is $2 \varepsilon^2$ for the favourite and $2 (1 - \varepsilon)^2$ for the other label, so
#
# $$
# \text{exact: } (1 - \varepsilon) \, 2 \varepsilon^2 + \varepsilon \, 2 (1 - \varepsilon)^2 = 2 \varepsilon (1 - \varepsilon),
# \qquad \text{predicted: } 2 \varepsilon^2,
# \qquad \frac{\text{exact}}{\text{predicted}} = \frac{1 - \varepsilon}{\varepsilon} .
# $$
#
# Nearly all of the Fisher comes from the label that the network thinks improbable. `predicted` never looks at that label.
# `empirical` looks at it only where the data contradict the network, which on training data that have been fitted happens less often
# than the network's own probabilities say. `sampled` looks at it with probability $\varepsilon$ and then finds a large gradient, so it
# is right on average and noisy. (On data whose labels do follow the model's probabilities, `empirical` would be an unbiased estimate too.)

# %%
for eps in (0.5, 0.1, 0.01, 0.001):
    two = torch.tensor([[1 - eps, eps]], dtype=torch.float64).log()
    by_rule = likelihoods.Categorical().hessian_root(two).square().sum()  # the sum over labels of p_y |e_y - p|^2
    predicted = (two.exp() - torch.tensor([1.0, 0.0])).square().sum()
    assert torch.isclose(by_rule, torch.tensor(2 * eps * (1 - eps)).double()) and torch.isclose(by_rule / predicted, torch.tensor((1 - eps) / eps).double())
    print(f"eps = {eps:<5g}  exact {by_rule:.6f}   predicted {predicted:.6f}   ratio {by_rule / predicted:.0f}")

# %% [markdown]
# On the network itself: the trace of the diagonal under each rule, before and after training. Before training the network is unsure and
# the rules agree. After training they part. The trace is a mean over images, and the few images of which the network is unsure
# dominate it; for the median image the ratio at the logits is much larger.

# %%
RULES = ("exact", "sampled", "empirical", "predicted")
trace = {}
for state, net in (("untrained", models.MLP(784, 32, 10, seed=0)), ("trained", small)):
    for rule in RULES:
        trace[state, rule] = sum(float(f.sum()) for f in retain.fisher(net, mnist, labels=rule).values())
assert all(abs(trace["untrained", rule] / trace["untrained", "exact"] - 1) < 0.1 for rule in RULES)
assert trace["trained", "exact"] > 2 * trace["trained", "predicted"]

with torch.no_grad():
    p = small(mnist.data.inputs).double().softmax(1)
eps = 1 - p.amax(1)
at_logits = 1 - p.square().sum(1), p.square().sum(1) - p.amax(1).square() + eps.square()  # |e_y - p|^2: expected, and at the favourite
median_ratio = float((at_logits[0] / at_logits[1]).median())
assert median_ratio > 20
wrong = (p.argmax(1) != mnist.data.targets).float()
assert wrong.mean() < eps.mean()  # the fitted data contradict the network less often than its probabilities say
print(f"trained network on its training data: mean of eps {eps.mean():.3f}, median {eps.median():.4f}, share of wrong answers {wrong.mean():.3f}")
print(f"exact / predicted at the logits: {median_ratio:.0f} for the median image, {float(at_logits[0].sum() / at_logits[1].sum()):.1f} for the sums")
cells = [[state, *(f"{trace[state, rule]:.2f}" for rule in RULES)] for state in ("untrained", "trained")]
Table("Trace of the Fisher's diagonal, nats", ["", *RULES], cells)

# %% [markdown]
# ### The Fisher and the Hessian
#
# EWC is a second-order expansion of the loss on A around its minimum, so what it would like to have is the Hessian $H$ of the mean
# negative log likelihood. With $J_i = \partial f(x_i) / \partial \theta$ and the Hessian $H_f$ of $-\log p(y \mid f)$ with respect to the outputs,
#
# $$
# H \;=\; \underbrace{\frac1n \sum_i J_i^\top H_f(x_i) \, J_i}_{F} \;+\;
# \frac1n \sum_i \sum_k \frac{\partial (-\log p(y_i \mid f))}{\partial f_k} \, \nabla^2_\theta f_k(x_i) .
# $$
#
# For softmax and sigmoid outputs $H_f$ does not contain the label, and the first sum is the exact Fisher. The second sum vanishes where
# the outputs are linear in $\theta$: for a generalised linear model with its canonical link, such as our two-parameter model, $H = F$ at
# every $\theta$, not only at the minimum.


# %%
def full_fisher(task: Task, theta: torch.Tensor) -> torch.Tensor:
    """The full 2 x 2 Fisher of the logistic regression: the mean of p (1 - p) x x'."""
    x = task.data.inputs
    p = (x @ theta).sigmoid()
    return (x * (p * (1 - p))[:, None]).T @ x / len(x)


apart = []
for place in (theta_a, torch.tensor([-0.5, 2.0])):
    H = torch.autograd.functional.hessian(lambda theta: loss(task_a, theta), place)
    assert torch.allclose(H, full_fisher(task_a, place), rtol=1e-4, atol=1e-6)
    at_place = models.copy(model_a)
    at_place.weight.data.copy_(place)
    assert torch.allclose(H.diag(), retain.fisher(at_place, task_a)["weight"][0], rtol=1e-4, atol=1e-6)
    empirical = retain.fisher(at_place, task_a, labels="empirical")["weight"][0]
    apart.append(float((empirical / H.diag() - 1).abs().max()))
    print(f"theta {place.numpy().round(2)}: Hessian diagonal {H.diag().numpy().round(4)}, empirical Fisher {empirical.numpy().round(4)}")
assert apart[0] < 0.2 and apart[1] > 1

# %% [markdown]
# At $\theta_A$ the empirical Fisher is close, because there the model fits and the labels follow its probabilities. At the other place it is
# far off, while the exact Fisher is still the Hessian.
#
# With a hidden layer the second sum does not vanish. The Hessian of the untrained network below has a negative eigenvalue; the
# Fisher, a mean of squares, never has one. It is small where the residuals are small, which is why the Fisher stands in for the Hessian at
# the end of training.

# %%
tiny = models.MLP(2, 4, 1, seed=0).double()
shapes = {name: p.shape for name, p in tiny.named_parameters()}
start = torch.cat([p.detach().flatten() for p in tiny.parameters()])
x_a, y_a = task_a.data.inputs.double(), task_a.data.targets.double()


def tiny_outputs(flat: torch.Tensor) -> torch.Tensor:
    """Logits of the tiny network as a function of all its weights in one vector."""
    pieces = flat.split([shape.numel() for shape in shapes.values()])
    return functional_call(tiny, {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}, (x_a,))


H = torch.autograd.functional.hessian(lambda flat: binary_cross_entropy_with_logits(tiny_outputs(flat), y_a), start)
J = torch.autograd.functional.jacobian(tiny_outputs, start)[:, 0]
p = tiny_outputs(start)[:, 0].sigmoid().detach()
G = (J * (p * (1 - p))[:, None]).T @ J / len(x_a)
lowest = float(torch.linalg.eigvalsh(H)[0]), float(torch.linalg.eigvalsh(G)[0])
assert lowest[0] < -0.01 and lowest[1] > -1e-12
print(f"smallest eigenvalue: Hessian {lowest[0]:.3f}, Fisher {abs(lowest[1]):.3f}")

# %% [markdown]
# ### Where each symbol stands in the code
#
# | symbol | meaning | in `retain` |
# |---|---|---|
# | $\theta$ | the weights, by name | `model.named_parameters()` |
# | $\theta^*$ | the weights after task A | `method.belief.centre[name]` |
# | $F$ | diagonal Fisher per sample of A | `retain.fisher(model, task)`, kept in `method.belief.precision.values[name]` |
# | $n$ | samples of A | `method.belief.n`, from `task_a.n` |
# | $m$ | samples of B | `task_b.n` |
# | $\frac n2 \sum_j F_j (\theta_j - \theta^*_j)^2$ | what A loses, in nats | `method.energy(model)` |
# | strength | how much an old sample weighs against a new one | `methods.EWC(strength=...)`; 1 is the Bayesian answer |
# | $\lambda = \text{strength} \cdot n / m$ | the factor of the paper, before the half and the sum | `beliefs.strength_from_lambda(lam, n, m)` converts |
# | importance $= \lambda / 2$ | the factor of code that leaves out the half | `beliefs.strength_from_importance(importance, n, m)` converts |
# | $\lambda F (\theta - \theta^*)$ | the gradient of the penalty | added in `method.before_step`, or a proximal step in `method.after_step` |

# %%
belief, strength = ewc.belief, ewc.strength
n, m = belief.n, task_b.n
lam = strength * n / m
assert n == task_a.n and torch.equal(belief.centre["weight"][0], theta_a)
assert torch.equal(belief.precision.values["weight"], retain.fisher(model_a, task_a)["weight"])

moved = models.copy(model_a)
moved.weight.data.add_(torch.tensor([[0.1, 1.0]]))
squares = (belief.precision.values["weight"] * (moved.weight.detach() - belief.centre["weight"]) ** 2).sum()
assert np.isclose(ewc.energy(moved), float(n / 2 * squares))  # the energy, in nats
assert np.isclose(strength * ewc.energy(moved) / m, float(lam / 2 * squares))  # the penalty, per sample of B
assert np.isclose(strength_from_importance(lam / 2, n, m), strength)
print(f"n = {n:g}, m = {m}, energy {ewc.energy(moved):.3f} nats, penalty {strength * ewc.energy(moved) / m:.6f} nats per new sample")

# %% [markdown]
# ### The penalty starts at zero
#
# At the start of task B, $\theta = \theta^*$. The penalty is zero, and so is its gradient $\lambda F (\theta - \theta^*)$. The first step on B is
# that of plain training; the pull appears once the weights have moved.

# %%
new_model = models.copy(model_a)
assert ewc.energy(new_model) == 0

ewc.begin(new_model, task_b)  # what learn() does before a task
probe = torch.optim.SGD(new_model.parameters(), lr=0.1)
probe.zero_grad()
ewc.before_step(new_model, probe)  # adds the penalty's gradient; no loss has been differentiated
assert new_model.weight.grad is None  # nothing to add: the weights are where they were

new_model.weight.data.add_(0.5)
probe.zero_grad()
ewc.before_step(new_model, probe)
assert torch.allclose(new_model.weight.grad, lam * belief.precision.values["weight"] * 0.5)
print("gradient of the penalty after a move by (0.5, 0.5):", new_model.weight.grad[0].numpy().round(4))

# %% [markdown]
# ### The equation as a training loop
#
# Nothing about the equation needs a library. This loop writes the penalty out and lets autograd differentiate it.

# %%
x_b, y_b = task_b.data.inputs, task_b.data.targets
theta_star, F = belief.centre, belief.precision.values

by_hand = models.copy(model_a)
optimizer = torch.optim.SGD(by_hand.parameters(), lr=1.0, momentum=0.9)
for _ in range(200):
    optimizer.zero_grad()
    penalty = lam / 2 * sum((F[name] * (p - theta_star[name]) ** 2).sum() for name, p in by_hand.named_parameters())
    (binary_cross_entropy_with_logits(by_hand(x_b), y_b) + penalty).backward()
    optimizer.step()

assert torch.allclose(by_hand.weight[0], ends["EWC"], atol=1e-3)
print("by hand", by_hand.weight.detach()[0].numpy().round(4), "  learn(...)", ends["EWC"].numpy().round(4))

# %% [markdown]
# A loop of your own takes any method with two more lines. The optimiser's step hooks do the rest, so the body of the loop stays as it is:
#
# ```diff
#   optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
# + guard = retain.attach(method, model, optimizer, task_b)
#   for _ in range(200):
#       optimizer.zero_grad()
#       binary_cross_entropy_with_logits(model(x_b), y_b).backward()
#       optimizer.step()
# + guard.consolidate()
# ```
#
# The last line takes task B into the belief, ready for a third task.

# %%
method = methods.EWC(strength=1)
method.consolidate(model_a, task_a)

attached = models.copy(model_a)
optimizer = torch.optim.SGD(attached.parameters(), lr=1.0, momentum=0.9)
guard = retain.attach(method, attached, optimizer, task_b)
for _ in range(200):
    optimizer.zero_grad()
    binary_cross_entropy_with_logits(attached(x_b), y_b).backward()
    optimizer.step()
guard.consolidate()

assert torch.allclose(attached.weight[0], ends["EWC"], atol=1e-3)
assert method.belief.n == task_a.n + task_b.n and torch.equal(method.belief.centre["weight"], attached.weight)
print("attached", attached.weight.detach()[0].numpy().round(4), f"  the belief now stands on {method.belief.n:g} samples")

# %% [markdown]
# ## Part 3. MNIST, then Fashion-MNIST
#
# One network with ten outputs learns the ten digits and then, with the same ten outputs, ten kinds of clothing. The data are the embedded
# subsets. The split of Fashion-MNIST into training and test images is our own, so its numbers are not directly comparable with
# published ones.

# %%
print(mnist, "\n" + mnist.note)
print(fashion, "\n" + fashion.note)


# %%
def network() -> nn.Module:
    """The same initial weights every time."""
    return models.MLP(784, 256, 256, 10, seed=0)


SETTINGS = {"epochs": 3, "batch_size": 64, "optimizer": "momentum", "lr": 0.1, "schedule": "cosine", "seed": 0, "consolidate_last": False}

plain = learn(network(), [mnist, fashion], methods.Plain(), **SETTINGS)
held = learn(network(), [mnist, fashion], methods.EWC(strength=300, pull="proximal"), **SETTINGS)
assert plain.rows[1] == held.rows[1]  # the same network after MNIST

for name, result in (("Plain training", plain), ("EWC, strength 300", held)):
    table = result.table()
    table.title = f"{name}: test accuracy, %"
    display(table)

# %%
assert plain.accuracy[2, 0] < 0.4  # MNIST is lost
assert held.accuracy[2, 0] > 0.8 and held.accuracy[2, 1] > plain.accuracy[2, 1] - 0.03  # MNIST is kept, Fashion-MNIST is learned
for name, result in (("plain", plain), ("EWC", held)):
    print(f"{name:5s}  MNIST {100 * result.accuracy[2, 0]:.1f} %  Fashion-MNIST {100 * result.accuracy[2, 1]:.1f} %  forgetting {result.forgetting:.3f}")

# %%
figure = plain.plot()
figure.suptitle("Plain training: MNIST in epochs 1 to 3, Fashion-MNIST in epochs 4 to 6")
figure

# %%
figure = held.plot()
figure.suptitle("EWC, strength 300: MNIST in epochs 1 to 3, Fashion-MNIST in epochs 4 to 6")
figure

# %% [markdown]
# One seed is one run. For a comparison that is to be trusted, several seeds and their standard error are needed, and the strength has to be
# chosen on validation data (`Task.hold_out`), not on the test data shown here.

# %% [markdown]
# ### What a strength is in other people's units
#
# Published code often writes `loss + importance * sum(F * (theta - theta_star)**2)`, without the half and without $n/m$. Comparing with the
# equation at the top, $\text{importance} = \lambda / 2 = \text{strength} \cdot n / (2m)$. The published tutorial [2] uses an importance of 1000; with
# as many old as new samples that is a strength of 2000.

# %%
assert strength_from_importance(1000, n=60_000, m=60_000) == 2000
assert strength_from_importance(150, n=mnist.n, m=fashion.n) == 300  # the strength above

belief = held.method.belief  # what is known after MNIST
change = {name: p.detach() - belief.centre[name] for name, p in held.model.named_parameters()}
theirs = 150 * sum(float((belief.precision.values[name] * change[name] ** 2).sum()) for name in change)
ours = 300 * held.method.energy(held.model) / fashion.n
assert np.isclose(theirs, ours, rtol=1e-4)
print(f"penalty at the end: {theirs:.5f} with importance 150, {ours:.5f} with strength 300")

# %% [markdown]
# ### The pull as a proximal step
#
# `pull="gradient"` adds $\lambda F (\theta - \theta^*)$ to the gradient. On a quadratic, gradient descent with momentum $\beta$ diverges in a
# direction of curvature $c$ once $\text{lr} \cdot c > 2 (1 + \beta)$, and the curvature of the penalty is $\lambda F_j$. `pull="proximal"`
# solves for the penalty exactly after each step, so no strength makes it diverge.

# %%
stiffest = max(float(f.max()) for f in belief.precision.values.values())
limit = 2 * (1 + 0.9) / (SETTINGS["lr"] * stiffest * belief.n / fashion.n)
assert 300 < limit < 20_000
print(f"largest F_j = {stiffest:.4f}: at lr = {SETTINGS['lr']} the gradient form is stable up to a strength of about {limit:.0f}")

# %% [markdown]
# ### Why 300 and not 1
#
# In Part 1 the Bayesian strength of 1 gave the joint answer. Here it protects almost nothing:

# %%
strengths = [1.0, 10.0, 100.0, 300.0, 1000.0]
after_mnist = network()
after_mnist.load_state_dict(belief.centre)
tradeoff = {}
for value in strengths:
    if value == 300:
        tradeoff[value] = held.accuracy[2]
        continue
    method = methods.EWC(strength=value, pull="proximal")
    method.consolidate(after_mnist, mnist)
    tradeoff[value] = learn(models.copy(after_mnist), [fashion], method, watch=[mnist, fashion], **SETTINGS).accuracy[1]
assert tradeoff[1.0][0] < 0.5 and tradeoff[100.0][0] > 0.8

cells = [["plain", *(f"{100 * a:.1f}" for a in plain.accuracy[2])], *([f"{s:g}", *(f"{100 * a:.1f}" for a in tradeoff[s])] for s in strengths)]
Table("Test accuracy at the end, by strength", ["strength", "MNIST %", "Fashion-MNIST %"], cells)

# %% [markdown]
# To find the reason, walk in a straight line from $\theta^*$ to the end of plain training, $\theta^* + t d$, and compare three things:
#
# - the **true** rise of the mean loss on MNIST,
# - the quadratic with the **full** Fisher, $\frac{t^2}{2} d^\top F d$,
# - the quadratic with the **diagonal**, $\frac{t^2}{2} \sum_j F_j d_j^2$, which is what EWC charges at strength 1.
#
# The full matrix of this network would have more than $7 \cdot 10^{10}$ entries, but $d^\top F d$ needs only the directional derivative
# $v_i = J_i d$ of the logits: for the softmax $d^\top F d = \frac1n \sum_i \operatorname{Var}_{k \sim p_i}(v_{ik})$.

# %%
weights = sum(p.numel() for p in after_mnist.parameters())
assert weights**2 > 7e10
images, digits = mnist.data.inputs, mnist.data.targets
names = list(belief.centre)
centre = tuple(belief.centre[name] for name in names)
Weights = dict[str, torch.Tensor]


def outputs_at(*values: torch.Tensor) -> torch.Tensor:
    """Logits of all training images as a function of the weights."""
    return functional_call(after_mnist, dict(zip(names, values, strict=True)), (images,))


def full_quadratic(d: Weights) -> float:
    """d' F d with the full exact Fisher."""
    f, v = torch.autograd.functional.jvp(outputs_at, centre, tuple(d[name] for name in names))
    p = f.softmax(1)
    return float(((p * v**2).sum(1) - (p * v).sum(1) ** 2).mean())


def diagonal_quadratic(d: Weights) -> float:
    """The same with the diagonal alone."""
    return belief.precision.quadratic(d)


@torch.no_grad()
def true_rise(d: Weights) -> float:
    """By how much the mean loss on the MNIST training data rises from theta* to theta* + d."""
    there = outputs_at(*(belief.centre[name] + d[name] for name in names))
    return float(cross_entropy(there, digits)) - loss_at_centre


loss_at_centre = float(cross_entropy(outputs_at(*centre).detach(), digits))
to_plain = {name: p.detach() - belief.centre[name] for name, p in plain.model.named_parameters()}
g = torch.Generator().manual_seed(0)
at_random = {name: 0.01 * torch.randn(c.shape, generator=g) for name, c in belief.centre.items()}
full, diagonal = full_quadratic(to_plain), diagonal_quadratic(to_plain)
ratio = {"towards plain training's end": full / diagonal, "in a random direction": full_quadratic(at_random) / diagonal_quadratic(at_random)}
assert ratio["towards plain training's end"] > 50 and 0.5 < ratio["in a random direction"] < 2
for name, value in ratio.items():
    print(f"full / diagonal {name}: {value:.2f}")

# %%
steps = np.geomspace(0.03, 1, 12)
rises = [true_rise({name: float(t) * d for name, d in to_plain.items()}) for t in steps]
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
ax.loglog(steps, rises, "o-", color="black", markersize=4, label="true rise of the loss on MNIST")
ax.loglog(steps, steps**2 * full / 2, color=ORANGE, label="full Fisher, strength 1")
ax.loglog(steps, steps**2 * diagonal / 2, color=BLUE, label="diagonal Fisher, strength 1")
ax.loglog(steps, 300 * steps**2 * diagonal / 2, "--", color=BLUE, label="diagonal Fisher, strength 300")
ax.set(xlabel=r"$t$ along the line from $\theta^*$ ($t = 0$) to the end of plain training ($t = 1$)", ylabel="nats per sample")
ax.set_title("What moving away costs, and what EWC charges")
ax.legend(fontsize=9)
plt.show()
small_step = slice(0, 3)
assert np.allclose(rises[small_step], (steps**2 * full / 2)[small_step], rtol=0.35)  # near theta* the full Fisher is right

# %% [markdown]
# Near $\theta^*$ the full Fisher predicts the loss well. The diagonal undercharges by a factor of more than fifty, because training on B moves many
# weights **together**, in directions in which the products $F_{ij} d_i d_j$ add up. In a random direction they cancel, and the diagonal is right.
# A strength of some hundreds makes up for this on average. It is a repair of the diagonal approximation, not a law: other networks and
# tasks need other values, which is why the strength is chosen on validation data. Exercise 2 shows the same effect with two parameters.

# %% [markdown]
# ## Exercises
#
# 1. **The norm of the Fisher.** Is the norm of the Fisher larger for a trained than for an untrained network? Follow it through training under
#    each label rule. Look at the trace too, and explain the curve of `predicted`.
# 2. **Moving two weights together.** Compute the full $2 \times 2$ Fisher of the two-parameter model on task B. What does the diagonal ignore?
#    Find a move of both weights that is cheap and one that is expensive, and learn B first and A second with the diagonal and with the full matrix.
# 3. **Flat valleys.** $F_j = 0$ means that EWC lets $\theta_j$ move freely. Does it mean that task A does not mind, however far it moves?
#
# The answers follow.

# %% [markdown]
# ### Answer 1. The norm of the Fisher
#
# We train slowly enough to watch, and measure on the first 1000 training images after some epochs.

# %%
checkpoints = [0, 1, 2, 4, 8, 16]
norms: dict[str, list[float]] = {rule: [] for rule in RULES}
traces: dict[str, list[float]] = {rule: [] for rule in RULES}
factors = []
subset = (images[:1000], digits[:1000])
walker = network()
for since, epoch in pairwise([0, *checkpoints]):
    if epoch > since:
        learn(walker, [mnist], epochs=epoch - since, batch_size=128, optimizer="momentum", lr=0.02, seed=epoch, consolidate_last=False)
    for rule in RULES:
        values = torch.cat([f.flatten().double() for f in retain.fisher(walker, subset, labels=rule).values()])
        norms[rule].append(float(values.norm()))
        traces[rule].append(float(values.sum()))
    with torch.no_grad():  # the last layer in closed form: the mean of p_k (1 - p_k) h_j^2
        hidden = walker.layers[:-1](subset[0].flatten(1))
        p = walker.layers.fc3(hidden).softmax(1)
        answer, reaction = (p * (1 - p)).sum(1), hidden.square().sum(1)
        last = float(retain.fisher(walker, subset)["layers.fc3.weight"].sum())
        assert np.isclose(last, float((answer * reaction).mean()), rtol=1e-3)
        factors.append([epoch, float((walker(subset[0]).argmax(1) == subset[1]).float().mean()), float(answer.mean()), float(reaction.mean()), last])
        if epoch == 0:
            favourite = float(p.argmax(1).bincount().max() / len(p))

cells = [[str(epoch), f"{100 * accuracy:.1f}", f"{a:.3f}", f"{r:.1f}", f"{total:.2f}"] for epoch, accuracy, a, r, total in factors]
Table(
    "Last layer: trace of F = mean of (doubt x reaction)",
    ["epochs", "training accuracy, %", "doubt: mean of sum p(1-p)", "reaction: mean |h|^2", "trace"],
    cells,
)

# %%
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
for ax, values, title in ((axes[0], norms, "Norm: root of the sum of squares"), (axes[1], traces, "Trace: sum")):
    for rule, color in zip(RULES, (BLUE, PURPLE, GREEN, ORANGE), strict=True):
        ax.plot(range(len(checkpoints)), values[rule], "o-", color=color, markersize=4, label=rule)
    ax.set(xlabel="epochs of training (0: untrained)", title=title, yscale="log")
    ax.set_xticks(range(len(checkpoints)), checkpoints)
axes[0].set_ylabel("of the diagonal Fisher")
axes[1].legend(fontsize=9)
plt.show()

peak = int(np.argmax(norms["exact"]))
assert 0 < peak < len(checkpoints) - 1  # up first, then down
assert norms["exact"][peak] > 3 * norms["exact"][0] and norms["exact"][-1] < norms["exact"][peak] / 3
assert traces["exact"][-1] > 3 * traces["exact"][0] and norms["exact"][-1] < 2 * norms["exact"][0]  # the trace is above its start, the norm is not
assert norms["predicted"][-1] < norms["predicted"][0] / 3  # under "predicted" the trained network's norm is the smaller one
assert abs(traces["predicted"][0] / traces["exact"][0] - 1) < 0.1 and norms["predicted"][0] > 2 * norms["exact"][0]
assert favourite > 0.5
print(f"untrained: {100 * favourite:.0f} % of the images get the same predicted class")

# %% [markdown]
# **There is no single answer.** A squared gradient is a product of two things, and the table shows both for the last layer, where the product
# is exact:
#
# - the *doubt* at the outputs, $\sum_k p_k (1 - p_k)$, which falls as the network becomes sure of its answers, and
# - the *reaction* of the outputs to the weights, here $\lVert h \rVert^2$ of the hidden layer, which grows as the network learns features.
#
# Early in training the reaction grows faster and the exact Fisher rises; later the doubt falls faster and the Fisher falls. Whether "trained"
# is above "untrained" depends on when training stopped, and on the measure: at the end of this run the exact trace is still far above its
# first value, while the norm, which looks mostly at the few largest entries, is back near where it began. The published tutorial [2] asks
# for this comparison and expects the trained network to have the larger norm. That is a statement about a stage of training.
#
# **Under `predicted` the norm of the trained network ends well below that of the untrained one.** One could read this as "the trained weights
# do not matter", and it would be wrong. The gradient at the label that the network itself finds most probable vanishes as the network becomes
# certain: the square falls like $\varepsilon^2$, where the Fisher falls like $\varepsilon$. A small value says that the network is sure, not
# that its weights are free to move. The value of the untrained network is special as well. Its trace agrees with the exact rule, but it
# predicts the same class for nearly all images, so the squares pile up on the weights of one output and the norm is large.

# %% [markdown]
# ### Answer 2. Moving two weights together
#
# For two weights the quadratic is
#
# $$
# \delta^\top F \delta = F_{11} \delta_1^2 + F_{22} \delta_2^2 + 2 F_{12} \, \delta_1 \delta_2 .
# $$
#
# The diagonal drops the last term. Its sign depends on the signs of $\delta_1$ and $\delta_2$. If $F_{12} > 0$, moving both weights the same way
# costs more than the diagonal says, and moving them opposite ways costs less. So the answer to "should one penalise moving two weights together where
# $F_{ij}$ is high?" is yes for the same direction, and for opposite directions one should give a rebate.

# %%
model_b = models.copy(model_a)
nn.init.zeros_(model_b.weight)
learn(model_b, [task_b], **FULL_BATCH)
theta_b = model_b.weight.detach()[0].clone()
full_b, diagonal_b = full_fisher(task_b, theta_b), retain.fisher(model_b, task_b)["weight"][0]
assert torch.allclose(full_b.diag(), diagonal_b, rtol=1e-4)
print("full Fisher on task B at its minimum:\n", full_b.numpy().round(4))

cells, cost = [], {}
for name, direction in (("together, (1, 1)", (1.0, 1.0)), ("opposite, (1, -1)", (1.0, -1.0))):
    delta = 0.5 * torch.tensor(direction)
    whole, only_diagonal = float(delta @ full_b @ delta) / 2, float(diagonal_b @ delta**2) / 2
    rise = float(loss(task_b, theta_b + delta) + loss(task_b, theta_b - delta)) / 2 - float(loss(task_b, theta_b))
    cost[name] = whole / only_diagonal, whole, rise
    cells.append([name, f"{whole:.4f}", f"{only_diagonal:.4f}", f"{whole / only_diagonal:.2f}", f"{rise:.4f}"])
(together, _, _), (opposite, _, _) = cost.values()
assert together > 1.5 and opposite < 0.2
assert all(abs(whole - rise) < 0.2 * rise for _, whole, rise in cost.values())
Table(
    "Cost of a move by 0.5 in both weights, nats per sample",
    ["direction", "full F", "diagonal", "full / diagonal", "true rise (mean of both signs)"],
    cells,
)

# %% [markdown]
# Now B first, then A, with strength 1. The valley of B runs along $(1, -1)$, which no diagonal can describe. The loop below uses the full matrix.

# %%
diagonal_ewc = methods.EWC(strength=1)
diagonal_ewc.consolidate(model_b, task_b)
with_diagonal = models.copy(model_b)
learn(with_diagonal, [task_a], diagonal_ewc, **FULL_BATCH)

with_full = models.copy(model_b)
optimizer = torch.optim.SGD(with_full.parameters(), lr=1.0, momentum=0.9)
for _ in range(200):
    optimizer.zero_grad()
    delta = with_full.weight[0] - theta_b
    penalty = task_b.n / task_a.n * (delta @ full_b @ delta) / 2
    (binary_cross_entropy_with_logits(with_full(task_a.data.inputs), task_a.data.targets) + penalty).backward()
    optimizer.step()

second = {"diagonal": with_diagonal.weight.detach()[0], "full": with_full.weight.detach()[0], "joint": ends["joint"]}
both = {name: float(loss(task_a, t) + loss(task_b, t)) for name, t in second.items()}
assert both["full"] - both["joint"] < 0.1 * (both["diagonal"] - both["joint"])
for name, t in second.items():
    print(f"{name:8s} ends at {t.numpy().round(2)}, loss on A + loss on B = {both[name]:.4f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.9), layout="constrained", sharey=True)
axis_1, axis_2 = torch.linspace(-0.4, 5.4, 117), torch.linspace(-2.2, 3.0, 105)
grid = torch.stack(torch.meshgrid(axis_1, axis_2, indexing="xy"), dim=-1)
levels = np.array([0.01, 0.05, 0.15])
for ax, name, matrix in ((axes[0], "diagonal", diagonal_b.diag()), (axes[1], "full", full_b)):
    surface = loss(task_b, grid).numpy()
    ax.contour(axis_1, axis_2, surface - float(loss(task_b, theta_b)), levels=levels, colors=ORANGE, linewidths=1)
    ax.contour(axis_1, axis_2, loss(task_a, grid).numpy() - float(loss(task_a, theta_a)), levels=levels, colors=GREY, linewidths=1)
    delta = grid - theta_b
    quadratic = torch.einsum("...i,ij,...j->...", delta, matrix, delta).numpy() / 2
    ax.contour(axis_1, axis_2, quadratic, levels=levels, colors=BLUE, linewidths=1.2, linestyles="--")
    ax.annotate("", second[name], theta_b, arrowprops={"arrowstyle": "-|>", "color": BLUE, "linewidth": 2.2, "shrinkA": 0, "shrinkB": 0})
    ax.plot(*theta_b, "o", color="black")
    ax.annotate(r"$\theta_B$", theta_b, (-8, -10), textcoords="offset points", ha="right", va="center", fontsize=12)
    ax.plot(*ends["joint"], "*", color="black", markersize=11)
    ax.set(xlabel=r"$\theta_1$", title=f"B, then A: EWC with the {name} Fisher")
    ax.set_aspect("equal")
axes[0].set_ylabel(r"$\theta_2$")
for color, style, text in ((ORANGE, "-", "loss on B"), (GREY, "-", "loss on A"), (BLUE, "--", "quadratic around B's minimum")):
    axes[1].plot([], [], color=color, linestyle=style, label=text)
axes[1].plot([], [], "*", color="black", markersize=11, linestyle="", label="joint training")
figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
figure.suptitle("Contours at 0.01, 0.05 and 0.15 nats above the minimum")
plt.show()

# %% [markdown]
# The diagonal quadratic is nearly round: it charges the cheap direction too much and the expensive one too little. The full quadratic follows the valley
# and the end is close to the joint minimum. A network cannot store the full matrix. Kronecker-factored and low-rank
# approximations keep part of it; a larger strength on the diagonal, as in Part 3, is the crude remedy.

# %% [markdown]
# ### Answer 3. Flat valleys
#
# No. $F$ is measured at one place, $\theta^*$, and describes the curvature there. It does not know where a valley ends. Two cases:
#
# - **Left, a small $F_j$.** In the two-parameter model we move $\theta_2$ alone, the weight that A hardly holds, and compare the true loss with the quadratic.
# - **Right, $F_j = 0$.** In the MNIST network of Part 3 we switch off one hidden unit, by lowering its bias until it fires on no training image. All
#   gradients through the unit are zero, so the Fisher of its bias is exactly zero. Then we raise the bias again.

# %%
switched = models.copy(after_mnist)
with torch.no_grad():
    layers = switched.layers
    below = layers.relu1(layers.fc1(images.flatten(1)))  # what the second hidden layer sees
    highest = layers.fc2(below).amax(0)
    unit = int(highest.argmin())  # the least active unit
    layers.fc2.bias[unit] -= highest[unit] + 1.0  # now its largest input over all images is -1
    bias = float(layers.fc2.bias[unit])
for rule in RULES:
    found = retain.fisher(switched, mnist, labels=rule)
    assert found["layers.fc2.bias"][unit] == 0 and not found["layers.fc2.weight"][unit].any() and not found["layers.fc3.weight"][:, unit].any()


@torch.no_grad()
def loss_with_bias(shift: float) -> float:
    """Mean loss on the MNIST training data with the unit's bias moved."""
    switched.layers.fc2.bias[unit] = bias + shift
    value = float(cross_entropy(layers.fc3(layers.relu2(layers.fc2(below))), digits))
    switched.layers.fc2.bias[unit] = bias
    return value


holder = methods.EWC(strength=300)
holder.consolidate(switched, mnist)
far = models.copy(switched)
far.layers.fc2.bias.data[unit] += 60
assert holder.energy(far) == 0  # EWC charges nothing for the move, at any strength

shifts = np.array([0, 0.5, 1, 2, 4, 8, 12, 16, 24, 32, 40, 50, 60])
unit_rise = np.array([loss_with_bias(float(s)) for s in shifts]) - loss_with_bias(0.0)
assert np.all(unit_rise[shifts < 1] == 0)  # the valley is exactly flat until the unit wakes
assert unit_rise[-1] > 0.05  # and then it ends

valley = torch.linspace(-40, 40, 201)
along_valley = theta_a + torch.stack([torch.zeros_like(valley), valley], dim=1)
valley_rise = loss(task_a, along_valley) - loss(task_a, theta_a)
valley_quadratic = fisher_a[1] * valley**2 / 2

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
left.plot(valley, valley_rise, color="black", label="true rise of the loss on A")
left.plot(valley, valley_quadratic, "--", color=BLUE, label=r"quadratic, $\frac{1}{2} F_2 \delta^2$")
left.set(xlabel=r"$\delta$, move of $\theta_2$ from $\theta_A$", ylabel="nats per sample", title=f"A small entry, $F_2$ = {float(fisher_a[1]):.4f}")
left.legend(fontsize=9)
right.plot(shifts, unit_rise, "o-", color="black", markersize=4, label="true rise of the loss on MNIST")
right.plot(shifts, 0 * shifts, "--", color=BLUE, label=r"quadratic, $F_j = 0$")
right.axvline(1, color=GREY, linestyle=":", linewidth=1)
right.annotate("the unit wakes", (1, 0.55), xycoords=("data", "axes fraction"), xytext=(5, 0), textcoords="offset points", color=GREY, fontsize=9)
right.set(xlabel="move of the unit's bias", ylabel="nats per sample", title="A zero entry: the bias of a silent unit")
right.legend(fontsize=9)
plt.show()

near, edge = valley.abs() < 2, valley.abs() == 40
assert torch.allclose(valley_rise[near], valley_quadratic[near], atol=2e-3)  # right where it was measured
assert bool((valley_rise[edge] < 0.7 * valley_quadratic[edge]).all())  # far away the true loss grows more slowly
print(f"60 units along a direction with F = 0 cost {unit_rise[-1]:.3f} nats per sample, {mnist.n * unit_rise[-1]:.0f} nats over the training data")

# %% [markdown]
# On the right the loss is exactly flat until the unit wakes, and EWC, which charges nothing, cannot see the edge coming. The error goes the other way too: on
# the left the quadratic is right near $\theta_A$ and too large far away, because the logistic loss grows only linearly. Both follow from $F$ being a
# local measure that is taken once. It is not measured again on the way, since the data of A are no longer there.
#
# Some zeros do last. A pixel that is black in every training image has no influence on the training loss, whatever its weights are:

# %%
always_black = (images.flatten(1).amax(0) == 0).nonzero()[:, 0]
assert len(always_black) > 0 and not belief.precision.values["layers.fc1.weight"][:, always_black].any()
painted = models.copy(after_mnist)
painted.layers.fc1.weight.data[:, always_black] = 1000.0
with torch.no_grad():
    assert torch.allclose(painted(images), after_mnist(images), atol=1e-4)
    share = float((fashion.data.inputs.flatten(1)[:, always_black] > 0).any(1).float().mean())
print(f"{len(always_black)} pixels are black in all MNIST training images; {100 * share:.0f} % of the Fashion-MNIST images use at least one of them")

# %% [markdown]
# Nothing in $F$ tells these two kinds of zero apart.
#
# ## References
#
# 1. Kirkpatrick et al. 2017, *Overcoming catastrophic forgetting in neural networks*, PNAS 114, https://arxiv.org/abs/1612.00796.
#    On the sequence of three or more tasks: Huszár 2018, https://arxiv.org/abs/1712.03847.
# 2. C. Lam 2022, *intro_continual_learning*, a tutorial notebook under the MIT licence.
# 3. Li, Grandvalet and Davoine 2018, *Explicit inductive bias for transfer learning with convolutional networks*, https://arxiv.org/abs/1802.01483.
# 4. On label rules: Kunstner, Balles and Hennig 2019, *Limitations of the empirical Fisher approximation*, https://arxiv.org/abs/1905.12558;
#    van de Ven 2025, *On the computation of the Fisher information in continual learning*, https://arxiv.org/abs/2502.11756.
# 5. Data: LeCun, Cortes and Burges, *MNIST*; Xiao, Rasul and Vollgraf 2017, *Fashion-MNIST*, https://arxiv.org/abs/1708.07747.
