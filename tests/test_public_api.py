"""The public surface: names, registration, configs, examples."""

import copy
import inspect
import re
import textwrap

import keras
import numpy as np
import pytest
from tools import SIZE
from tools import cnn_backbone
from tools import dense_backbone
from tools import make_episodes
from tools import make_smat
from tools import make_source

import keras_smat
from keras_smat import data
from keras_smat import html_page
from keras_smat import plots
from keras_smat import recipes
from keras_smat import statistics
from keras_smat.adapters.held_out import HeldOutSelection


def test_all_is_sorted_and_there():
    names = [n for n in keras_smat.__all__ if not n.startswith("_")]
    assert names == sorted(names)
    for name in keras_smat.__all__:
        assert hasattr(keras_smat, name)


def instances(backbone):
    return [
        keras_smat.HardConcreteMask([(4, 3), (3,)], num_experts=2, seed=1),
        keras_smat.PrototypeHead("euclidean", scale=2.0),
        keras_smat.SparseInterpolatedDense(3, num_experts=2),
        keras_smat.TaskHypernetwork(num_experts=2, readout="extra_token"),
        keras_smat.SparsityController(2, target_sparsity=0.7, gain=1.0),
        keras_smat.ExpertBank(backbone, num_experts=2, include=["features"]),
        keras_smat.ProtoNet(backbone, trainable=True, max_way=4),
        make_smat(backbone, exclude=["bias"], move=False),
        keras_smat.SoftMerge(backbone, num_experts=2, expert_dropout=0.2),
        keras_smat.ExpertSearch(rounds=3, loss="resubstitution"),
        keras_smat.FullFineTune(1e-3, include=["hidden"]),
        keras_smat.LoRAFineTune(rank=2, targets="hidden"),
        keras_smat.LayerNormTune(steps=3, selection={"hpo": "pmf"}),
        keras_smat.FullSMATFineTune(weight_decay=0.1, augment=False),
        keras_smat.select_adapter(
            None, keras_smat.FullFineTune(), hpo="support", folds=2
        ),
    ]


# Keras reads the configs of Sequential and functional models differently.
@pytest.mark.parametrize("backbone", [dense_backbone, cnn_backbone])
@pytest.mark.parametrize("index", range(15))
def test_registered_and_config_round_trip(index, backbone):
    instance = instances(backbone())[index]
    name = keras.saving.get_registered_name(type(instance))
    assert name == f"keras_smat>{type(instance).__name__}"
    config = instance.get_config()
    before = copy.deepcopy(config)
    for _ in range(2):
        again = type(instance).from_config(config)
        assert again.get_config() == config == before
    assert instance.get_config() == before
    arguments = inspect.signature(type(instance).__init__).parameters
    missing = set(arguments) - set(config) - {"self", "kwargs"}
    assert not missing


EXAMPLES = [
    keras_smat.HardConcreteMask,
    keras_smat.PrototypeHead,
    keras_smat.SparseInterpolatedDense,
    keras_smat.TaskHypernetwork,
    keras_smat.SparsityController,
    keras_smat.ExpertBank,
    keras_smat.ProtoNet,
    keras_smat.SMAT,
    keras_smat.SoftMerge,
    keras_smat.Adapter,
    keras_smat.ExpertSearch,
    keras_smat.FullFineTune,
    keras_smat.FullSMATFineTune,
    keras_smat.LayerNormTune,
    keras_smat.LoRAFineTune,
    HeldOutSelection,
    keras_smat.select_adapter,
    keras_smat.calibration_error,
    keras_smat.FewShotReport,
    keras_smat.evaluate_few_shot,
    keras_smat.evaluate_benchmark,
    keras_smat.BenchmarkReport,
    keras_smat.MetaLearner.build_classifier,
    keras_smat.callbacks.BackupAndRestore,
    recipes.get,
    recipes.learner_arguments,
    html_page.HtmlPage,
    plots,
    statistics.paired_t_test,
]


@pytest.mark.parametrize("thing", EXAMPLES, ids=lambda t: t.__name__)
def test_examples_run(thing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    doc = inspect.getdoc(thing)
    code = re.search(r"```python\n(.*?)```", doc, re.S).group(1)
    images = make_source().images[:12]
    learner = make_smat()
    learner.compile("sgd")
    names = dict(
        keras=keras,
        keras_smat=keras_smat,
        np=np,
        backbone=dense_backbone(),
        learner=learner,
        train_episodes=make_episodes(2),
        validation_episodes=make_episodes(2, seed=9),
        images=images,
        labels=np.repeat(range(3), 4),
        new_images=images,
    )
    exec(textwrap.dedent(code), names)


def test_private_keras_api_is_where_we_use_it():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert isinstance(model._loss_tracker, keras.metrics.Mean)
    assert hasattr(model, "_initial_epoch")


def test_nothing_heavy_at_import():
    import subprocess
    import sys

    code = "import sys, keras_smat; assert 'keras_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_data_names():
    assert sorted(data.__all__) == list(data.__all__)
    assert SIZE == make_source().image_size[0]
