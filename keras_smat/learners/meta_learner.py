import copy
import inspect
import json

import keras
from keras import ops

from keras_smat import functional as F
from keras_smat._backend import EpisodicTrainer
from keras_smat.checks import check_integer
from keras_smat.checks import check_positive
from keras_smat.files import replacing
from keras_smat.layers.prototype_head import PrototypeHead
from keras_smat.learners import training_data
from keras_smat.learners.backbone_copy import Owned
from keras_smat.learners.backbone_copy import clone_backbone
from keras_smat.learners.backbone_copy import freeze
from keras_smat.learners.backbone_copy import freeze_statistics
from keras_smat.learners.task_models import TaskModels
from keras_smat.learners.weight_space import WeightSpace


class MetaLearner(WeightSpace, TaskModels, EpisodicTrainer):
    """Base of all learners: a task is a list of weight tensors.

    A subclass writes `adapt`, which gives the backbone's weights for a task,
    and may write `encode_task` and `compute_episode_loss`. Embedding,
    prototypes, logits, training, evaluation and export are shared.

    The learner owns a clone of the backbone, weights included, and leaves the
    given one untouched. Batch normalisation in it always runs on its moving
    statistics: statistics of an episode would mix support, query and padding.

    Args:
        backbone: `keras.Model` from images (N, H, W, C) to features (N, D);
            see `keras_smat.feature_backbone`.
        max_way: int, the largest number of classes in an episode, W. Logits
            always have W columns. Defaults to `50`.
        distance: `"cosine"` or `"euclidean"`. Defaults to `"cosine"`.
        logit_scale: float. Defaults to `10.0`.
        learn_scale: bool, whether the scale is trained. Defaults to `False`.
        max_images_per_chunk: int. More images than this are embedded in
            chunks that are computed again in the backward pass, so that
            memory stays bounded. Defaults to `128`.
        **kwargs: `keras.Model` arguments.

    Call arguments:
        x: dict of `support_images` (S, H, W, C), `support_labels` (S,), with
            -1 for padding, and `query_images` (Q, H, W, C).
        training: bool. Defaults to `False`.

    Returns (call):
        Tensor of logits of shape (Q, W).

    Reference: Snell et al., NeurIPS 2017 (prototypes).
    """

    def __init__(
        self,
        backbone,
        max_way=50,
        distance="cosine",
        logit_scale=10.0,
        learn_scale=False,
        max_images_per_chunk=128,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.backbone = clone_backbone(backbone)
        # As it is before any of its layers is frozen; as a text, since Keras
        # empties configs that it builds models from.
        self._backbone_config = json.dumps(
            keras.saving.serialize_keras_object(self.backbone)
        )
        self.max_way = check_integer("max_way", max_way, 1)
        self.max_images_per_chunk = check_integer(
            "max_images_per_chunk", max_images_per_chunk, 1
        )
        check_positive("logit_scale", logit_scale)
        self.head = PrototypeHead(
            distance, logit_scale, learn_scale, dtype=self.dtype_policy
        )
        weights = self.backbone.weights
        known = {id(w) for w in weights}
        # Dropout seeds and the like: mapped in every scope, never adapted.
        self._state = tuple(
            v for v in self.backbone.variables if id(v) not in known
        )
        # What a task may change, by position in `backbone.weights`.
        self._tunable = tuple(i for i, w in enumerate(weights) if w.trainable)
        self._trains_backbone = True
        freeze_statistics(self.backbone)
        self._programs = {}

    def freeze_backbone(self):
        """Nothing of the backbone trains, whatever `trainable` is set to."""
        self._trains_backbone = False
        freeze(self.backbone)

    @property
    def trainable(self):
        return super().trainable

    @trainable.setter
    def trainable(self, value):
        keras.Model.trainable.fset(self, value)
        if not hasattr(self, "_trains_backbone"):
            return  # Keras sets it first in its own constructor.
        # It reached all layers: what was frozen must be so again.
        freeze_statistics(self.backbone)
        if not self._trains_backbone:
            freeze(self.backbone)

    @property
    def compute_dtype(self):
        """That of the variables: the layers inside cast for themselves.

        Else Keras would hand out half-precision weights in `call`, and what a
        task adds to them would be rounded away.
        """
        return self.variable_dtype

    @property
    def tunable(self):
        """Positions in `backbone.weights` of what a task may change."""
        return self._tunable

    @property
    def image_size(self):
        """Tuple (H, W) of the images; `None` if the backbone takes any."""
        size = tuple(self.backbone.input_shape[1:3])
        return None if None in size else size

    @property
    def pretrained_weights(self):
        """The backbone's own weights: list of tensors."""
        return [ops.convert_to_tensor(w.value) for w in self.backbone.weights]

    def encode_task(self, x):
        """Merging weights (M,) of a task; `None` where there are none.

        Args:
            x: dict, see the class. Only the support is read.
        """
        return None

    def adapt(self, x, training=False):
        """The backbone's weights for a task.

        Args:
            x: dict, see the class. Only the support is read.
            training: bool. Defaults to `False`.

        Returns:
            List of tensors, aligned with `backbone.weights`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `adapt(x, training)`."
        )

    def prototypes(self, weights, x, training=False):
        """Tuple of class prototypes (W, D) and which are present (W,)."""
        features = self.embed(weights, x["support_images"], training)
        return F.class_prototypes(features, x["support_labels"], self.max_way)

    def query_logits(self, weights, x, training=False):
        """Logits of the queries from prototypes of the support.

        Args:
            weights: list of tensors, aligned with `backbone.weights`.
            x: dict, see the class.
            training: bool. Defaults to `False`.

        Returns:
            Tensor of shape (Q, W); absent classes have a large negative.
        """
        prototypes, present = self.prototypes(weights, x, training)
        features = self.embed(weights, x["query_images"], training)
        return self.head(features, prototypes, present)

    def call(self, x, training=False):
        return self.query_logits(self.adapt(x, training), x, training)

    def compute_output_spec(self, x, training=False):
        return keras.KerasTensor(
            (x["query_images"].shape[0], self.max_way), self.head.logit_dtype
        )

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Cross-entropy of the queries (stock `evaluate` calls this)."""
        return F.cross_entropy(y_pred, y, sample_weight)

    def compute_episode_loss(self, x, y, sample_weight=None, training=True):
        """Loss of one episode, on any backend.

        Args:
            x: dict, see the class.
            y: int tensor of shape (Q,).
            sample_weight: optional tensor of shape (Q,), 0 for padding.
                Defaults to `None`.
            training: bool. Defaults to `True`.

        Returns:
            Tuple `(loss, logits)`: a scalar and a tensor of shape (Q, W).
        """
        logits = self(x, training=training)
        return F.cross_entropy(logits, y, sample_weight), logits

    def finish_step(self):
        """State that moves after the optimizer; nothing by default."""

    def epoch_logs(self):
        """Figures that `fit` adds to the logs of an epoch."""
        return {}

    def compile(
        self, optimizer="sgd", metrics=None, weighted_metrics=None, **kwargs
    ):
        """As in Keras; the loss is the learner's own.

        Args:
            optimizer: see `keras.Model.compile`. Defaults to `"sgd"`.
            metrics: list, counted like `weighted_metrics`, since padded
                queries must not count. Defaults to `None`.
            weighted_metrics: list. Defaults to `["accuracy"]` where no
                metric is given.
            **kwargs: other arguments of `keras.Model.compile`.
        """
        if kwargs.pop("loss", None) is not None:
            raise ValueError(
                "A learner brings its own loss: leave `loss` out of "
                "`compile`, or override `compute_episode_loss`."
            )
        counted = []
        for name, given in (
            ("metrics", metrics),
            ("weighted_metrics", weighted_metrics),
        ):
            if not isinstance(given, list | tuple | None):
                raise ValueError(
                    f"Expected `{name}` as a list. Received: {name}={given!r}"
                )
            counted += given or []
        super().compile(
            optimizer=optimizer,
            weighted_metrics=counted or ["accuracy"],
            **kwargs,
        )

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:
            config = {k: v for k, v in config.items() if k in _COMPILE_KEYS}
        return config

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        if getattr(self, "optimizer", None) is not None:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, *args, **kwargs):
        """As in Keras, on an `EpisodeDataset`.

        The epoch is handed to the data, so that episode i of epoch e does not
        depend on what ran before: `shuffle` has no effect on episodes, and
        with `steps_per_epoch` every epoch has its first so many.
        """
        if not self.trainable_variables:
            raise ValueError(
                f"{type(self).__name__} has nothing to train: it is used as "
                "it is. `ProtoNet(backbone, trainable=True)` trains the "
                "backbone (PMF)."
            )
        call = inspect.signature(super().fit).bind(x, *args, **kwargs)
        return super().fit(**training_data.prepare(self, call.arguments))

    def evaluate(self, x=None, *args, **kwargs):
        """As in Keras, on an `EpisodeDataset`; padded queries never count."""
        if not self.compiled:
            raise ValueError(
                "`evaluate` needs a learner that is compiled: call "
                "`compile()`. `keras_smat.evaluate_few_shot` takes one as it "
                f"is. Received: {type(self).__name__}, not compiled"
            )
        if not kwargs.get("_use_cached_eval_dataset"):
            training_data.check(self, x, "x")
        return super().evaluate(training_data.feed(x), *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """Logits of queries.

        Args:
            x: one episode's dict: logits (Q, W); or an `EpisodeDataset`: the
                rows of all episodes one after the other, as in stock Keras.
            *args, **kwargs: as in Keras.

        Returns:
            Array of logits.
        """
        if isinstance(x, dict):
            training_data.check_episode(self, x)
            return ops.convert_to_numpy(self.predict_on_batch(x))
        training_data.check(self, x, "x")
        return super().predict(training_data.feed(x), *args, **kwargs)

    def save(self, filepath, overwrite=True, **kwargs):
        """As in Keras; an interruption leaves the file that was there."""
        if not overwrite or kwargs.get("zipped") is False:
            return super().save(filepath, overwrite=overwrite, **kwargs)
        with replacing(filepath) as temporary:
            super().save(temporary, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """As in Keras; an interruption leaves the file that was there."""
        if not overwrite or kwargs.get("max_shard_size") is not None:
            return super().save_weights(filepath, overwrite, **kwargs)
        with replacing(filepath) as temporary:
            super().save_weights(temporary, **kwargs)

    def parameter_counts(self):
        """How many numbers it takes to store the learner.

        Sparse experts count as (value, position) pairs, twice their non-zero
        entries, and dense ones as their values: SMAT appendix C.3.

        Returns:
            Dict of ints: `backbone`, `experts`, `hypernetwork` and `total`.
        """
        count = self.backbone.count_params()
        return {
            "backbone": count,
            "experts": 0,
            "hypernetwork": 0,
            "total": count,
        }

    def _seed_states(self):
        """Random states, which Keras itself does not write to files."""
        return list(self._state)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for i, state in enumerate(self._seed_states()):
            store[f"seed_{i}"] = state

    def load_own_variables(self, store):
        own = {k: store[k] for k in store.keys()}
        for i, state in enumerate(self._seed_states()):
            value = own.pop(f"seed_{i}", None)
            if value is not None:
                state.assign(value)
        super().load_own_variables(own)

    def get_config(self):
        config = super().get_config()
        config.update(
            backbone=json.loads(self._backbone_config),
            max_way=self.max_way,
            distance=self.head.distance,
            logit_scale=self.head.scale,
            learn_scale=self.head.learn_scale,
            max_images_per_chunk=self.max_images_per_chunk,
        )
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        backbone = keras.saving.deserialize_keras_object(
            copy.deepcopy(config.pop("backbone")), custom_objects=custom_objects
        )
        return cls(Owned(backbone), **config)


_COMPILE_KEYS = (
    "optimizer",
    "weighted_metrics",
    "run_eagerly",
    "steps_per_execution",
    "jit_compile",
)
