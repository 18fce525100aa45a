"""What PyTorch and TensorFlow have in common."""

import keras
from keras import ops


def map_chunks(function, weights, state, images, size):
    """Applies `function` to chunks of images, in bounded memory.

    Each chunk is computed again in the backward pass.

    Args:
        function: pure callable, (weights, state, images) -> (tensor, state).
        weights: list of tensors.
        state: list of tensors, handed from chunk to chunk.
        images: tensor of shape (N, ...).
        size: int, images per chunk; the last chunk can be smaller.

    Returns:
        Tuple of the outputs (N, ...) and the last state.
    """
    # The weights are arguments: gradients of what a recomputed function
    # closes over are lost on TensorFlow.
    function, outputs = keras.remat(function), []
    for start in range(0, images.shape[0], size):
        chunk = images[start : start + size]
        output, state = function(weights, state, chunk)
        outputs.append(output)
    return ops.concatenate(outputs), state
