import keras
from keras import ops

from keras_smat.learners.expert_learner import ExpertLearner


@keras.saving.register_keras_serializable("keras_smat")
class SoftMerge(ExpertLearner):
    """Dense experts with their own updates, merged by a softmax per task.

    The backbone's weights for a task are `theta_pre + sum_m a_m delta_m` with
    `a = softmax(h(support))`: SMEAR's soft merging of experts, brought to
    meta-tuning, with the hypernetwork of SMAT as its router. Trained on the
    query cross-entropy alone. Compared with SMAT, the experts are dense,
    share nothing and have no teacher: M times the backbone's parameters.

    Args:
        backbone: `keras.Model` from images (N, H, W, C) to features (N, D).
        num_experts: int. M. Defaults to `8`.
        include: list of str, patterns of the weights that get experts.
            Defaults to `None` (all).
        exclude: list of str, weights that get none. Defaults to `None`.
        readout: read-out of the hypernetwork, see `TaskHypernetwork`.
            Defaults to `"mean"`.
        expert_dropout: float in [0, 1), share of the experts that a training
            task does without. All updates start at zero: without it, an
            optimizer that ignores the scale of gradients moves them all
            alike. Defaults to `0.1`.
        seed: int, of the expert dropout. Defaults to `None`.
        **kwargs: arguments of `MetaLearner`.

    Example:

    ```python
    learner = keras_smat.SoftMerge(backbone, num_experts=4)
    recipe = keras_smat.recipes.get("recommended", learner, total_steps=1000)
    learner.compile(**recipe)
    learner.fit(train_episodes, validation_data=validation_episodes)
    ```

    Reference: Muqeeth et al., "Soft Merging of Experts with Adaptive
    Routing" (SMEAR), TMLR 2024; the SoftMerge row of SMAT's table 1.
    """

    def __init__(
        self,
        backbone,
        num_experts=8,
        include=None,
        exclude=None,
        readout="mean",
        expert_dropout=0.1,
        seed=None,
        **kwargs,
    ):
        arguments = dict(locals())
        bank = dict(
            num_experts=num_experts,
            shared_delta=False,
            sparse=False,
            include=include,
            exclude=exclude,
        )
        super().__init__(backbone, arguments, bank, **kwargs)
        if not 0.0 <= expert_dropout < 1.0:
            raise ValueError(
                "Expected `expert_dropout` in [0, 1). "
                f"Received: expert_dropout={expert_dropout!r}"
            )
        self.expert_dropout = expert_dropout
        self.built = True

    @property
    def rounding(self):
        """More than its equal share: scores sum to 1."""
        return 1.0 / self.experts.num_experts

    def draw_noise(self, training=True):
        noise = super().draw_noise(training)
        if training and self.expert_dropout:
            noise["scores"] = self._uniform((self.experts.num_experts,))
        return noise

    def scores(self, logits, training=False, noise=None):
        if noise is not None:
            kept = ops.convert_to_tensor(noise) >= self.expert_dropout
            # If all are dropped, all are kept.
            kept = ops.logical_or(kept, ops.logical_not(ops.any(kept)))
            logits = ops.where(kept, logits, ops.cast(-1e9, logits.dtype))
        return ops.softmax(logits)

    def compute_episode_loss(
        self, x, y, sample_weight=None, training=True, noise=None
    ):
        """As in `MetaLearner`, with noise to fix the sampling.

        Args:
            x: dict, see `MetaLearner`.
            y: int tensor of shape (Q,).
            sample_weight: optional tensor of shape (Q,). Defaults to `None`.
            training: bool. Defaults to `True`.
            noise: optional dict as `draw_noise` returns it. Defaults to
                `None`.
        """
        if noise is None:
            noise = self.draw_noise(training)
        weights = self._merge(x, training, noise)
        logits = self.query_logits(weights, x, training)
        loss = self.compute_loss(x, y, logits, sample_weight)
        return loss, logits
