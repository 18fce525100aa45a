import keras

from keras_smat.adapters.gradient import GradientAdapter
from keras_smat.experts import matches

NORMALISATIONS = (
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.GroupNormalization,
    keras.layers.BatchNormalization,
)


@keras.saving.register_keras_serializable("keras_smat")
class FullFineTune(GradientAdapter):
    """Tunes all weights of the backbone on the support with Adam.

    Each of the steps takes prototypes `p_c` of the clean support, through
    which the gradient flows, and lowers the cross-entropy of the augmented
    support against them. Works on any learner: it starts from the weights
    that the learner gives for the task.

    Args:
        learning_rate: float; 0 leaves the weights as they are. What is best
            depends on the domain: see `select_adapter`. Defaults to `1e-4`.
        steps: int. Defaults to `50`.
        include: list of str, regular expressions searched for in the weight
            paths: only these are tuned. Defaults to `None` (all).
        weight_decay: float, decoupled; the released code of SMAT has 0.01.
            Defaults to `0.0`.
        augment: bool, whether the support is augmented. Defaults to `True`.
        seed: int, of the augmentation. Defaults to `0`.
        selection: see `Adapter`.

    Example:

    ```python
    adapter = keras_smat.FullFineTune(learning_rate=1e-4, steps=2)
    model = learner.build_classifier(images, labels, adapter=adapter)
    ```

    Reference: SMAT section 3.3; Hu et al. (PMF), CVPR 2022, section 3.3.
    """

    def __init__(
        self,
        learning_rate=1e-4,
        steps=50,
        include=None,
        weight_decay=0.0,
        augment=True,
        seed=0,
        selection=None,
    ):
        super().__init__(
            learning_rate, steps, weight_decay, augment, seed, selection
        )
        self.include = include

    def positions(self, learner):
        """Positions in `learner.backbone.weights` of what is tuned."""
        paths = [w.path for w in learner.backbone.weights]
        chosen = matches(self.include, paths, "include", default=True)
        return [i for i in learner.tunable if chosen[i]]

    def check(self, learner):
        if not self.positions(learner):
            raise ValueError(
                f"{type(self).__name__} finds no weight to tune. Received: "
                f"backbone={learner.backbone.name!r} with "
                f"{len(learner.tunable)} weights that a task may change"
            )

    def start(self, learner, x, weights):
        return [weights[i] for i in self.positions(learner)], list(weights)

    def merge(self, learner, parameters, context):
        weights = list(context)
        for i, parameter in zip(self.positions(learner), parameters):
            weights[i] = parameter
        return weights


@keras.saving.register_keras_serializable("keras_smat")
class LayerNormTune(FullFineTune):
    """`FullFineTune` of the scales and shifts of normalisation layers alone.

    Some thousand numbers per task instead of millions. In convolutional
    networks these are the batch normalisations, whose statistics stay.

    Args:
        learning_rate: float; 0 leaves the weights as they are. Defaults to
            `1e-3`.
        steps: int. Defaults to `50`.
        weight_decay: float. Defaults to `0.0`.
        augment: bool, whether the support is augmented. Defaults to `True`.
        seed: int, of the augmentation. Defaults to `0`.
        selection: see `Adapter`.

    Example:

    ```python
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten()]
    layers.append(keras.layers.LayerNormalization())
    learner = keras_smat.ProtoNet(keras.Sequential(layers))
    adapter = keras_smat.LayerNormTune(learning_rate=1e-3, steps=2)
    model = learner.build_classifier(images, labels, adapter=adapter)
    ```

    Reference: Basu et al., "Strong Baselines for Parameter-Efficient
    Few-Shot Fine-Tuning", AAAI 2024.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        steps=50,
        weight_decay=0.0,
        augment=True,
        seed=0,
        selection=None,
    ):
        super().__init__(
            learning_rate, steps, None, weight_decay, augment, seed, selection
        )

    def positions(self, learner):
        tuned = {
            id(weight)
            for layer in learner.backbone._flatten_layers()
            if isinstance(layer, NORMALISATIONS)
            for weight in layer.weights
        }
        weights = learner.backbone.weights
        return [i for i in learner.tunable if id(weights[i]) in tuned]
