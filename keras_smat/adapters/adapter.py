import inspect


class Adapter:
    """Base of test-time adaptation: refines the weights of one task.

    An adapter is pure: it sees the support alone, changes neither the learner
    nor itself, and gives the same weights for the same input (unless the
    learner draws at test time: SMAT with `eval_scores="sample"`). It serves
    `evaluate_few_shot(adapter=)`, `build_classifier(adapter=)` and
    `export_backbone(adapter=)`.

    A subclass writes `__call__`, may refuse learners in `check`, and keeps
    each constructor argument under its own name.

    Args:
        selection: dict, how `select_adapter` chose the settings; reports show
            it. Defaults to `None`, chosen by hand.

    Call arguments:
        learner: `MetaLearner`.
        x: dict of `support_images` (S, H, W, C) and `support_labels` (S,),
            with -1 for padding.
        weights: list of tensors, aligned with `learner.backbone.weights`:
            what the learner itself gives for the task.

    Returns (call):
        List of tensors, aligned with `learner.backbone.weights`.

    Example:

    ```python
    @keras.saving.register_keras_serializable("mine")
    class Halfway(keras_smat.Adapter):
        \"\"\"Halfway back to the pretrained weights.\"\"\"

        def __call__(self, learner, x, weights):
            pretrained = learner.pretrained_weights
            return [(w + p) / 2 for w, p in zip(weights, pretrained)]


    model = learner.build_classifier(images, labels, adapter=Halfway())
    ```
    """

    def __init__(self, selection=None):
        self.selection = selection

    def __call__(self, learner, x, weights):
        raise NotImplementedError(
            f"{type(self).__name__} must implement "
            "`__call__(learner, x, weights)`."
        )

    def check(self, learner):
        """Raises a `ValueError` for learners that the adapter does not fit."""

    def get_config(self):
        """Returns the constructor's arguments as a dict."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name != "self"}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def replace(self, **settings):
        """The same adapter with other settings.

        Args:
            **settings: constructor arguments.
        """
        return type(self).from_config({**self.get_config(), **settings})
