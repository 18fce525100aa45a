import keras
from keras import ops

from keras_smat.checks import check_choice
from keras_smat.checks import check_integer
from keras_smat.checks import check_number

CONSTRAINTS = ("measured", "expected")


@keras.saving.register_keras_serializable("keras_smat")
class SparsityController(keras.layers.Layer):
    """Dual ascent that holds every expert at a target share of zeros.

    Adds to the loss `sum_m w_m (lambda_m + gain * gap_m) (E[L0]_m - (1 -
    tau))`, where `gap_m = tau - sparsity_m`. Once per optimizer step the
    multipliers move by projected ascent, `lambda_m <- max(0, lambda_m + lr *
    a_m * gap_m)`, and are reset to 0 where the constraint is satisfied.

    The proportional term slows the masks down as they approach the target and
    brings them back when task gradients carry them past it: without it they
    drift, since a mask entry at 0 gets no task gradient. For the same reason
    the target may rise from 0 to tau first, so that tasks have a say in which
    entries go.

    Args:
        num_experts: int. M.
        target_sparsity: float in (0, 1), tau: the share of zeros per expert.
            Defaults to `0.9`.
        learning_rate: float, of the multipliers. Defaults to `2e-3`.
        gain: float, of the proportional term; 0 is the released behaviour.
            Defaults to `0.0`.
        constraint: `"measured"`: the share of exact zeros of the masks in
            use; `"expected"`: 1 - E[L0]. Defaults to `"measured"`.
        weight_by_score: bool. Whether the penalty of an expert is weighted
            by its merging weight in the task, `w_m = a_m`, else 1. The
            ascent is always weighted so. Defaults to `True`.
        project: bool, whether multipliers stay non-negative. Defaults to
            `True`.
        ramp_steps: int, optimizer steps until the target reaches tau, from 0
            along a cubic. Defaults to `0`: at once, as released.
        **kwargs: base layer arguments.

    Example:

    ```python
    controller = keras_smat.SparsityController(8, target_sparsity=0.9)
    ```

    Reference: SMAT equation 2 and algorithm 1; for the ramp, Zhu and Gupta,
    "To prune, or not to prune", 2017, equation 1.
    """

    def __init__(
        self,
        num_experts,
        target_sparsity=0.9,
        learning_rate=2e-3,
        gain=0.0,
        constraint="measured",
        weight_by_score=True,
        project=True,
        ramp_steps=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0.0 < target_sparsity < 1.0:
            raise ValueError(
                "`target_sparsity` must lie strictly between 0 and 1. "
                f"Received: target_sparsity={target_sparsity}"
            )
        self.num_experts = check_integer("num_experts", num_experts, 1)
        check_number("learning_rate", learning_rate)
        check_number("gain", gain)
        self.target_sparsity = target_sparsity
        self.learning_rate = learning_rate
        self.gain = gain
        self.constraint = check_choice("constraint", constraint, CONSTRAINTS)
        self.weight_by_score = weight_by_score
        self.project = project
        self.ramp_steps = ramp_steps
        self.build()

    def build(self, input_shape=None):
        def state(name, shape):
            return self.add_weight(
                name=name,
                shape=shape,
                initializer="zeros",
                trainable=False,
                autocast=False,
                dtype="float64"
                if self.variable_dtype == "float64"
                else "float32",
            )

        self.multipliers = state("multipliers", (self.num_experts,))
        # Sums over the tasks of one optimizer step.
        self._sparsity_sum = state("sparsity_sum", (self.num_experts,))
        self._ascent_sum = state("ascent_sum", (self.num_experts,))
        self._num_tasks = state("num_tasks", ())
        self._num_updates = state("num_updates", ())
        self._steps = state("steps", ())
        self.built = True

    def target(self):
        """The share of zeros asked for at this step."""
        if not self.ramp_steps:
            return self.target_sparsity
        steps = ops.convert_to_tensor(self._steps.value)
        left = 1.0 - ops.minimum(steps / self.ramp_steps, 1.0)
        return self.target_sparsity * (1.0 - left**3)

    def penalty(self, expected_nonzero, sparsity, merging_weights):
        """The Lagrangian term of one task.

        Args:
            expected_nonzero: tensor of shape (M,), E[L0] per expert.
            sparsity: tensor of shape (M,), the constrained share of zeros.
            merging_weights: tensor of shape (M,).

        Returns:
            Scalar tensor; its gradient reaches `expected_nonzero` alone.
        """
        target = self.target()
        gap = target - sparsity
        multipliers = ops.convert_to_tensor(self.multipliers.value)
        # A multiplier is reset before the loss where the mask satisfies it.
        weight = ops.where(gap < 0.0, 0.0, multipliers) + self.gain * gap
        if self.weight_by_score:
            weight = weight * merging_weights
        excess = expected_nonzero - (1.0 - target)
        return ops.sum(ops.stop_gradient(weight) * excess)

    def observe(self, sparsity, merging_weights):
        """Notes the sparsity (M,) and merging weights (M,) of one task."""
        sparsity = ops.stop_gradient(sparsity)
        ascent = ops.stop_gradient(merging_weights) * (self.target() - sparsity)
        self._sparsity_sum.assign_add(sparsity)
        self._ascent_sum.assign_add(ascent)
        self._num_tasks.assign_add(1.0)

    def update(self, tasks_per_step=1):
        """Moves the multipliers at every `tasks_per_step`-th call.

        It counts its calls, not the tasks observed: a loss that is computed
        outside of training must not shift it against the optimizer.
        """
        self._num_updates.assign_add(1.0)
        due = self._num_updates >= tasks_per_step
        count = ops.maximum(self._num_tasks, 1.0)
        sparsity = self._sparsity_sum / count
        current = ops.convert_to_tensor(self.multipliers.value)
        # The reset comes first, as released: unless projected, the ascent
        # then takes a satisfied multiplier a little below zero.
        moved = ops.where(sparsity > self.target(), 0.0, current)
        moved = moved + self.learning_rate * self._ascent_sum / count
        if self.project:
            moved = ops.maximum(moved, 0.0)
        self.multipliers.assign(ops.where(due, moved, current))
        self._steps.assign_add(ops.cast(due, self._steps.dtype))
        totals = (self._sparsity_sum, self._ascent_sum)
        for total in (*totals, self._num_tasks, self._num_updates):
            value = ops.convert_to_tensor(total.value)
            total.assign(ops.where(due, ops.zeros_like(value), value))

    def get_config(self):
        config = super().get_config()
        config.update(
            num_experts=self.num_experts,
            target_sparsity=self.target_sparsity,
            learning_rate=self.learning_rate,
            gain=self.gain,
            constraint=self.constraint,
            weight_by_score=self.weight_by_score,
            project=self.project,
            ramp_steps=self.ramp_steps,
        )
        return config
