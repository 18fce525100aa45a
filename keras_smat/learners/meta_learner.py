import functools

import keras
import numpy as np
from keras import ops

from keras_smat import functional as F
from keras_smat._backend import EpisodicTrainer
from keras_smat._backend import jit
from keras_smat._backend import map_chunks
from keras_smat._backend import vjp
from keras_smat.calibration import fit_temperature
from keras_smat.data.episode import check_support
from keras_smat.files import replacing
from keras_smat.layers.checks import check_positive
from keras_smat.layers.prototype_head import PrototypeHead
from keras_smat.learners import training_data


class MetaLearner(EpisodicTrainer):
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
        # As it is before any of its layers is frozen.
        self._backbone_config = keras.saving.serialize_keras_object(
            self.backbone
        )
        self.max_way = check_positive("max_way", max_way)
        self.max_images_per_chunk = check_positive(
            "max_images_per_chunk", max_images_per_chunk
        )
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
        _freeze_statistics(self.backbone)
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
        _freeze_statistics(self.backbone)
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

    def compiled_call(self, key, function, *arguments):
        """`function(*arguments)`, compiled once per key and shapes.

        The program takes the learner's variables as they are at each call,
        detached. What the function assigns to them is lost, save the states
        of random generators.

        Args:
            key: hashable, tells the programs of this learner apart. The
                function of its first call is kept.
            function: callable of nested tensors; it reads the learner, and
                nothing else that changes.
            *arguments: nested arrays or tensors.

        Returns:
            What the function returns.
        """
        if key not in self._programs:

            def program(values, arguments):
                values = [ops.stop_gradient(v) for v in values]
                with keras.StatelessScope(
                    state_mapping=list(zip(self.variables, values))
                ) as scope:
                    outputs = function(*arguments)
                seeds = self._seed_states()
                return outputs, [scope.get_current_value(s) for s in seeds]

            self._programs[key] = jit(program)
        outputs, seeds = self._programs[key](
            [v.value for v in self.variables],
            keras.tree.map_structure(ops.convert_to_tensor, arguments),
        )
        for state, value in zip(self._seed_states(), seeds):
            state.assign(value)
        return outputs

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

    def embed(self, weights, images, training=False):
        """Features of images under given weights.

        Args:
            weights: list of tensors, aligned with `backbone.weights`.
            images: tensor of shape (N, H, W, C), values 0..255.
            training: bool, whether dropout is active. Defaults to `False`.

        Returns:
            Tensor of shape (N, D), at least float32.
        """
        images = ops.convert_to_tensor(images)
        state = [v.value for v in self._state]
        features, state = self._forward(weights, state, images, training)
        self._assign_state(state)
        return features

    def embed_with_pullback(self, weights, images, training=True):
        """`embed`, and a function to its detached weight gradients.

        Returns:
            Tuple `(features, pullback)`; `pullback(cotangent)` takes (N, D)
            and gives gradients aligned with `weights`, `None` where a task
            may not change the weight.
        """
        images = ops.convert_to_tensor(images)
        state = [v.value for v in self._state]

        def features_of(tunable):
            merged = list(weights)
            for i, weight in zip(self._tunable, tunable):
                merged[i] = weight
            return self._forward(merged, state, images, training)

        features, state, pull = vjp(
            features_of, [weights[i] for i in self._tunable], has_aux=True
        )
        self._assign_state(state)

        def pullback(cotangent):
            gradients = [None] * len(weights)
            for i, gradient in zip(self._tunable, pull(cotangent)):
                gradients[i] = gradient
            return gradients

        return features, pullback

    def _forward(self, weights, state, images, training):
        """Pure: (weights, state, images) -> (features, state)."""
        forward = functools.partial(self._forward_chunk, training)
        chunk = self.max_images_per_chunk
        if images.shape[0] <= chunk:
            return forward(weights, state, images)
        return map_chunks(forward, weights, state, images, chunk)

    def _forward_chunk(self, training, weights, state, images):
        variables = self.backbone.weights + list(self._state)
        with keras.StatelessScope(
            # Every variable is mapped: an unmapped one would fall back to its
            # stored value, on JAX a constant baked into the program.
            state_mapping=list(zip(variables, list(weights) + list(state)))
        ) as scope:
            features = self.backbone(images, training=training)
        state = [scope.get_current_value(v) for v in self._state]
        return ops.cast(features, self.head.logit_dtype), state

    def _assign_state(self, state):
        for variable, value in zip(self._state, state):
            variable.assign(value)

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
            optimizer: see `keras.Model.compile`.
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
        metrics = list(metrics or []) + list(weighted_metrics or [])
        super().compile(
            optimizer=optimizer,
            weighted_metrics=metrics or ["accuracy"],
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

    def fit(self, x=None, *args, callbacks=None, **kwargs):
        """As in Keras, on an `EpisodeDataset`.

        The epoch is handed to the data, so that episode i of epoch e does not
        depend on what ran before; `shuffle` has no effect on episodes.
        """
        if not self.trainable_variables:
            raise ValueError(
                f"{type(self).__name__} has nothing to train: it is used as "
                "it is. `ProtoNet(backbone, trainable=True)` trains the "
                "backbone (PMF)."
            )
        training_data.check(self, x, "x")
        if kwargs.get("validation_data") is not None:
            training_data.check(
                self, kwargs["validation_data"], "validation_data"
            )
        kwargs["shuffle"] = False
        callbacks = training_data.with_epochs(self, x, callbacks)
        return super().fit(x, *args, callbacks=callbacks, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        """As in Keras, on an `EpisodeDataset`; padded queries never count."""
        if not kwargs.get("_use_cached_eval_dataset"):
            training_data.check(self, x, "x")
        return super().evaluate(x, *args, **kwargs)

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
        return super().predict(x, *args, **kwargs)

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

    def export_backbone(self, support_images, support_labels, adapter=None):
        """A plain Keras backbone with the weights of one task.

        Args:
            support_images: uint8 array of shape (S, H, W, C).
            support_labels: int array of shape (S,), classes 0..way-1.
            adapter: optional `Adapter` that refines the weights. Defaults to
                `None`.

        Returns:
            `keras.Model`, images to features (N, D), independent of
            `keras_smat`.
        """
        x = self._support(support_images, support_labels)
        return self._with_weights(self.task_weights(x, adapter))

    def build_classifier(
        self,
        support_images,
        support_labels,
        class_names=None,
        adapter=None,
        temperature=1.0,
    ):
        """A plain Keras classifier for the classes of a support set.

        Args:
            support_images: uint8 array of shape (S, H, W, C).
            support_labels: int array of shape (S,), classes 0..way-1.
            class_names: optional list of str, one per class, kept as the
                model's `class_names`. Defaults to `None`.
            adapter: optional `Adapter` that refines the weights. Defaults to
                `None`.
            temperature: float that divides the logits, or `"auto"`: chosen
                on support images that are left out of their prototype in
                turn, so that the probabilities can be relied on. Classes with
                a single image take no part in that; if there is no other, it
                is 1. Weights that an adapter fitted to the support know its
                labels, and make the result too sure. Defaults to `1.0`, the
                logits that were trained.

        Returns:
            `keras.Model`, images (N, H, W, C) to class probabilities
            (N, way). It saves, loads and exports without `keras_smat`.

        Example:

        ```python
        model = learner.build_classifier(images, labels, temperature="auto")
        probabilities = model.predict(new_images)
        unsure = probabilities.max(axis=-1) < 0.7  # better ask someone
        model.save("classifier.keras")
        ```
        """
        x = self._support(support_images, support_labels)
        way = int(x["support_labels"].max()) + 1
        if class_names is not None and len(class_names) != way:
            raise ValueError(
                "`class_names` must have one name per class. Received: "
                f"{len(class_names)} names for {way} classes"
            )
        _check_temperature(temperature)
        weights = self.task_weights(x, adapter)
        features = self.compiled_call(
            "embed", self.embed, weights, x["support_images"]
        )
        labels = x["support_labels"]
        if temperature == "auto":
            temperature = self._fit_temperature(features, labels, way)
        prototypes, _ = F.class_prototypes(features, labels, way)
        model = self.head.classifier(
            self._with_weights(weights), prototypes, temperature
        )
        model.class_names = None if class_names is None else list(class_names)
        return model

    def _support(self, images, labels):
        images, labels = check_support(images, labels, self.image_size)
        if labels.max() >= self.max_way:
            raise ValueError(
                "`support_labels` must be below `max_way`. Received: label "
                f"{labels.max()}, max_way={self.max_way}"
            )
        return {"support_images": images, "support_labels": labels}

    def task_weights(self, x, adapter=None):
        """`adapt`, compiled, and refined by an adapter.

        Args:
            x: dict of `support_images` and `support_labels`, see the class.
            adapter: optional `Adapter`. Defaults to `None`.

        Returns:
            List of tensors without gradient, aligned with `backbone.weights`.
        """
        names = ("support_images", "support_labels")
        x = {name: ops.convert_to_tensor(x[name]) for name in names}
        weights = self.compiled_call("adapt", self.adapt, x)
        # Detached: PyTorch would record every forward pass from here on.
        weights = [ops.stop_gradient(w) for w in weights]
        if adapter is not None:
            weights = [ops.stop_gradient(w) for w in adapter(self, x, weights)]
        return weights

    def _fit_temperature(self, features, labels, way):
        """Temperature of the logits of images that are left out in turn."""
        logits, valid = self.head.leave_one_out(features, labels, way)
        shots = np.bincount(labels)
        if shots.max() < 2:
            return 1.0
        rows = ops.convert_to_numpy(valid) > 0
        return fit_temperature(ops.convert_to_numpy(logits)[rows], labels[rows])

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

    def _with_weights(self, weights):
        backbone = clone_backbone(self.backbone)
        backbone.trainable = True
        backbone.set_weights([ops.convert_to_numpy(w) for w in weights])
        return backbone

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
            backbone=self._backbone_config,
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
            config.pop("backbone"), custom_objects=custom_objects
        )
        return cls(_Owned(backbone), **config)


_COMPILE_KEYS = (
    "optimizer",
    "weighted_metrics",
    "run_eagerly",
    "steps_per_execution",
    "jit_compile",
)


def _check_temperature(temperature):
    if temperature == "auto":
        return
    number = isinstance(temperature, int | float | np.number)
    if not number or not 0.0 < temperature < float("inf"):
        raise ValueError(
            "Expected `temperature` as a positive number or 'auto'. "
            f"Received: temperature={temperature!r}"
        )


class _Owned:
    """A backbone that was made for the learner and needs no clone.

    While Keras loads a file, layers of equal config are shared objects: a
    clone would be tied to its original.
    """

    def __init__(self, backbone):
        self.backbone = backbone


def clone_backbone(backbone):
    """A new model of the same architecture and weights."""
    if isinstance(backbone, _Owned):
        return backbone.backbone
    if not isinstance(backbone, keras.Model) or not backbone.built:
        raise ValueError(
            "`backbone` must be a built `keras.Model` from images to features. "
            f"Received: {backbone!r}"
        )
    shape = getattr(backbone, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(
            "`backbone` must give features of shape (N, D): wrap it with "
            f"`keras_smat.feature_backbone`. Received: output shape {shape}"
        )
    try:
        clone = type(backbone).from_config(backbone.get_config())
    except (TypeError, ValueError):
        # A functional model with layers that nobody registered.
        clone = keras.models.clone_model(backbone)
    clone.set_weights(backbone.get_weights())
    return clone


def freeze(backbone):
    """Nothing of it trains."""
    backbone.trainable = False
    # On TensorFlow, Keras skips layers that are frozen already, although
    # `_freeze_statistics` left weights of theirs trainable.
    for weight in backbone.weights:
        weight.trainable = False


def _freeze_statistics(backbone):
    """Batch normalisation on moving statistics; scale and shift still tune."""
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            flags = [w.trainable for w in layer.weights]
            layer.trainable = False
            for weight, flag in zip(layer.weights, flags):
                weight.trainable = flag
