import functools

import keras
from keras import ops

from keras_smat._backend import jit
from keras_smat._backend import map_chunks
from keras_smat._backend import vjp


class WeightSpace:
    """The part of a learner that runs its backbone on any list of weights.

    It reads `backbone`, `head`, `max_images_per_chunk`, `_state` (variables of
    the backbone that no task changes), `_tunable` and `_programs`.
    """

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
