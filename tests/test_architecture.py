"""Who may import whom, read from the source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1] / "keras_smat"
FILES = sorted(
    p.relative_to(ROOT).as_posix()
    for p in ROOT.rglob("*.py")
    if "__pycache__" not in p.parts
)
FRAMEWORKS = {"jax", "jaxlib", "torch", "tensorflow"}

# Lower may not import higher: functional <- layers <- experts, sparsity <-
# learners <- adapters <- evaluation <- analysis.
LEVELS = {
    "functional": 0,
    "layers": 1,
    "experts": 2,
    "sparsity": 2,
    "learners": 3,
    "adapters": 4,
    "evaluation": 5,
    "selection": 6,
    "benchmark": 6,
    "analysis": 6,
}
USERS_OF_BACKEND = {"_backend", "experts", "learners", "adapters"}
# keras-hub has no public name for its checkpoint converters and embeddings.
PRIVATE = {
    ("converters.py", "keras_hub.src.utils.transformers"),
    (
        "vision_transformers.py",
        "keras_hub.src.models.dinov3.dinov3_layers",
    ),
}


def part_of(file):
    """`layers/x.py` -> `layers`, `experts.py` -> `experts`."""
    return file.split("/")[0].removesuffix(".py")


def imports_of(source, file):
    """Pairs (dotted name, lazy) of every import in a source text.

    `from a import b` gives `a.b`; relative imports are made absolute. Lazy
    ones stand inside a function.
    """
    package = ["keras_smat", *file.split("/")[:-1]]
    found = []

    def visit(node, lazy):
        if isinstance(node, ast.Import):
            found.extend((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package[: len(package) - node.level + 1]
                base = ".".join([*kept, base]).rstrip(".")
            found.extend((f"{base}.{a.name}", lazy) for a in node.names)
        inside = lazy or isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def imports(file):
    return imports_of((ROOT / file).read_text(encoding="utf-8"), file)


def own_parts(file):
    """Parts of keras_smat that a file imports, other than its own."""
    parts = set()
    for name, _ in imports(file):
        words = name.split(".")
        if words[0] == "keras_smat" and len(words) > 1:
            parts.add(words[1])
    return parts - {part_of(file)}


def files_of(*parts):
    return [file for file in FILES if part_of(file) in parts]


def test_the_reader_of_imports():
    source = (
        "import a.b, c\n"
        "from d import e as f\n"
        "from . import g\n"
        "from ..h import i\n"
        "def k():\n    if 1:\n        import l\n"
    )
    assert imports_of(source, "data/x.py") == [
        ("a.b", False),
        ("c", False),
        ("d.e", False),
        ("keras_smat.data.g", False),
        ("keras_smat.h.i", False),
        ("l", True),
    ]


def test_the_parts_exist():
    assert {"functional.py", "experts.py", "sparsity.py"} <= set(FILES)
    parts = {part_of(file) for file in FILES}
    assert {"_backend", "data", "layers", "learners"} <= parts


@pytest.mark.parametrize("file", FILES)
def test_frameworks_are_imported_in_the_backend_alone(file):
    part = part_of(file)
    for name, lazy in imports(file):
        root = name.split(".")[0]
        if root not in FRAMEWORKS or part == "_backend":
            continue
        reader = part == "data" and root == "tensorflow" and lazy
        assert reader, f"{file} imports {name}"


@pytest.mark.parametrize("file", files_of("_backend"))
def test_a_backend_imports_its_own_framework_alone(file):
    own = pathlib.Path(file).stem
    roots = {name.split(".")[0] for name, _ in imports(file)}
    assert roots & FRAMEWORKS <= {own}
    assert own_parts(file) <= {"functional"}


@pytest.mark.parametrize("file", files_of(*LEVELS))
def test_imports_point_upwards(file):
    part = part_of(file)
    for other in own_parts(file) & LEVELS.keys():
        assert LEVELS[other] < LEVELS[part], f"{part} imports {other}"


@pytest.mark.parametrize("file", FILES)
def test_the_backend_seam_has_few_users(file):
    if "_backend" in own_parts(file):
        assert part_of(file) in USERS_OF_BACKEND


@pytest.mark.parametrize(
    "file",
    files_of("functional", "calibration", "checks", "plots", "statistics"),
)
def test_pure_parts_import_nothing_of_ours(file):
    assert own_parts(file) == set()


@pytest.mark.parametrize("file", files_of("data"))
def test_data_knows_no_learner(file):
    assert not own_parts(file) & {*LEVELS, "_backend", "recipes", "plots"}


@pytest.mark.parametrize("file", FILES)
def test_keras_hub_is_imported_lazily(file):
    for name, lazy in imports(file):
        assert lazy or name.split(".")[0] != "keras_hub", f"{file}: {name}"


@pytest.mark.parametrize("file", FILES)
def test_no_private_modules_of_other_packages(file):
    for name, _ in imports(file):
        words = name.split(".")
        if words[0] == "keras_smat":
            continue
        private = "src" in words[1:] or any(
            w.startswith("_") and not w.startswith("__") for w in words
        )
        allowed = any(
            file == where and name.startswith(module)
            for where, module in PRIVATE
        )
        assert allowed or not private, f"{file} imports {name}"


COMMANDS = {"quickstart.py", "data/check.py"}


@pytest.mark.parametrize("file", [f for f in FILES if f not in COMMANDS])
def test_the_library_does_not_print(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "print" not in called
