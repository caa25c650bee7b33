"""Who may import whom: the house's plan, enforced. Files are parsed, not imported.

launch -> train, policy, sim, report -> data, preprocess, models, checkpoints -> leaves
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.own_process import loaded_by

ROOT = Path(__file__).parent.parent
FILES = sorted(
    file
    for folder in ("pi0_jax", "benchmarks", "launch", "configs")
    for file in (ROOT / folder).rglob("*.py")
)

# A part is a file or a folder of pi0_jax/. It may import itself, and the parts or modules of parts
# that are listed here. No part may be left out. What is further down may not import what is further
# up.
MAY_IMPORT = {
    # Leaves.
    "errors": "",
    "files": "",
    "freed_memory": "",
    "progress": "",
    "compilation": "files progress",
    "fields": "errors",
    "observation": "",
    "flow": "",
    "embodiments": "errors observation",
    "sharding": "errors",
    "execution": "errors",
    # The model knows arrays only.
    "models": "flow observation",
    "verify": "errors flow models observation",
    # Arithmetic that inference must repeat is preprocess; data are files, and their statistics.
    "preprocess": "embodiments errors files observation",
    "data": "embodiments errors files observation preprocess progress",
    # What a policy needs of its config; the training's half of it is in train.
    "policy_config": "fields models preprocess",
    "checkpoints": "embodiments errors models policy_config preprocess",
    "convert": "checkpoints data.remote data.remote_errors data.storage embodiments errors files models"
    " observation policy_config preprocess",
    # Other people's models beside ours.
    "parity": "convert errors models observation",
    # What runs.
    "policy": "checkpoints convert embodiments errors files models observation policy_config preprocess",
    "train": "checkpoints convert data errors fields files flow freed_memory models observation policy_config preprocess"
    " progress sharding",
    "aot": "data.datasets errors files models observation policy policy_config preprocess sharding train",
    # A server knows act(observation), and what a robot's clients send.
    "serve": "embodiments errors execution freed_memory observation",
    # The simulator knows act(observation), what an environment calls its parts, and how to write a
    # dataset.
    "sim": "data.write embodiments errors execution files observation progress",
    # Policies in simulators.
    "evaluated_policies": "checkpoints convert.metadata embodiments errors policy serve.client serve.wire"
    " sim.evaluation sim.reach_rollouts",
    "lab": "checkpoints compilation data embodiments errors execution files flow models observation policy preprocess report sim train",
    "report": "checkpoints data embodiments errors files observation policy preprocess train.config train.data train.metrics",
}

# Package -> where it may be imported; elsewhere a machine need not have it.
CONFINED = {
    "tensorflow": ("pi0_jax/data/", "benchmarks/tfdata.py"),
    "tensorflow_datasets": ("pi0_jax/data/", "benchmarks/tfdata.py"),
    "torch": ("pi0_jax/parity/",),
    "lerobot": ("pi0_jax/parity/",),
    "tensorstore": ("pi0_jax/convert/", "pi0_jax/train/workdir.py"),
    "mujoco": ("pi0_jax/sim/",),
    "gymnasium": ("pi0_jax/sim/", "pi0_jax/lab/worlds.py", "pi0_jax/lab/arms.py"),
    "google_crc32c": ("pi0_jax/data/", "pi0_jax/checkpoints/manifest.py", "benchmarks/"),
    "loky": ("pi0_jax/data/", "benchmarks/", "pi0_jax/sim/", "pi0_jax/lab/harness.py"),
    "av": ("pi0_jax/data/lerobot/",),
    "pyarrow": ("pi0_jax/data/lerobot/",),
    "cloudpickle": ("pi0_jax/data/", "pi0_jax/sim/"),
    "fsspec": ("pi0_jax/data/", "pi0_jax/convert/"),
    "aiohttp": ("pi0_jax/data/",),
    "orbax": ("pi0_jax/checkpoints/", "pi0_jax/convert/"),
    "tensorboardX": ("pi0_jax/train/metrics.py",),
    "matplotlib": ("pi0_jax/report/", "pi0_jax/lab/figures.py"),
    "msgpack": ("pi0_jax/serve/",),
    # convert/ reads and writes the format itself: tensor by tensor, behind URLs too, and in one
    # file, which the ports' loaders want.
    "safetensors": ("pi0_jax/policy/export.py",),
    "websockets": ("pi0_jax/serve/",),
    "vla_eval": ("pi0_jax/serve/vla_eval.py",),
}
# Importing these loads OpenGL, which no process may do that has TensorFlow: worker processes import
# them, inside functions. Each may import those before it.
RENDERING = ("pi0_jax.sim.scene", "pi0_jax.sim.reach", "pi0_jax.sim.expert")
ONLY_INSIDE_FUNCTIONS = ("tensorflow", "tensorflow_datasets", "aiohttp", "torch", "lerobot")
MAY_PRINT = (
    "launch/",
    "pi0_jax/compilation.py",
    "pi0_jax/serve/vla_eval.py",
    "pi0_jax/train/loop.py",
    "pi0_jax/train/weights.py",
)
MOST_LINES = {"pi0_jax": 400, "benchmarks": 400, "configs": 400, "launch": 80}
MOST_FILES = 14  # in a folder of pi0_jax/


class Import(NamedTuple):
    file: str  # relative to the repository
    line: int
    module: str  # dotted, as far as it names modules; with a dot before it, in the same folder
    in_function: bool  # or for the type checker alone

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_in(tree: ast.AST, file: str, in_function: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, in_function)
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield Import(file, node.lineno, "." * node.level + name, in_function)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:  # from pi0_jax import flow names pi0_jax.flow
                full = f"{node.module}.{alias.name}"
                yield Import(
                    file, node.lineno, full if is_module(full) else node.module, in_function
                )
        inside = in_function or isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        inside = inside or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        yield from imports_in(node, file, inside)


TREES = {relative(file): ast.parse(file.read_text(), str(file)) for file in FILES}
FACE = "pi0_jax/__init__.py"  # is above all parts
IMPORTS = [
    found for file, tree in TREES.items() if file != FACE for found in imports_in(tree, file)
]


def part_of(module: str) -> str:
    """Returns the part of a module: data for pi0_jax.data.write."""
    return module.split(".")[1]


def module_of(file: str) -> str:
    """Returns the module of a file: pi0_jax.data.write for pi0_jax/data/write.py."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_every_part_has_its_rule():
    parts = {
        part_of(module_of(file)) for file in TREES if file.startswith("pi0_jax/") and file != FACE
    }
    assert parts == set(MAY_IMPORT)


