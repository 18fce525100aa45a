import functools

import jax
import jax.numpy as jnp
import keras

from keras_smat import functional as F

jit = jax.jit


def feed(episodes):
    """Episodes as Keras shall read them."""
    return episodes


def merge_masks(logits, weights, sizes=1.0, beta=F.BETA, noise=None):
    """`functional.merge_masks` that keeps the logits alone for backward.

    Half of the experts at a time: XLA writes out several temporaries of the
    size of the logits, on CPUs as fast for half of them twice.
    """
    groups = 2 if len(logits) % 2 == 0 else 1

    def grouped(x):
        return x.reshape(groups, -1, *x.shape[1:])

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(merged, experts):
        part, expected, zeros = F.merge_masks(
            *experts[:2], sizes, beta, *experts[2:]
        )
        return merged + part, (expected, zeros)

    experts = (logits, weights) if noise is None else (logits, weights, noise)
    merged, (expected, zeros) = jax.lax.scan(
        step, jnp.zeros_like(logits[0]), tuple(map(grouped, experts))
    )
    return merged, expected.reshape(-1), zeros.reshape(-1)


def map_chunks(function, weights, state, images, size):
    """Applies `function` to chunks of images, in bounded memory.

    A loop of the compiler, not of Python: XLA would run unrolled chunks side
    by side, and on CPUs merges what `jax.checkpoint` computes twice.

    Args:
        function: pure callable, (weights, state, images) -> (tensor, state).
        weights: list of tensors.
        state: list of tensors, handed from chunk to chunk.
        images: tensor of shape (N, ...).
        size: int, images per chunk; the last chunk is filled with zeros.

    Returns:
        Tuple of the outputs (N, ...) and the last state.
    """
    total = images.shape[0]
    padding = [(0, -total % size)] + [(0, 0)] * (images.ndim - 1)
    chunks = jnp.pad(images, padding).reshape(-1, size, *images.shape[1:])

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(state, chunk):
        outputs, state = function(weights, state, chunk)
        return state, outputs

    state, outputs = jax.lax.scan(step, list(state), chunks)
    return outputs.reshape(-1, *outputs.shape[2:])[:total], state


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
    outputs, pull, *aux = jax.vjp(
        function, jax.lax.stop_gradient(weights), has_aux=has_aux
    )

    # One forward pass serves the pullback and the enclosing gradient.
    @jax.custom_vjp
    def attach(weights):
        return outputs

    attach.defvjp(lambda weights: (outputs, None), lambda _, g: pull(g))

    def pullback(cotangent):
        gradients = pull(jax.lax.stop_gradient(cotangent))[0]
        return jax.lax.stop_gradient(gradients)

    return attach(weights), *aux, pullback


class EpisodicTrainer(keras.Model):
    """A `keras.Model` trained on `compute_episode_loss`, one step a task."""

    def train_step(self, state, data):
        trainable, non_trainable, optimizer_variables, metrics = state
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

        def loss_and_state(trainable):
            with keras.StatelessScope(
                self._mapping(trainable, non_trainable)
                + list(zip(self.optimizer.variables, optimizer_variables))
            ) as scope:
                loss, logits = self.compute_episode_loss(
                    x, y, sample_weight, training=True
                )
                scaled = self.optimizer.scale_loss(loss)
            updated = _read(scope, self.non_trainable_variables)
            return scaled, (loss, logits, updated)

        (_, (loss, logits, non_trainable)), gradients = jax.value_and_grad(
            loss_and_state, has_aux=True
        )(trainable)
        trainable, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, gradients, trainable
        )
        with keras.StatelessScope(
            self._mapping(trainable, non_trainable)
        ) as scope:
            self.finish_step()
        non_trainable = _read(scope, self.non_trainable_variables)
        logs, metrics = self._update_metrics_variables(
            metrics, loss, x, y, logits, sample_weight
        )
        return logs, (trainable, non_trainable, optimizer_variables, metrics)

    def _mapping(self, trainable, non_trainable):
        return list(zip(self.trainable_variables, trainable)) + list(
            zip(self.non_trainable_variables, non_trainable)
        )


def _read(scope, variables):
    return [scope.get_current_value(v) for v in variables]
