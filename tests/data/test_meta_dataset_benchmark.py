import json
import re
import warnings

import h5py
import keras
import numpy as np
import pytest
import specs
from PIL import Image

from keras_smat import data
from keras_smat.data.meta_dataset_sets import SETS
from keras_smat.data.meta_dataset_sets import sets_of

# Of the published table: training, validation and test classes.
CLASSES = {
    "aircraft": (70, 15, 15),
    "cu_birds": (140, 30, 30),
    "dtd": (33, 7, 7),
    "fungi": (994, 200, 200),
    "vgg_flower": (71, 15, 16),
    "quickdraw": (241, 52, 52),
    "omniglot": (883, 81, 659),
    "traffic_sign": (0, 0, 43),
    "mscoco": (0, 40, 40),
    "ilsvrc_2012": (712, 158, 130),
    "cifar10": (0, 0, 10),
    "cifar100": (0, 0, 100),
    "mnist": (0, 0, 10),
    "sketch": (207, 51, 87),
    "clipart": (207, 51, 87),
    "food101": (0, 0, 101),
    "cars": (0, 0, 196),
    "pets": (0, 0, 37),
}


def folders(root, name, classes, images=20, size=(9, 8)):
    """Image folders, each class of one grey value."""
    for i, one in enumerate(classes):
        folder = root / name / one
        folder.mkdir(parents=True)
        for j in range(images):
            Image.new("L", size, 5 * i + j % 5).save(folder / f"{j}.png")


def h5(root, spec, name, size=8):
    """PMF's files and the specification of a set."""
    folder = root / name
    folder.mkdir()
    specs.write(folder, spec)
    for i, count in spec["images_per_class"].items():
        with h5py.File(folder / f"{i}.h5", "w") as file:
            for j in range(count):
                file[f"{j}/image"] = np.full((size, size, 3), int(i), "uint8")
                file[f"{j}/label"] = np.array([int(i)])


def plain(train, valid, test, images=12):
    ids = [str(i) for i in range(train + valid + test)]
    return {
        **specs.PLAIN,
        "classes_per_split": {"TRAIN": train, "VALID": valid, "TEST": test},
        "images_per_class": dict.fromkeys(ids, images),
        "class_names": {i: f"class {i}" for i in ids},
    }


