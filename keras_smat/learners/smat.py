import keras
from keras import ops

from keras_smat import functional as F
from keras_smat._backend import vjp
from keras_smat.checks import check_choice
from keras_smat.checks import check_integer
from keras_smat.checks import check_number
from keras_smat.checks import check_positive
from keras_smat.learners.expert_learner import ExpertLearner
from keras_smat.sparsity import SparsityController

MASK_NOISES = ("none", "hard_concrete")
EVAL_SCORES = ("mean", "sample", "hard")


@keras.saving.register_keras_serializable("keras_smat")
class SMAT(ExpertLearner):
    """Sparse meta-tuning: sparse interpolated experts, merged per task.

    The frozen backbone embeds the support; a hypernetwork turns the class
    prototypes into merging weights `a`; the task's weights are
    `theta_pre + delta * sum_m a_m z_m`. Trained on the query cross-entropy,
    distillation to a dense teacher (the student after an unmasked gradient
    step on the query loss) and, optionally, to the pretrained model, with
    every expert held at a target share of zeros by dual ascent.

    The defaults are the "recommended" recipe;
    `recipes.learner_arguments("paper")` gives the released configuration.

    Args:
        backbone: `keras.Model` from images (N, H, W, C) to features (N, D).
        num_experts: int. M. Defaults to `8`.
        target_sparsity: float, share of zeros per expert; `None` leaves the
            experts dense. Defaults to `0.9`.
        granularity: mask structure, see `ExpertBank`. Defaults to
            `"element"`.
        shared_delta: bool, one delta for all experts. Defaults to `True`.
        include: list of str, patterns of the weights that get experts, such
            as `["mlp"]`. Defaults to `None` (all).
        exclude: list of str, weights that get none. Defaults to `None`.
        always_on: list of str, weights without masks. Defaults to `None`.
        mask_noise: `"none"` or `"hard_concrete"` (sampled in training).
            Defaults to `"none"`.
        eval_beta: float, mask temperature at test time; 1.0 as released.
            Defaults to `2/3`, as in training.
        mask_init_stddev: float. Defaults to `0.5`.
        constraint: `"measured"` or `"expected"` sparsity. Defaults to
            `"measured"`.
        multiplier_gain: float, see `SparsityController`. Defaults to `6.0`.
        weight_penalty_by_score: bool, whether the mask penalty is weighted by
            the merging weights. Defaults to `False`.
        project_multipliers: bool. Defaults to `True`.
        readout: read-out of the hypernetwork, see `TaskHypernetwork`.
            Defaults to `"mean"`.
        eval_scores: expert scores at test time: `"mean"`, `"sample"` or
            `"hard"` (rounded). Defaults to `"mean"`.
        temperature_start: float, of the Gumbel-sigmoid. Defaults to `5.0`.
        temperature_end: float. Defaults to `0.5`.
        temperature_steps: int, tasks until the end value is reached;
            `compile` can set another. Defaults to `18000`.
        logit_l2: float, penalty on the expert logits. Defaults to `1e-4`.
        inner_steps: int, gradient steps on the support before the queries, in
            training alone. Defaults to `0`.
        inner_lr: float. Defaults to `1e-3`.
        teacher_steps: int, gradient steps of the dense teacher; 0 for none.
            Defaults to `1`.
        teacher_lr: float. Defaults to `5e-3`.
        kd_weight: float in [0, 1], weight of distillation against the
            cross-entropy, which has the rest: all of it where nobody
            teaches. Defaults to `0.25`.
        kd_pretrained: float in [0, 1], share of the distillation that goes to
            the pretrained model. Defaults to `0.0`.
        kd_temperature: float. Defaults to `2.0`.
        delta_l2: float, half of which weighs |delta|^2. Defaults to `0.0`.
        split: bool. `False` pools support and query and uses the pool for
            both. Defaults to `True`.
        seed: int, of masks and score noise. Defaults to `None`.
        **kwargs: arguments of `MetaLearner`.

    Example:

    ```python
    learner = keras_smat.SMAT(backbone, num_experts=4, target_sparsity=0.9)
    recipe = keras_smat.recipes.get("recommended", learner, total_steps=1000)
    learner.compile(**recipe)
    learner.fit(train_episodes, validation_data=validation_episodes)
    ```

    Reference: Chen et al., ICML 2024 (https://arxiv.org/abs/2403.08477),
    section 3 and algorithm 1.
    """

    def __init__(
        self,
        backbone,
        num_experts=8,
        target_sparsity=0.9,
        granularity="element",
        shared_delta=True,
        include=None,
        exclude=None,
        always_on=None,
        mask_noise="none",
        eval_beta=2.0 / 3.0,
        mask_init_stddev=0.5,
        constraint="measured",
        multiplier_gain=6.0,
        weight_penalty_by_score=False,
        project_multipliers=True,
        readout="mean",
        eval_scores="mean",
        temperature_start=5.0,
        temperature_end=0.5,
        temperature_steps=18000,
        logit_l2=1e-4,
        inner_steps=0,
        inner_lr=1e-3,
        teacher_steps=1,
        teacher_lr=5e-3,
        kd_weight=0.25,
        kd_pretrained=0.0,
        kd_temperature=2.0,
        delta_l2=0.0,
        split=True,
        seed=None,
        **kwargs,
    ):
        arguments = dict(locals())
        bank = dict(
            num_experts=num_experts,
            granularity=granularity,
            shared_delta=shared_delta,
            sparse=target_sparsity is not None,
            include=include,
            exclude=exclude,
            always_on=always_on,
            eval_beta=eval_beta,
            init_stddev=mask_init_stddev,
        )
        super().__init__(backbone, arguments, bank, **kwargs)
        check_choice("mask_noise", mask_noise, MASK_NOISES)
        check_choice("eval_scores", eval_scores, EVAL_SCORES)
        check_number("kd_weight", kd_weight, 0.0, 1.0)
        check_number("kd_pretrained", kd_pretrained, 0.0, 1.0)
        check_positive("kd_temperature", kd_temperature)
        check_positive("temperature_start", temperature_start)
        check_positive("temperature_end", temperature_end)
        check_number("logit_l2", logit_l2)
        check_number("delta_l2", delta_l2)
        check_number("inner_lr", inner_lr)
        check_number("teacher_lr", teacher_lr)
        check_integer("inner_steps", inner_steps, 0)
        check_integer("teacher_steps", teacher_steps, 0)
        check_integer("temperature_steps", temperature_steps, 1)
        self.mask_noise = mask_noise
        self.eval_scores = eval_scores
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.temperature_steps = temperature_steps
        self.logit_l2 = logit_l2
        self.inner_steps = inner_steps
        self.inner_lr = inner_lr
        self.teacher_steps = teacher_steps
        self.teacher_lr = teacher_lr
        self.kd_weight = kd_weight
        self.kd_pretrained = kd_pretrained
        self.kd_temperature = kd_temperature
        self.delta_l2 = delta_l2
        self.split = split
        if target_sparsity is not None:
            self.controller = SparsityController(
                num_experts,
                target_sparsity,
                gain=multiplier_gain,
                constraint=constraint,
                weight_by_score=weight_penalty_by_score,
                project=project_multipliers,
                dtype=self.dtype_policy,
                name="controller",
            )
        self.tasks_seen = self.add_weight(
            name="tasks_seen",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
        )
        self.temperature = self.add_weight(
            name="temperature",
            shape=(),
            dtype=self.head.logit_dtype,
            initializer=keras.initializers.Constant(temperature_start),
            trainable=False,
            autocast=False,
        )
        self.built = True

    def compile(
        self,
        optimizer="sgd",
        multiplier_learning_rate=2e-3,
        temperature_steps=None,
        sparsity_steps=0,
        **kwargs,
    ):
        """As in Keras, with what else depends on the length of the run.

        Args:
            optimizer: see `keras.Model.compile`; `recipes.get` builds one
                optimizer per parameter group. Defaults to `"sgd"`.
            multiplier_learning_rate: float, of the dual ascent. Defaults to
                `2e-3`.
            temperature_steps: int, tasks until `temperature_end`. Defaults to
                `None` (the constructor's).
            sparsity_steps: int, optimizer steps until the target sparsity is
                asked for in full, see `SparsityController`. Defaults to `0`.
            **kwargs: arguments of `MetaLearner.compile`.
        """
        super().compile(optimizer=optimizer, **kwargs)
        if self.controller is not None:
            self.controller.learning_rate = check_number(
                "multiplier_learning_rate", multiplier_learning_rate
            )
            self.controller.ramp_steps = check_integer(
                "sparsity_steps", sparsity_steps, 0
            )
        if temperature_steps is not None:
            self.temperature_steps = check_integer(
                "temperature_steps", temperature_steps, 1
            )

    def draw_noise(self, training=True):
        noise = super().draw_noise(training)
        shape = self.experts.noise_shape
        if training or self.eval_scores == "sample":
            noise["scores"] = self._uniform(shape[:1])
        if training and self.mask_noise == "hard_concrete":
            noise["masks"] = self._uniform(shape)
        return noise

    def scores(self, logits, training=False, noise=None):
        temperature = ops.cast(self.temperature, logits.dtype)
        scores = F.gumbel_sigmoid(logits, temperature, noise)
        if not training and self.eval_scores == "hard":
            scores = ops.round(scores)
        return scores

    def compute_episode_loss(
        self, x, y, sample_weight=None, training=True, noise=None
    ):
        """Loss of one episode, on any backend.

        Args:
            x: dict, see `MetaLearner`.
            y: int tensor of shape (Q,).
            sample_weight: optional tensor of shape (Q,), 0 for padding.
                Defaults to `None`.
            training: bool. Defaults to `True`.
            noise: optional dict as `draw_noise` returns it, to fix the
                sampling. Defaults to `None`.

        Returns:
            Tuple `(loss, logits)`: a scalar and a tensor of shape (Q, W).
        """
        if not training:
            return super().compute_episode_loss(
                x, y, sample_weight, training=False
            )
        num_queries = y.shape[0]
        if not self.split:
            x, y, sample_weight = _pool(x, y, sample_weight)
        noise = self.draw_noise() if noise is None else noise
        merging_weights, expert_logits, pretrained = self._encode(
            x, True, noise
        )
        weights, expected, sparsity = self.experts.merge_with_statistics(
            merging_weights, True, noise["masks"]
        )
        loss, logits = self._query_loss(
            weights, pretrained, x, y, sample_weight
        )
        loss = loss + self.logit_l2 * ops.mean(ops.square(expert_logits))
        if self.delta_l2:
            delta = ops.convert_to_tensor(self.experts.delta.value)
            loss = loss + 0.5 * self.delta_l2 * ops.sum(ops.square(delta))
        if self.controller is not None:
            if self.controller.constraint == "expected":
                sparsity = 1.0 - expected
            loss = loss + self.controller.penalty(
                expected, sparsity, merging_weights
            )
            self.controller.observe(sparsity, merging_weights)
        # A pool ends with the queries.
        return loss, logits[-num_queries:]

    def _query_loss(self, weights, pretrained, x, y, sample_weight):
        """Cross-entropy and distillation of the queries, and their logits."""
        weights, features, prototypes, present = self._adapt_on_support(
            weights, x
        )
        pretrained_weight = self.kd_weight * self.kd_pretrained
        teacher_weight = self.kd_weight - pretrained_weight
        if not self.teacher_steps:
            teacher_weight = 0.0
        if teacher_weight:
            features, pullback = self.embed_with_pullback(
                weights, x["query_images"]
            )
        elif self.split or self.inner_steps:
            features = self.embed(weights, x["query_images"], training=True)
        logits = self.head(features, prototypes, present)
        share = 1.0 - teacher_weight - pretrained_weight
        loss = share * F.cross_entropy(logits, y, sample_weight)

        def distill(teacher, weight):
            return weight * F.distillation_loss(
                logits, teacher, self.kd_temperature, sample_weight
            )

        if teacher_weight:
            teacher = self._teacher_logits(
                weights, features, pullback, prototypes, present, x, y,
                sample_weight,
            )  # fmt: skip
            loss = loss + distill(teacher, teacher_weight)
        if pretrained_weight:
            pretrained_features = self.embed(
                self.pretrained_weights, x["query_images"]
            )
            loss = loss + distill(
                self.head(pretrained_features, *pretrained), pretrained_weight
            )
        return loss, logits

    def _adapt_on_support(self, weights, x):
        """Support features and prototypes, after `inner_steps` of SGD."""
        images, labels = x["support_images"], x["support_labels"]
        valid = ops.cast(labels >= 0, self.head.logit_dtype)
        if self.inner_steps:
            features, pullback = self.embed_with_pullback(weights, images)
        else:
            features = self.embed(weights, images, training=True)
        prototypes, present = F.class_prototypes(features, labels, self.max_way)
        for step in range(self.inner_steps):
            if step:
                features, pullback = self.embed_with_pullback(weights, images)
            feature_gradient, head_gradient = self._head_gradients(
                features, prototypes, present, labels, valid
            )
            # First order: the gradients are constants, the weights are not.
            weights = _descend(
                weights, pullback(feature_gradient), self.inner_lr
            )
            prototypes = prototypes - self.inner_lr * head_gradient
        return weights, features, prototypes, present

    def _teacher_logits(
        self, weights, features, pullback, prototypes, present, x, y,
        sample_weight,
    ):  # fmt: skip
        """Query logits after unmasked SGD on the query loss."""
        images = x["query_images"]
        for step in range(self.teacher_steps):
            if step:
                features, pullback = self.embed_with_pullback(weights, images)
            feature_gradient, head_gradient = self._head_gradients(
                features, prototypes, present, y, sample_weight
            )
            weights = _descend(
                [ops.stop_gradient(w) for w in weights],
                pullback(feature_gradient),
                self.teacher_lr,
            )
            prototypes = ops.stop_gradient(prototypes)
            prototypes = prototypes - self.teacher_lr * head_gradient
        features = self.embed(weights, images, training=True)
        return self.head(features, prototypes, present)

    def _head_gradients(self, features, prototypes, present, labels, weight):
        """Detached cross-entropy gradients for features and prototypes."""
        scale = self.head.logit_scale
        # Detached as well: on JAX, no value of the enclosing gradient may
        # leave the inner one.
        fixed = [] if scale is None else [(scale, ops.stop_gradient(scale))]

        def loss(leaves):
            with keras.StatelessScope(state_mapping=fixed):
                logits = self.head(leaves[0], leaves[1], present)
            return F.cross_entropy(logits, labels, weight)

        value, pullback = vjp(
            loss, [ops.stop_gradient(features), ops.stop_gradient(prototypes)]
        )
        return pullback(ops.ones_like(value))

    def finish_step(self):
        """Moves multipliers and temperature, once per step."""
        if self.controller is not None:
            self.controller.update(accumulation_steps(self.optimizer))
        self.tasks_seen.assign_add(1)
        progress = ops.cast(self.tasks_seen, self.temperature.dtype)
        progress = progress / self.temperature_steps
        span = self.temperature_start - self.temperature_end
        self.temperature.assign(
            self.temperature_start - span * ops.minimum(progress, 1.0)
        )

    def epoch_logs(self):
        """Figures that `fit` adds to the logs of an epoch."""
        if self.controller is None:
            return {}
        sparsity = ops.convert_to_numpy(self.experts.measured_sparsity())
        return {"sparsity": float(sparsity.mean())}

    def _expert_variables(self):
        variables = super()._expert_variables()
        variables["tasks_seen"] = self.tasks_seen
        variables["temperature"] = self.temperature
        return variables

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:
            config["temperature_steps"] = self.temperature_steps
            if self.controller is not None:
                rate = self.controller.learning_rate
                config["multiplier_learning_rate"] = rate
                config["sparsity_steps"] = self.controller.ramp_steps
        return config


def accumulation_steps(optimizer):
    """Tasks per optimizer step, through whatever wraps the optimizer."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    members = getattr(optimizer, "optimizers", [optimizer])
    return max(o.gradient_accumulation_steps or 1 for o in members)


def _descend(weights, gradients, learning_rate):
    return [
        w if g is None else w - ops.cast(learning_rate * g, w.dtype)
        for w, g in zip(weights, gradients)
    ]


def _pool(x, y, sample_weight):
    """Support and query as one set that plays both parts."""
    if sample_weight is None:
        sample_weight = ops.ones(y.shape, "float32")
    images = ops.concatenate([x["support_images"], x["query_images"]])
    labels = ops.cast(x["support_labels"], "int32")
    queries = ops.where(sample_weight > 0, ops.cast(y, "int32"), -1)
    labels = ops.concatenate([labels, queries])
    pooled = {
        "support_images": images,
        "support_labels": labels,
        "query_images": images,
    }
    valid = ops.cast(labels >= 0, "float32")
    return pooled, ops.maximum(labels, 0), valid
