import types

import keras
from keras import ops

from keras_smat import functional as F
from keras_smat.experts import ExpertBank
from keras_smat.layers.task_hypernetwork import TaskHypernetwork
from keras_smat.learners import expert_file
from keras_smat.learners.meta_learner import MetaLearner


class ExpertLearner(MetaLearner):
    """Base of learners that merge experts, one set of weights per task.

    The frozen backbone embeds the support; a hypernetwork turns the class
    prototypes into one logit per expert, `scores` these into scores, and an
    `ExpertBank` merges the experts in proportion. A subclass says what scores
    are, and what noise there is.

    Args:
        backbone: `keras.Model` from images (N, H, W, C) to features (N, D).
        arguments: dict, `locals()` of the subclass's constructor: what
            `get_config` returns, `readout` and `seed` among it.
        bank: dict of `ExpertBank` arguments.
        **kwargs: arguments of `MetaLearner`.
    """

    def __init__(self, backbone, arguments, bank, **kwargs):
        super().__init__(backbone, **kwargs)
        others = ("self", "backbone", "kwargs", "__class__")
        arguments = {k: v for k, v in arguments.items() if k not in others}
        # Read only, and so nothing that Keras wraps to track it.
        self._arguments = types.MappingProxyType(arguments)
        self.experts = ExpertBank(
            self.backbone,
            seed=arguments["seed"],
            dtype=self.dtype_policy,
            name="experts",
            **bank,
        )
        self.freeze_backbone()
        self.hypernetwork = TaskHypernetwork(
            self.experts.num_experts,
            arguments["readout"],
            dtype=self.head.logit_dtype,
            name="hypernetwork",
        )
        self.hypernetwork.build((self.max_way, self.backbone.output_shape[-1]))
        # Holds sparsity at a target, where a subclass has one.
        self.controller = None
        self.seed_generator = keras.random.SeedGenerator(arguments["seed"])

    def draw_noise(self, training=True):
        """Uniform noise of one task.

        Returns:
            Dict of `scores` (M,) and `masks` (M, K), each `None` where the
            settings ask for none.
        """
        return {"scores": None, "masks": None}

    def _uniform(self, shape):
        return keras.random.uniform(
            shape, dtype=self.head.logit_dtype, seed=self.seed_generator
        )

    def scores(self, logits, training=False, noise=None):
        """Scores of experts (M,) from their logits (M,).

        Args:
            logits: tensor of shape (M,).
            training: bool. Defaults to `False`.
            noise: optional uniform numbers of shape (M,). Defaults to `None`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement "
            "`scores(logits, training, noise)`."
        )

    @property
    def rounding(self):
        """Above which score an expert counts as on, where it is on or off."""
        return 0.5

    def expert_logits(self, x, training=False):
        """Logits of the experts (M,), and what the pretrained model sees.

        Returns:
            Tuple of the logits and of `(prototypes, present)`, see
            `prototypes`.
        """
        prototypes, present = self.prototypes(self.pretrained_weights, x)
        prototypes = ops.stop_gradient(prototypes)
        logits = self.hypernetwork(prototypes, present, training=training)
        return logits, (prototypes, present)

    def expert_scores(self, x):
        """Scores (M,) of a task before they are normalised, as at test time.

        Args:
            x: dict, see `MetaLearner`. Only the support is read.
        """
        noise = self.draw_noise(training=False)
        return self.scores(self.expert_logits(x)[0], False, noise["scores"])

    def encode_task(self, x):
        """Merging weights (M,) of a task, as used at test time.

        Args:
            x: dict, see `MetaLearner`. Only the support is read.
        """
        return F.normalize_scores(self.expert_scores(x))

    def _encode(self, x, training, noise):
        """Merging weights (M,), expert logits (M,), pretrained prototypes."""
        logits, pretrained = self.expert_logits(x, training)
        scores = self.scores(logits, training, noise["scores"])
        return F.normalize_scores(scores), logits, pretrained

    def adapt(self, x, training=False):
        return self._merge(x, training, self.draw_noise(training))

    def _merge(self, x, training, noise):
        merging_weights, _, _ = self._encode(x, training, noise)
        return self.experts.merge(merging_weights, training, noise["masks"])

    def parameter_counts(self):
        counts = super().parameter_counts()
        counts["experts"] = self.experts.count_stored()
        counts["hypernetwork"] = self.hypernetwork.count_params()
        counts["total"] = sum(v for k, v in counts.items() if k != "total")
        return counts

    def _seed_states(self):
        return super()._seed_states() + [self.seed_generator.state]

    def _expert_variables(self):
        """What `fit` changes, by a name that is the same in every run."""
        parts = [self.experts, self.hypernetwork, self.controller]
        return {
            f"{part.name}.{i}": variable
            for part in parts
            if part is not None
            for i, variable in enumerate(part.weights)
        }

    def save_experts(self, path):
        """Saves experts and hypernetwork, not the backbone.

        Args:
            path: str or path that ends in `.npz`; written atomically.
        """
        expert_file.save(
            path, self.backbone, self._expert_variables(), dict(self._arguments)
        )

    def load_experts(self, path):
        """Loads what `save_experts` wrote, onto the same backbone.

        Args:
            path: str or path.

        Raises:
            ValueError: if the file belongs to another backbone or to other
                arguments; names the first mismatch and changes nothing.
        """
        expert_file.load(path, self.backbone, self._expert_variables())

    def get_config(self):
        config = super().get_config()
        config.update(self._arguments)
        return config
