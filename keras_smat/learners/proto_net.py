import keras

from keras_smat.learners.meta_learner import MetaLearner


@keras.saving.register_keras_serializable("keras_smat")
class ProtoNet(MetaLearner):
    """Nearest class prototypes on one set of backbone weights.

    Untrained, it is the frozen pretrained baseline. With `trainable=True` and
    `fit` it is PMF: the whole backbone is meta-tuned on episodes. PMF as
    published trains the scale of the logits too: `learn_scale=True`.

    Args:
        backbone: `keras.Model` from images (N, H, W, C) to features (N, D).
        trainable: bool, whether `fit` tunes the backbone. Defaults to
            `False`.
        **kwargs: arguments of `MetaLearner`.

    Example:

    ```python
    frozen = keras_smat.ProtoNet(backbone)
    pmf = keras_smat.ProtoNet(backbone, trainable=True)
    pmf.compile(**keras_smat.recipes.get("recommended", pmf, total_steps=100))
    pmf.fit(train_episodes)
    ```

    Reference: Snell et al., NeurIPS 2017; Hu et al., "Pushing the Limits of
    Simple Pipelines for Few-Shot Learning" (PMF), CVPR 2022.
    """

    def __init__(self, backbone, trainable=False, **kwargs):
        super().__init__(backbone, **kwargs)
        if not trainable:
            self.freeze_backbone()
        self.trains_backbone = bool(trainable)
        self.built = True

    def adapt(self, x, training=False):
        return self.pretrained_weights

    def get_config(self):
        config = super().get_config()
        config["trainable"] = self.trains_backbone
        return config
