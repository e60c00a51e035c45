"""The order of the layers, the use of Hydra, and the size of files, read from the source."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "speech_exp"
LAYERS = [
    "features",
    "data",
    "models",
    "objectives",
    "tasks",
    "training",
    "figures",
    "runs",
    "comparison",
    "sweeps",
    "resolvers",
    "experiment",
    "pretrained",
    "actions",
    "__main__",
    "command_line",
    "launching",
]
BASE = -1  # modules outside the layers that all may import, and two of the command line that Hydra's callbacks need
BASE_MODULES = ("speech_exp.command_line.composition_errors", "speech_exp.command_line.credentials")
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer(module: str) -> int:
    if module == "speech_exp":  # its `load` imports the model when it is called
        return len(LAYERS)
    part = module.split(".")[1] if "." in module else ""
    return LAYERS.index(part) if part in LAYERS and module not in BASE_MODULES else BASE


def imports(path: Path) -> list[str]:
    """Return every module that a file imports, including imports in functions and type-checking blocks."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inside if (PROJECT / name.replace(".", "/")).with_suffix(".py").exists()]
            found += modules or [node.module or ""]
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_never_point_to_a_later_layer(path):
    own = layer(name_of(path))
    for module in imports(path):
        if module.startswith("speech_exp"):
            assert layer(module) <= own, f"{name_of(path)} imports {module}, which stands later in {LAYERS}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_hydra_is_imported_only_where_objects_are_composed(path):
    callbacks = [f"speech_exp.sweeps.{name}_callback" for name in ("record", "search", "compare")]
    composing = (
        "speech_exp.resolvers",
        "speech_exp.experiment",
        "speech_exp.pretrained",
        "speech_exp.__main__",
        *callbacks,
    )
    if name_of(path) in composing or "hydra_plugins" in str(path) or path.parent.name == "command_line":
        return
    assert not [module for module in imports(path) if module.split(".")[0] in ("hydra", "omegaconf")]


def test_modules_import_in_no_circle():
    graph = {name_of(path): [m for m in imports(path) if m.startswith("speech_exp")] for path in MODULES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"circle: {' -> '.join((*above, module))}"
        if module not in done:
            for imported in graph.get(module, []):
                visit(imported, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert len(done) >= len(MODULES)


def test_files_stay_short():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 320} == {}
    assert len((PROJECT / "run.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_a_config_folder_has_its_code_folder_or_is_one_of_the_few_that_need_none():
    folders = {path.name for path in (PROJECT / "conf").iterdir() if path.is_dir()}
    without_code = {"hydra", "launcher", "experiment"}
    homes = {"dataset": "data", "features": "features", "augment": "features", "encoder": "models", "model": "models"}
    homes |= {
        "objective": "objectives",
        "decoder": "objectives",
        "task": "tasks",
        "c_approach": "tasks",
        "kd": "tasks",
        "trainer": "training",
        "action": "actions",
    }
    assert folders == without_code | set(homes)
    for folder, home in homes.items():
        for path in (PROJECT / "conf" / folder).glob("*.yaml"):
            targets = [line for line in path.read_text(encoding="utf-8").splitlines() if "_target_:" in line]
            assert all(f"speech_exp.{home}." in line for line in targets), path
