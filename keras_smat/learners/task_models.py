import numpy as np
from keras import ops

from keras_smat import functional as F
from keras_smat.calibration import fit_temperature
from keras_smat.data.episode import check_support
from keras_smat.learners.backbone_copy import clone_backbone
from keras_smat.learners.training_data import check_channels


class TaskModels:
    """The part of a learner that turns one task into a plain Keras model."""

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
        check_adapter(self, adapter)
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
        check_adapter(self, adapter)
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
        check_channels(self, images.shape[-1], "support_images")
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

    def _with_weights(self, weights):
        backbone = clone_backbone(self.backbone)
        backbone.trainable = True
        backbone.set_weights([ops.convert_to_numpy(w) for w in weights])
        return backbone


def check_adapter(learner, adapter):
    """Refuses what is no adapter, or none for the learner, before it runs."""
    if adapter is None:
        return
    if isinstance(adapter, type) or not callable(adapter):
        raise ValueError(
            "Expected `adapter` as a callable (learner, x, weights) -> "
            "weights, such as `keras_smat.FullFineTune()`. "
            f"Received: adapter={adapter!r}"
        )
    if hasattr(adapter, "check"):
        adapter.check(learner)


def _check_temperature(temperature):
    if temperature == "auto":
        return
    number = isinstance(temperature, int | float | np.number)
    number = number and not isinstance(temperature, bool)
    if not number or not 0.0 < temperature < float("inf"):
        raise ValueError(
            "Expected `temperature` as a positive number or 'auto'. "
            f"Received: temperature={temperature!r}"
        )
