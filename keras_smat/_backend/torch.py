import keras
import torch

from keras_smat import functional as F
from keras_smat._backend.unrolled import map_chunks  # noqa: F401

# Masks are worked on in pieces that stay in the processor's cache.
_BLOCK = 32768


def feed(episodes):
    """Episodes as Keras shall read them."""
    return episodes


def jit(function):
    """PyTorch runs eagerly: the function itself."""
    return function


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
    weights = [
        w if w.requires_grad else w.detach().requires_grad_() for w in weights
    ]
    outputs = function(weights)
    outputs, *aux = outputs if has_aux else (outputs,)

    def pullback(cotangent):
        gradients = torch.autograd.grad(
            outputs,
            weights,
            cotangent.detach().expand(outputs.shape),
            retain_graph=True,
            allow_unused=True,
        )
        return [
            torch.zeros_like(w) if g is None else g.detach()
            for g, w in zip(gradients, weights)
        ]

    return outputs, *aux, pullback


class _MergeMasks(torch.autograd.Function):
    """`functional.merge_masks` in cache-sized blocks, gradient by formula.

    Automatic differentiation would keep five tensors of M x K numbers; this
    keeps none.
    """

    @staticmethod
    def forward(ctx, logits, weights, sizes, noise, beta):
        merged = torch.empty_like(logits[0])
        nonzero = torch.zeros_like(logits[:, 0])
        zeros = torch.zeros_like(logits[:, 0])
        for block in _blocks(logits.shape[1]):
            size = sizes[block] if torch.is_tensor(sizes) else sizes
            z = _masks(logits, noise, beta, block)[0]
            merged[block] = weights @ z
            zeros += ((z == 0) * size).sum(1)
            p = F.nonzero_probability(logits[:, block])
            nonzero += (p * size).sum(1)
        ctx.save_for_backward(logits, weights)
        ctx.rest = sizes, noise, beta
        ctx.mark_non_differentiable(zeros)
        return merged, nonzero, zeros

    @staticmethod
    def backward(ctx, merged_gradient, nonzero_gradient, _):
        logits, weights = ctx.saved_tensors
        sizes, noise, beta = ctx.rest
        logits_gradient = torch.empty_like(logits)
        weights_gradient = torch.zeros_like(weights)
        penalized = bool(nonzero_gradient.any())
        for block in _blocks(logits.shape[1]):
            z, s = _masks(logits, noise, beta, block)
            g = merged_gradient[block]
            weights_gradient += z @ g
            slope = s * (1 - s)
            slope *= ((z > 0) & (z < 1)) * ((F.ZETA - F.GAMMA) / beta)
            slope *= weights[:, None] * g
            if penalized:
                size = sizes[block] if torch.is_tensor(sizes) else sizes
                p = F.nonzero_probability(logits[:, block])
                slope += p * (1 - p) * nonzero_gradient[:, None] * size
            logits_gradient[:, block] = slope
        return logits_gradient, weights_gradient, None, None, None


def _blocks(total):
    return [slice(i, i + _BLOCK) for i in range(0, total, _BLOCK)]


def _masks(logits, noise, beta, block):
    piece = logits[:, block]
    if noise is not None:
        piece = piece + F.logit(noise[:, block])
    s = torch.sigmoid(piece / beta)
    return (s * (F.ZETA - F.GAMMA) + F.GAMMA).clamp_(0, 1), s


def merge_masks(logits, weights, sizes=1.0, beta=F.BETA, noise=None):
    return _MergeMasks.apply(logits, weights, sizes, noise, beta)


class EpisodicTrainer(keras.Model):
    """A `keras.Model` trained on `compute_episode_loss`, one step a task."""

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.zero_grad()
        loss, logits = self.compute_episode_loss(
            x, y, sample_weight, training=True
        )
        self.optimizer.scale_loss(loss).backward()
        variables = self.trainable_variables
        gradients = [
            torch.zeros_like(v.value) if v.value.grad is None else v.value.grad
            for v in variables
        ]
        with torch.no_grad():
            self.optimizer.apply(gradients, variables)
            self.finish_step()
            self._loss_tracker.update_state(
                loss.detach(), sample_weight=len(x["query_images"])
            )
            return self.compute_metrics(x, y, logits, sample_weight)