def test_parts_import_only_what_the_plan_allows():
    wrong = []
    for found in IMPORTS:
        if not (found.file.startswith("pi0_jax/") and found.module.startswith("pi0_jax.")):
            continue
        part, imported = part_of(module_of(found.file)), found.module.removeprefix("pi0_jax.")
        allowed = [part, *MAY_IMPORT[part].split()]
        if not any(imported == name or imported.startswith(f"{name}.") for name in allowed):
            wrong.append(str(found))
    assert wrong == []


def test_the_plan_has_no_circle():
    """If parts that import nothing that is left are taken away again and again, none is left."""
    left = {
        part: {name.split(".")[0] for name in allowed.split()}
        for part, allowed in MAY_IMPORT.items()
    }
    while bottom := {part for part, allowed in left.items() if not allowed & left.keys()}:
        left = {part: allowed for part, allowed in left.items() if part not in bottom}
    assert left == {}


def test_the_plan_allows_nothing_that_is_not_used():
    """So the plan says what is, and a new import is a decision."""
    used = {(part_of(module_of(found.file)), found.module.removeprefix("pi0_jax."))
            for found in IMPORTS if found.file.startswith("pi0_jax/") and found.module.startswith("pi0_jax.")}  # fmt: skip
    idle = [
        f"{part} imports no {name}"
        for part, allowed in MAY_IMPORT.items()
        for name in allowed.split()
        if not any(
            importer == part and (module == name or module.startswith(f"{name}."))
            for importer, module in used
        )
    ]
    assert idle == []