def load(*args, **kwargs):
    """Without the warning of what is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return data.meta_dataset(*args, **kwargs)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("meta_dataset")
    h5(root, plain(70, 15, 15), "aircraft")
    names = [f"t{i}" for i in range(47)]
    folders(root, "dtd", names, 6)
    lists = {"train": names[14:], "valid": names[:7], "test": names[7:14]}
    (root / "dtd" / "dtd_splits.json").write_text(json.dumps(lists))
    folders(root, "mnist", list("0123456789"))
    folders(root, "pets/test", [f"p{i}" for i in range(37)])
    (root / "notes").mkdir()
    return root


def test_the_table():
    assert {s.name: s.classes for s in SETS} == CLASSES
    ids = {s.name for s in SETS if s.role == "ID"}
    assert ids == set(sets_of("train"))
    assert set(sets_of("validation")) == ids | {"mscoco"}
    assert set(sets_of("test")) == set(CLASSES)
    rows = re.findall(r"^    \| `.*", data.meta_dataset.__doc__, re.M)
    documented = re.findall(r"`(\w+)`", "".join(rows))
    assert documented == [s.name for s in SETS]
    for row in rows[:10]:
        name, role, classes = (cell.strip(" `") for cell in row.split("|")[1:4])
        assert classes == ", ".join(map(str, CLASSES[name]))
        assert role == ("ID" if name in ids else "OOD")


def test_training_mixture(root):
    train = load(root, image_size=16, num_episodes=30, seed=2)
    assert train.names == ["aircraft", "dtd"]
    assert train.probabilities == [0.5, 0.5]
    assert len(train) == 30 and train.seed == 2
    assert train.image_shape == (16, 16, 3)
    assert len(load(root)) == 2000
    domains = set()
    for i in range(10):
        found = train.indices(i)
        domains.add(found["domain"])
        assert 5 <= len(found["classes"]) <= 50
    assert domains == {"aircraft", "dtd"}
    aircraft = train.datasets["aircraft"]
    assert aircraft.source.class_names == [f"class {i}" for i in range(70)]
    assert aircraft.source.image_shape == (224, 224, 3)
    assert aircraft.sampler.protocol()["name"] == "MetaDatasetEpisodes"
    assert aircraft.protocol()["augment"]["name"] == "MetaTrainAugmentation"
    assert len(train.datasets["dtd"].source.class_names) == 33
    plain = load(root, image_size=16, augment=None)
    assert plain.datasets["dtd"].source.image_shape == (16, 16, 3)
    x, _, _ = train[0]
    assert x["support_images"].shape[1:] == (16, 16, 3)


def test_test_sets(root):
    test = load(root, "test", image_size=8)
    assert list(test) == ["aircraft", "dtd", "mnist", "pets"]
    roles = {name: episodes.role for name, episodes in test.items()}
    assert roles == dict(aircraft="ID", dtd="ID", mnist="OOD", pets="OOD")
    assert {len(episodes) for episodes in test.values()} == {600}
    assert {e.augment for e in test.values()} == {None}
    assert test["aircraft"].source.class_names[0] == "class 85"
    assert test["dtd"].source.class_names[0] == "t7"
    x, y, _ = test["mnist"][0]
    assert x["support_images"].shape[1:] == (8, 8, 3)
    assert 5 <= y.max() + 1 <= 10
    # One size; the way and shot are arguments.
    x, y, _ = test["pets"][0]
    assert x["support_labels"].tolist() == np.repeat(range(5), 5).tolist()
    assert len(y) == 75
    fixed = data.FixedEpisodes(2, 1, 1)
    other = load(root, "test", fixed_sampler=fixed, num_episodes=4)
    assert len(other["pets"].indices(0)["query"]) == 2
    assert len(other["mnist"].indices(0)["classes"]) >= 5


def test_validation_sets(root):
    validation = load(root, "validation", num_episodes=3)
    assert list(validation) == ["aircraft", "dtd"]
    sources = [episodes.source for episodes in validation.values()]
    assert [len(source.class_names) for source in sources] == [15, 7]
    assert len(load(root, "validation")["dtd"]) == 120


def test_roles_reach_the_report(root):
    from keras_smat import ProtoNet
    from keras_smat import evaluate_few_shot

    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten()]
    learner = ProtoNet(keras.Sequential(layers))
    names = ["dtd", "mnist"]
    test = load(root, "test", 8, names, num_episodes=2)
    report = evaluate_few_shot(learner, test, num_episodes=2, verbose=0)
    assert [report.role(name) for name in names] == ["ID", "OOD"]
    report = evaluate_few_shot(learner, test, names, num_episodes=2, verbose=0)
    assert [report.role(name) for name in names] == ["ID", "ID"]


def test_a_chosen_set_needs_no_warning(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test = data.meta_dataset(root, "test", names=["mnist"])
    assert list(test) == ["mnist"]


def test_missing_sets_are_named_with_their_origin(root):
    with pytest.warns(UserWarning, match="14 of the 18 sets with a test") as w:
        data.meta_dataset(root, "test")
    text = str(w[0].message)
    for name in set(CLASSES) - {"aircraft", "dtd", "mnist", "pets"}:
        assert f"\n- {name}: " in text
    assert "FGVCx Fungi 2018, converted to TFRecords" in text
    assert "mnist" not in text
    with pytest.raises(ValueError, match="without these:\n- fungi: FGVCx"):
        data.meta_dataset(root, names=["fungi", "dtd"])
    with pytest.raises(ValueError, match="- ilsvrc_2012: (.|\n)*- cars: "):
        data.meta_dataset(root / "notes", "test")


def test_sources_of_ones_own(tmp_path):
    images = np.zeros((43 * 30, 8, 8, 3), "uint8")
    source = data.ArraySource(images, np.repeat(np.arange(43), 30))
    signs = {"traffic_sign": source}
    test = load(tmp_path, "test", 8, sources=signs)
    assert test["traffic_sign"].role == "OOD" and source.role is None
    with pytest.raises(ValueError, match="43 classes.*Received: 42 classes"):
        signs = {"traffic_sign": source.subset(range(42))}
        load(tmp_path, "test", sources=signs)


def test_converted_sets(tmp_path):
    """Each split in its own folder."""
    images = np.zeros((43 * 30, 8, 8, 3), "uint8")
    source = data.ArraySource(images, np.repeat(np.arange(43), 30))
    (tmp_path / "traffic_sign").mkdir()
    data.convert(source, tmp_path / "traffic_sign" / "test", verbose=0)
    test = load(tmp_path, "test", image_size=8)
    assert isinstance(test["traffic_sign"].source, data.MemmapSource)
    assert test["traffic_sign"][0][0]["query_images"].shape[1:] == (8, 8, 3)
    with pytest.raises(ValueError, match=r"size 9. Received: .*\(8, 8\)"):
        load(tmp_path, "test", image_size=9)
    check = data.check_dataset(tmp_path, verbose=0)
    found = [(row["set"], row["split"], row["images"]) for row in check.rows]
    assert check.ok and found == [("traffic_sign", "test", 1290)]


def test_hierarchies_reach_the_sampler(tmp_path):
    h5(tmp_path, specs.TWO_LEVELS, "omniglot")
    train = load(
        tmp_path,
        sampler=data.MetaDatasetEpisodes(way=(2, 50)),
        check_classes=False,
        augment=None,
    )
    for i in range(20):
        classes = sorted(train.indices(i)["classes"].tolist())
        assert classes == [0, 1] or set(classes) <= {2, 3, 4}


def test_small_classes_are_filled_up(tmp_path):
    folders(tmp_path, "sketch/test", [f"a{i}" for i in range(3)], 25)
    folders(tmp_path, "sketch/test", [f"b{i}" for i in range(84)], 8)
    source = load(tmp_path, "test")["sketch"].source
    assert source.class_sizes.tolist() == [25] * 3 + [20] * 84
    images = source.positions[source.labels == 5]
    assert np.bincount(images - images.min()).tolist() == [3] * 4 + [2] * 4


def test_wrong_numbers_of_classes(tmp_path):
    h5(tmp_path, plain(71, 15, 15), "aircraft")
    message = r"70 classes in the train split of 'aircraft'.*71 classes"
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    assert load(tmp_path, check_classes=False).names == ["aircraft"]


def test_forms_of_a_folder(tmp_path):
    folders(tmp_path, "dtd", ["a", "b"])
    with pytest.raises(ValueError, match="`splits.json`, or folders for the"):
        load(tmp_path)
    (tmp_path / "dtd" / "splits.json").write_text('{"train": ["b"]}')
    with pytest.raises(ValueError, match="33 classes.*1 classes, .b."):
        load(tmp_path)
    with pytest.raises(ValueError, match="validation or valid or val in"):
        load(tmp_path, "validation")
    for broken in ["[]", "{", '{"train": 3}', '{"train": "b"}', "[" * 10**5]:
        (tmp_path / "dtd" / "splits.json").write_text(broken)
        with pytest.raises(ValueError, match="splits.json'"):
            load(tmp_path)
    # A class may be called as a split: QuickDraw has a "train".
    folders(tmp_path, "cifar10", ["train", *"abcdefghi"])
    assert len(load(tmp_path, "test", names=["cifar10"])) == 1


def test_pickled_specifications_are_refused(tmp_path):
    (tmp_path / "fungi").mkdir()
    (tmp_path / "fungi" / "dataset_spec.pkl").touch()
    with pytest.raises(ValueError, match="pickle"):
        load(tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(split="valid"), r"\['train', 'validation', 'test'\].*'valid'"),
        (dict(names=["dtd", "mnist"]), r"train split.*Received: \[mnist\]"),
        (dict(names=["cub"]), r"Received: \[cub\]"),
        (dict(sources={"cub": None}), r"Received: \[cub\]"),
        (dict(root="nowhere"), "`root`.*'nowhere'"),
        (dict(num_episodes=0), "num_episodes=0"),
    ],
)
def test_arguments_are_checked(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**{"root": root, **arguments})
