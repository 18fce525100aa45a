"""Adapters that take gradient steps on the support."""

import json

import keras
import numpy as np
from keras import ops

from keras_smat import functional as F
from keras_smat._backend import vjp
from keras_smat.adapters import augmentation
from keras_smat.adapters.adapter import Adapter
from keras_smat.checks import check_integer
from keras_smat.checks import check_number

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class GradientAdapter(Adapter):
    """Base of adapters that take steps of Adam on the support.

    Each step: prototypes of the clean support, with gradient; the
    cross-entropy of the augmented support against them; a step on what is
    tuned. Everything runs as at test time: no dropout, moving statistics.
    The step is compiled once per padded size of the support.

    A subclass says what is tuned (`start`) and how the backbone's weights
    follow from it (`merge`); `project` may bound it.

    Args:
        learning_rate: float; 0 leaves the weights as they are.
        steps: int. Defaults to `50`.
        weight_decay: float, decoupled, as in AdamW. Defaults to `0.0`.
        augment: bool, whether the support is augmented. Defaults to `True`.
        seed: int, of the augmentation and of initial values. Defaults to `0`.
        selection: see `Adapter`.
    """

    # What `select_adapter` tries, in units of the grid it is given.
    rate_unit = 1.0
    # Settings that are arguments of the compiled step, or no part of it.
    _FREE = ("learning_rate", "steps", "weight_decay", "seed", "selection")

    def __init__(
        self,
        learning_rate,
        steps=50,
        weight_decay=0.0,
        augment=True,
        seed=0,
        selection=None,
    ):
        super().__init__(selection)
        self.learning_rate = check_number("learning_rate", learning_rate)
        self.weight_decay = check_number("weight_decay", weight_decay)
        self.steps = check_integer("steps", steps, 0)
        self.seed = check_integer("seed", seed, 0)
        self.augment = bool(augment)

    def start(self, learner, x, weights):
        """What is tuned, and what else `merge` needs.

        Returns:
            Tuple of two lists of tensors, `(parameters, context)`.
        """
        raise NotImplementedError

    def merge(self, learner, parameters, context):
        """The backbone's weights for tuned parameters: list of tensors."""
        raise NotImplementedError

    def project(self, learner, parameters):
        """Parameters, moved to where they must lie after a step."""
        return parameters

    def __call__(self, learner, x, weights):
        self.check(learner)
        if self.learning_rate == 0.0 or self.steps == 0:
            return list(weights)
        parameters, context = self.start(learner, x, weights)
        moments = [ops.zeros(p.shape, _precise(p)) for p in parameters]
        state = (parameters, moments, moments)
        rates = np.array([self.learning_rate, self.weight_decay], "float32")
        images, labels = x["support_images"], x["support_labels"]

        def step(state, context, *arguments):
            return self._step(learner, state, context, *arguments)

        for i in range(self.steps):
            noise = augmentation.draw_noise(self.seed, i, images.shape[0])
            state = learner.compiled_call(
                (*self._key(), "step"), step, state, context, images, labels,
                noise, rates, np.float32(i + 1),
            )  # fmt: skip

        def merge(parameters, context):
            return self.merge(learner, parameters, context)

        return learner.compiled_call(
            (*self._key(), "merge"), merge, state[0], context
        )

    def loss(self, learner, parameters, context, images, labels, noise):
        """Cross-entropy of the augmented against the clean support."""
        weights = self.merge(learner, parameters, context)
        features = learner.embed(weights, images)
        prototypes, present = F.class_prototypes(
            features, labels, learner.max_way
        )
        if self.augment:
            augmented = augmentation.augment(images, noise)
            features = learner.embed(weights, augmented)
        logits = learner.head(features, prototypes, present)
        return F.cross_entropy(logits, labels, labels >= 0)

    def _step(self, learner, state, context, images, labels, noise, rates, t):
        parameters, first, second = state

        def loss(parameters):
            return self.loss(
                learner, parameters, context, images, labels, noise
            )

        value, pullback = vjp(loss, list(parameters))
        gradients = pullback(ops.ones_like(value))
        moved = [
            adam(*each, rates[0], rates[1], t)
            for each in zip(parameters, gradients, first, second)
        ]
        parameters, first, second = (list(part) for part in zip(*moved))
        return self.project(learner, parameters), first, second

    def _key(self):
        """Adapters with the same key share their compiled programs."""
        config = self.get_config()
        config = {k: v for k, v in config.items() if k not in self._FREE}
        return type(self), json.dumps(config, sort_keys=True, default=repr)


def adam(weight, gradient, first, second, rate, decay, step):
    """One step of Adam: the new weight, first and second moment.

    Args:
        weight: tensor.
        gradient: tensor of its shape.
        first: tensor of its shape, running mean of the gradient.
        second: tensor of its shape, running mean of its square.
        rate: scalar, the learning rate.
        decay: scalar, decoupled weight decay; 0 gives Adam, else AdamW.
        step: scalar, 1 for the first step.

    Returns:
        Tuple `(weight, first, second)`. Moments and arithmetic have at least
        single precision, whatever that of the weight.

    Reference: Kingma and Ba, ICLR 2015; Loshchilov and Hutter, ICLR 2019.
    """
    dtype = weight.dtype
    weight, gradient, rate, decay, step = (
        ops.cast(value, first.dtype)
        for value in (weight, gradient, rate, decay, step)
    )
    first = BETAS[0] * first + (1.0 - BETAS[0]) * gradient
    second = BETAS[1] * second + (1.0 - BETAS[1]) * ops.square(gradient)
    mean = first / (1.0 - BETAS[0] ** step)
    scale = ops.sqrt(second / (1.0 - BETAS[1] ** step)) + EPSILON
    moved = weight - rate * (mean / scale + decay * weight)
    return ops.cast(moved, dtype), first, second


def _precise(tensor):
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return dtype if dtype == "float64" else "float32"
