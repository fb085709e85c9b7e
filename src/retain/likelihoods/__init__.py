"""What an answer is worth: negative log likelihoods in nats, one observation model a file.

Every likelihood turns a model's outputs into nats, draws labels from the model, and knows a root of its Hessian with respect
to the outputs, which is all that training, curvature and evaluation need.
"""

from retain.likelihoods.base import Likelihood
from retain.likelihoods.bernoulli import Bernoulli
from retain.likelihoods.categorical import Categorical
from retain.likelihoods.gaussian import Gaussian
from retain.likelihoods.tokens import Tokens

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "Tokens"]
