import math

import keras
import numpy as np
from keras import ops

from keras_smat.adapters.gradient import GradientAdapter
from keras_smat.checks import check_integer
from keras_smat.checks import check_number
from keras_smat.experts import matches
from keras_smat.experts import output_axes


@keras.saving.register_keras_serializable("keras_smat")
class LoRAFineTune(GradientAdapter):
    """Tunes a low-rank update of the query and value kernels on the support.

    A kernel becomes `W + (alpha / rank) * A @ B`, with A (inputs, rank) and B
    (rank, outputs); attention kernels (width, heads, size) count as matrices
    of heads x size outputs. A starts random and B at zero, hence from the
    learner's own weights. The update is added to the kernels, so the adapted
    backbone has the architecture and the speed of the original.

    Args:
        learning_rate: float; 0 leaves the weights as they are. Best rates are
            about ten times those of `FullFineTune`. Defaults to `1e-3`.
        steps: int. Defaults to `50`.
        rank: int. Defaults to `8`.
        alpha: float. Defaults to `32.0`.
        targets: list of str, regular expressions searched for in the weight
            paths; each must match a kernel. Defaults to
            `["query", "value"]`.
        weight_decay: float, decoupled. Defaults to `0.0`.
        augment: bool, whether the support is augmented. Defaults to `True`.
        seed: int, of A and of the augmentation. Defaults to `0`.
        selection: see `Adapter`.

    Example:

    ```python
    adapter = keras_smat.LoRAFineTune(steps=2, targets=["hidden"])
    model = learner.build_classifier(images, labels, adapter=adapter)
    ```

    Reference: Hu et al., "LoRA", ICLR 2022; SMAT section 4.
    """

    rate_unit = 10.0

    def __init__(
        self,
        learning_rate=1e-3,
        steps=50,
        rank=8,
        alpha=32.0,
        targets=("query", "value"),
        weight_decay=0.0,
        augment=True,
        seed=0,
        selection=None,
    ):
        super().__init__(
            learning_rate, steps, weight_decay, augment, seed, selection
        )
        self.rank = check_integer("rank", rank, 1)
        self.alpha = check_number("alpha", alpha)
        self.targets = [targets] if isinstance(targets, str) else list(targets)

    def check(self, learner):
        self._kernels(learner)

    def _kernels(self, learner):
        """Triples (position, inputs, outputs) of the kernels to update."""
        weights = learner.backbone.weights
        axes = output_axes(learner.backbone)
        kernels = [i for i in learner.tunable if id(weights[i]) in axes]
        paths = [weights[i].path for i in kernels]
        if not paths:
            raise ValueError(
                "LoRAFineTune needs kernels of layers. Received: "
                f"backbone={learner.backbone.name!r} without any"
            )
        chosen = matches(self.targets, paths, "targets")
        found = []
        for i in np.flatnonzero(chosen):
            shape = tuple(weights[kernels[i]].shape)
            cut = len(shape) - axes[id(weights[kernels[i]])]
            sides = math.prod(shape[:cut]), math.prod(shape[cut:])
            found.append((kernels[i], *sides))
        return found

    def start(self, learner, x, weights):
        rng = np.random.default_rng(self.seed)
        factors = []
        for i, inputs, outputs in self._kernels(learner):
            bound = math.sqrt(6.0 / inputs)  # He uniform, as in Keras
            a = rng.uniform(-bound, bound, (inputs, self.rank))
            dtype = keras.backend.standardize_dtype(weights[i].dtype)
            factors.append(ops.convert_to_tensor(a, dtype))
            factors.append(ops.zeros((self.rank, outputs), dtype))
        return factors, list(weights)

    def merge(self, learner, parameters, context):
        weights = list(context)
        pairs = zip(parameters[::2], parameters[1::2])
        for (i, *_), (a, b) in zip(self._kernels(learner), pairs):
            update = (self.alpha / self.rank) * ops.matmul(a, b)
            update = ops.reshape(update, weights[i].shape)
            weights[i] = weights[i] + update
        return weights
