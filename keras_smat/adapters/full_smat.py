import keras
from keras import ops

from keras_smat import functional as F
from keras_smat.adapters.gradient import GradientAdapter
from keras_smat.layers.hard_concrete_mask import ClipLogits


@keras.saving.register_keras_serializable("keras_smat")
class FullSMATFineTune(GradientAdapter):
    """Tunes the delta, the masks and the hypernetwork of SMAT on the support.

    The whole learner instead of the merged weights: each step merges the
    experts anew, as at test time. The learner itself stays as it is. Needs
    the memory of a training step, `num_experts` times that of
    `FullFineTune`. Where scores are rounded at test time (`eval_scores="hard"`)
    no gradient reaches the hypernetwork, which then stays.

    Args:
        learning_rate: float, of all parts; 0 leaves the weights as they are.
            Defaults to `1e-4`.
        steps: int. Defaults to `50`.
        weight_decay: float, decoupled. Defaults to `0.0`.
        augment: bool, whether the support is augmented. Defaults to `True`.
        seed: int, of the augmentation. Defaults to `0`.
        selection: see `Adapter`.

    Example:

    ```python
    adapter = keras_smat.FullSMATFineTune(learning_rate=1e-4, steps=2)
    model = learner.build_classifier(images, labels, adapter=adapter)
    ```

    Reference: SMAT appendix C.2, row 4 of table 4.
    """

    def __init__(
        self,
        learning_rate=1e-4,
        steps=50,
        weight_decay=0.0,
        augment=True,
        seed=0,
        selection=None,
    ):
        super().__init__(
            learning_rate, steps, weight_decay, augment, seed, selection
        )

    def check(self, learner):
        if not hasattr(learner, "experts"):
            raise ValueError(
                "FullSMATFineTune needs a learner with experts, such as "
                f"`SMAT`. Received: {type(learner).__name__}"
            )

    def start(self, learner, x, weights):
        parameters = [
            ops.stop_gradient(ops.convert_to_tensor(v.value))
            for v in _tuned(learner)
        ]

        def prototypes(x):
            return learner.prototypes(learner.pretrained_weights, x)

        # The hypernetwork's input does not change from step to step.
        return parameters, learner.compiled_call(
            "pretrained_prototypes", prototypes, x
        )

    def merge(self, learner, parameters, context):
        tuned = {id(v): p for v, p in zip(_tuned(learner), parameters)}
        with keras.StatelessScope(
            # All of them: in nested scopes what is not mapped falls back to
            # its stored value.
            state_mapping=[
                (v, tuned.get(id(v), v.value)) for v in learner.variables
            ]
        ):
            logits = learner.hypernetwork(*context)
            merging_weights = F.normalize_scores(learner.scores(logits))
            return learner.experts.merge(merging_weights)

    def project(self, learner, parameters):
        return [
            v.constraint(p) if isinstance(v.constraint, ClipLogits) else p
            for v, p in zip(_tuned(learner), parameters)
        ]


def _tuned(learner):
    return (
        learner.experts.trainable_variables
        + learner.hypernetwork.trainable_variables
    )