def test_nothing_imports_launch_configs_or_benchmarks():
    """Nothing imports launch scripts, but launch scripts share some files, by relative imports.

    In a wheel their folder is pi0_jax/launch/. And launch.benchmark imports benchmarks/, which no
    wheel has.
    """
    wrong = [str(found) for found in IMPORTS if found.module.split(".")[0] in ("launch", "configs")]
    wrong += [
        str(found)
        for found in IMPORTS
        if found.module.split(".")[0] == "benchmarks"
        and not found.file.startswith(("benchmarks/", "launch/benchmark.py"))
    ]
    assert wrong == []
    shared = {
        (found.file.split("/")[0], found.module) for found in IMPORTS if found.module[0] == "."
    }
    assert shared == {
        ("launch", f".{name}")
        for name in (
            "app",
            "families",
            "formats_page",
            "recipes",
            "shared",
            "worlds",
        )
    }


def test_configs_import_the_defaults_and_nothing_else_of_the_project():
    assert {
        found.module
        for found in IMPORTS
        if found.file.startswith("configs/") and found.module.startswith("pi0_jax")
    } == {"pi0_jax.train.config"}


@pytest.mark.parametrize("package", CONFINED)
def test_heavy_packages_stay_where_they_belong(package):
    wrong = [
        str(found)
        for found in IMPORTS
        if found.module.split(".")[0] == package and not found.file.startswith(CONFINED[package])
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ONLY_INSIDE_FUNCTIONS)
def test_tensorflow_is_imported_only_when_it_is_called(package):
    assert [
        str(found)
        for found in IMPORTS
        if found.module.split(".")[0] == package and not found.in_function
    ] == []


def test_opengl_is_loaded_by_worker_processes_alone():
    own = [name.replace(".", "/") + ".py" for name in RENDERING]
    assert [
        str(found)
        for found in IMPORTS
        if found.module in RENDERING and found.file not in own and not found.in_function
    ] == []


def test_opening_and_training_a_model_needs_no_heavy_package():
    """These modules load no TensorFlow, also not through a library.

    A machine without TensorFlow can train on arrays, sample and serve.
    """
    program = (
        "import pi0_jax.policy, pi0_jax.flow, pi0_jax.models.pi0, pi0_jax.train.step,"
        " pi0_jax.train.config"
    )
    assert loaded_by(program, "tensorflow", "torch", "mujoco") == []


def test_files_are_rooms_not_houses():
    lines = {relative(file): len(file.read_text().splitlines()) for file in FILES}
    most = {file: MOST_LINES[file.split("/")[0]] for file in lines}
    assert {file: count for file, count in lines.items() if count > most[file]} == {}


def test_folders_are_seen_at_a_glance():
    counts = Counter(file.parent for file in FILES if relative(file).startswith("pi0_jax/"))
    assert {relative(one): n for one, n in counts.items() if n > MOST_FILES} == {}


def calls(tree: ast.AST, *names: str) -> Iterator[int]:
    """Lines that call a function of one of these names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node.lineno


def test_libraries_do_not_print():
    assert [
        f"{file}:{line}"
        for file, tree in TREES.items()
        if not file.startswith(MAY_PRINT)
        for line in calls(tree, "print")
    ] == []


def test_nothing_is_found_by_a_string():
    """There is no getattr, no import by name and no evaluated text.

    What is used is written where it is used.
    """
    forbidden = ("getattr", "setattr", "eval", "exec", "__import__")
    assert [
        f"{file}:{line}" for file, tree in TREES.items() for line in calls(tree, *forbidden)
    ] == []
    assert [
        str(found)
        for found in IMPORTS
        if found.module.split(".")[0] == "importlib" and found.module != "importlib.metadata"
    ] == []


def test_errors_are_caught_by_their_kind():
    wrong = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                if any(
                    kind is None
                    or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException"))
                    for kind in kinds
                ):
                    wrong.append(f"{file}:{node.lineno}")
    assert wrong == []


def test_no_global_state():
    """There is no `global`, and no default that calls would share."""
    wrong = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Global):
                wrong.append(f"{file}:{node.lineno}: global")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
                shared = [
                    default
                    for default in defaults
                    if isinstance(default, ast.List | ast.Dict | ast.Set)
                ]
                wrong += [f"{file}:{default.lineno}: mutable default" for default in shared]
    assert wrong == []
