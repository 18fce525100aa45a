import keras
import tensorflow as tf

from keras_smat._backend.unrolled import map_chunks  # noqa: F401
from keras_smat.functional import merge_masks  # noqa: F401


def jit(function):
    """One graph per combination of input shapes."""
    return tf.function(function, autograph=False)


def feed(episodes):
    """Episodes as Keras shall read them: a `tf.data` set without autotuning.

    Keras turns a `PyDataset` into one whose tuning thread sleeps for up to a
    minute at a time, and whose every epoch ends by waiting for it to wake.
    """
    spec = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype),
        episodes[0],
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: (episodes[i] for i in range(len(episodes))),
        output_signature=spec,
    )
    known = tf.data.experimental.assert_cardinality(len(episodes))
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.apply(known).prefetch(1).with_options(options)


def vjp(function, weights, has_aux=False):
    """Outputs, and detached vector-Jacobian products of the same forward.

    Args:
        function: pure callable, list of tensors -> tensor, or `(tensor, aux)`
            with `has_aux`.
        weights: list of tensors.
        has_aux: bool. Defaults to `False`.

    Returns:
        Tuple `(outputs, pullback)`. `outputs` stay differentiable in an
        enclosing gradient; `pullback(cotangent)` is a list of tensors without
        gradient, aligned with `weights`. With `has_aux`, `(outputs, aux,
        pullback)`.
    """
    weights = [tf.convert_to_tensor(w) for w in weights]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(weights)
        outputs = function(weights)
    outputs, *aux = outputs if has_aux else (outputs,)

    def pullback(cotangent):
        gradients = tape.gradient(
            outputs,
            weights,
            output_gradients=tf.broadcast_to(cotangent, tf.shape(outputs)),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        # Gathered rows (position tables) come as IndexedSlices: densify.
        return [tf.stop_gradient(tf.convert_to_tensor(g)) for g in gradients]

    return outputs, *aux, pullback


class EpisodicTrainer(keras.Model):
    """A `keras.Model` trained on `compute_episode_loss`, one step a task."""

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss, logits = self.compute_episode_loss(
                x, y, sample_weight, training=True
            )
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        gradients = tape.gradient(
            scaled,
            variables,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        self.optimizer.apply(
            [tf.convert_to_tensor(g) for g in gradients], variables
        )
        self.finish_step()
        self._loss_tracker.update_state(
            loss, sample_weight=tf.shape(x["query_images"])[0]
        )
        return self.compute_metrics(x, y, logits, sample_weight)

    def _compile_step(self, step):
        # Stock Keras traces with an unknown number of images, and its step
        # cannot be unrolled over chunks of them. Called on the batch itself,
        # the graph sees concrete shapes: one per (support, query) bucket.
        step = tf.autograph.experimental.do_not_convert(
            self._autoconvert_optionals(step)
        )
        if self.run_eagerly:
            return step
        return tf.function(step, jit_compile=self.jit_compile)

    def make_predict_function(self, force=False):
        if self.predict_function is not None and not force:
            return
        step = self._compile_step(self.predict_step)

        def function(batches):
            outputs = [step(batch) for batch in batches]
            return outputs[0] if len(outputs) == 1 else tf.concat(outputs, 0)

        self.predict_function = function

    def _make_function(self, step_function):
        step = self._compile_step(step_function)
        # A trace that creates the metrics would have to be traced again.
        build = self._autoconvert_optionals(
            lambda batch: self._symbolic_build(data_batch=batch)
        )

        def function(iterator):
            batch = next(iterator)
            build(batch)
            outputs = step(batch)
            for _ in range(self.steps_per_execution - 1):
                try:
                    outputs = step(next(iterator))
                except StopIteration:
                    break
            return outputs

        return function
