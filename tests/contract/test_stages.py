"""What a stage says of itself and what dvc.yaml says of it are the same.

DVC believes dvc.yaml: a module that is imported but not listed leaves a stale output, and a param that is read but
not listed leaves a stale result. So each of these tests holds one column of dvc.yaml against the code.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from ruamel.yaml import YAML

from tunewright.params import FLOW_SECTIONS, PathsParams, Section, section_class
from tunewright.stage import Key, Paths
from tunewright.task import TaskType

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
MODULES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
PARAMS: dict[str, Any] = YAML(typ="safe").load(ROOT / "params.yaml")
TASK_FILE = "tunewright/task_types/${task.type}.py"

# Loaded by name, and so exempt: what a stage uses of them is in its deps by other rules of this file.
LOADED_BY_NAME = {
    ("tunewright/params.py", "stages."),  # Section classes: each stage depends on its own module only
    (
        "tunewright/params.py",
        "tunewright.task_types.",
    ),  # the task's Section class: a stage that has a task names its file
    ("tunewright/params.py", "tunewright."),  # Section classes that steps of the flow act on, and no stage
    ("tunewright/task.py", "tunewright.task_types."),
}
# Imported where a stage has failed or refuses its params, or for the story of its run: it shapes what is said of that,
# never an output.
FOR_MESSAGES = {
    ("tunewright/params.py", "tunewright/masking.py"),
    ("tunewright/stage.py", "tunewright/masking.py"),
    ("tunewright/stage.py", "tunewright/meter.py"),
}
# They check what comes in or draw the page, which is left out of the promise of the same bytes.
NO_SHAPE = {"jinja2", "matplotlib", "psutil", "pydantic", "ruamel"}
# They pin environments of their own, for what the main one lacks.
OTHER_ENVIRONMENTS = {
    "requirements/tensorflow.txt": {"tensorflow": "tensorflow-cpu"},
    "requirements/litert.txt": {},
    "requirements/gguf.txt": {},
}
OURS = ("benchmarks", "flows", "stages", "tunewright")

each_stage = pytest.mark.parametrize("stage", sorted(set(STAGES) & set(MODULES)))


def entries(stage: str, *columns: str) -> list[str]:
    """The entries of a stage's lists in dvc.yaml, without their flags."""
    listed = [entry for column in columns for entry in STAGES[stage].get(column, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in listed]


def template(name: str) -> str:
    """How dvc.yaml spells a field of a `Paths` class."""
    stage = name.removesuffix("_report")
    return "${paths." + name + "}" if stage == name else "${paths.reports}/" + stage + ".json"


def hints(stage: str) -> dict[str, Any]:
    """The type hints of a stage's `run`."""
    found = get_type_hints(importlib.import_module(f"stages.{stage}").run, include_extras=True)
    found.pop("return")
    return found


def paths(stage: str) -> dict[str, str]:
    """The fields of a stage's `Paths` class: name → `dep` or `out`."""
    found: dict[str, str] = {}
    for hint in hints(stage).values():
        if isinstance(hint, type) and issubclass(hint, Paths):
            kinds = get_type_hints(hint, include_extras=True)
            found |= {name: get_args(kinds[name])[1] for name in hint.model_fields}
    return found


def paste(stage: str, column: str, missing: set[str], surplus: set[str]) -> str:
    """What to do to dvc.yaml, ready to be pasted."""
    lines = [f"dvc.yaml, stage `{stage}`, {column}:"]
    if missing:
        lines += ["  add", *(f"      - {entry}" for entry in sorted(missing))]
    if surplus:
        lines += ["  remove (or use it in the code)", *(f"      - {entry}" for entry in sorted(surplus))]
    return "\n".join(lines)


def test_every_stage_has_a_module_and_every_module_a_stage() -> None:
    assert sorted(STAGES) == MODULES, (
        f"without stages/NAME.py: {sorted(set(STAGES) - set(MODULES))}; "
        f"without an entry in dvc.yaml: {sorted(set(MODULES) - set(STAGES))}"
    )


def test_every_section_belongs_to_a_stage_and_every_stage_with_params_has_a_section() -> None:
    sections = set(PARAMS) - {"num_threads", "paths", "seed", "task", *FLOW_SECTIONS}
    with_params = {stage for stage in MODULES if section_class(stage) is not None}
    assert sections == with_params, (
        f"a section without a Params class in stages/: {sorted(sections - with_params)}; "
        f"a Params class without a section in params.yaml: {sorted(with_params - sections)}"
    )


def test_no_stage_reads_a_section_that_the_flow_acts_on() -> None:
    for stage in STAGES:
        read = {entry.partition(".")[0] for entry in entries(stage, "params")}
        assert not read & set(FLOW_SECTIONS), f"{stage}: an edit of {read & set(FLOW_SECTIONS)} must make nothing run"


def test_every_path_is_used() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{paths\.(\w+)\}", text))
    assert used == set(PathsParams.model_fields) == set(PARAMS["paths"])


@each_stage
def test_the_command_is_the_module(stage: str) -> None:
    # `python stages/tokenize.py` would put stages/ on the path, and shadow the standard library's tokenize.
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"


@each_stage
def test_a_stage_says_what_it_does(stage: str) -> None:
    assert STAGES[stage]["desc"]
    docstring = ast.get_docstring(ast.parse((ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8"))) or ""
    words = ("Reads", "Writes", "Report") if "out" in paths(stage).values() else ("Reads", "Report")
    lacking = [word for word in words if not re.search(rf"^{word} ", docstring, re.MULTILINE)]
    assert not lacking, f"stages/{stage}.py: its docstring has no line that begins with {', '.join(lacking)}"


@each_stage
def test_a_stage_depends_on_what_it_reads(stage: str) -> None:
    read = {template(name) for name, kind in paths(stage).items() if kind == "dep"}
    listed = {entry for entry in entries(stage, "deps") if entry.startswith("${paths.")}
    assert read == listed, paste(stage, "deps", read - listed, listed - read)


@each_stage
def test_a_stage_lists_what_it_writes(stage: str) -> None:
    written = {template(name) for name, kind in paths(stage).items() if kind == "out"} | {template(f"{stage}_report")}
    listed = entries(stage, "outs", "metrics", "plots")
    assert len(listed) == len(set(listed)), f"dvc.yaml, stage `{stage}`: an output stands twice"
    assert written == set(listed), paste(stage, "outs", written - set(listed), set(listed) - written)


@each_stage
def test_a_stage_lists_the_params_that_it_reads(stage: str) -> None:
    read: set[str] = set()
    for hint in hints(stage).values():
        key = next((extra for extra in get_args(hint)[1:] if isinstance(extra, Key)), None)
        if get_origin(hint) is Annotated and key is not None:
            read.add(key.name)
        elif isinstance(hint, type) and issubclass(hint, Section):
            read.add(stage)
        elif hint is TaskType:
            read.add("task")
    listed = set(entries(stage, "params"))
    assert read == listed, paste(stage, "params", read - listed, listed - read)


@each_stage
def test_a_stage_has_its_own_section_only(stage: str) -> None:
    for name, hint in hints(stage).items():
        if isinstance(hint, type) and issubclass(hint, Section):
            assert hint is section_class(stage), (
                f"stages/{stage}.py: `{name}` is a {hint.__name__}; read single keys of another section by Key(...)"
            )


def in_use(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a module but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield other
                yield from in_use(other)
            continue
        yield child
        yield from in_use(child)


def docstring_only(file: str) -> bool:
    """Whether a module holds a docstring and nothing else."""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    return len(body) == 1 and ast.get_docstring(ast.Module(body, [])) is not None


def file_of(dotted: str) -> str | None:
    """The file of a module of ours, or the folder of a package whose `__init__.py` holds code; else None."""
    path = Path(*dotted.split("."))
    if (ROOT / path / "__init__.py").is_file():
        return None if docstring_only(f"{path}/__init__.py") else path.as_posix()
    return f"{path}.py" if (ROOT / f"{path}.py").is_file() else None


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


@cache
def task_classes() -> frozenset[str]:
    """The names of TaskType and of all classes that are made from it, over any number of steps."""
    classes = [
        (node.name, {ast.unparse(base).rpartition(".")[2] for base in node.bases})
        for path in (ROOT / "tunewright").rglob("*.py")
        for node in parsed(path.relative_to(ROOT).as_posix()).body
        if isinstance(node, ast.ClassDef)
    ]
    found = {"TaskType"}
    while True:
        more = found | {name for name, bases in classes if bases & found}
        if more == found:
            return frozenset(found)
        found = more


def task_methods(file: str) -> Iterator[ast.FunctionDef]:
    """The methods of the task types in a file: each is used by those stages alone that call it."""
    for node in parsed(file).body:
        if isinstance(node, ast.ClassDef) and any(
            ast.unparse(base).rpartition(".")[2] in task_classes() for base in node.bases
        ):
            yield from (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name[:2] != "__")


def names_called(tree: ast.AST, *owners: str) -> set[str]:
    """The attributes that a piece of code asks of `task`, or of other owners."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] in owners
    }


@cache
def imports(file: str, methods: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Files of ours (or folders, where a module of them is chosen by name) and other packages that a file imports;
    of a task type's methods only those named."""
    ours: set[str] = set()
    others: set[str] = set()
    unused = [method for method in task_methods(file) if method.name not in methods]
    left_out = {id(node) for method in unused for node in ast.walk(method)}
    for node in in_use(parsed(file)):
        if id(node) in left_out:
            continue
        dotted: list[str] = []
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}:{node.lineno}: a relative import; name the module in full"
            dotted = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # `python -m tunewright.NAME` in a process of its own.
            dotted = [node.value] if re.fullmatch(r"tunewright(\.\w+)+", node.value) else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            # importlib.import_module(f"tunewright.sources.{name}"): any module of that folder.
            package = Path(file).parent.as_posix().replace("/", ".")
            prefix = ast.unparse(node.args[0]).lstrip("f").strip("'\"").replace("{__name__}", package).partition("{")[0]
            assert re.fullmatch(r"(\w+\.)+", prefix), f"{file}:{node.lineno}: name the package in full: {prefix}"
            if (file, prefix) not in LOADED_BY_NAME:
                ours.add(prefix.rstrip(".").replace(".", "/"))
        for name in dotted:
            found = file_of(name)
            if found is not None:
                if (file, found) not in FOR_MESSAGES:
                    ours.add(found)
            elif name.partition(".")[0] not in OURS:
                others.add(name.partition(".")[0])
    return frozenset(ours), frozenset(others)


def reached(*start: str) -> tuple[set[str], set[str]]:
    """All that files import, over any number of steps: files and folders of ours, other packages.

    A task type imports what its metrics or pictures need inside its methods, and a stage that never calls them never
    runs that code. So of a task type only those methods count that are asked of `task` in what is reached.
    """
    methods: set[str] = set()
    while True:
        files: set[str] = set()
        others: set[str] = set()
        called: set[str] = set(methods)
        todo = list(start)
        while todo:
            file = todo.pop()
            if file in files:
                continue
            files.add(file)
            if (ROOT / file).is_dir():
                todo += [found.relative_to(ROOT).as_posix() for found in (ROOT / file).glob("*.py")]
                continue
            ours, more = imports(file, frozenset(methods))
            todo += ours
            others |= more
            called |= names_called(parsed(file), "task")
            for method in task_methods(file):
                if method.name in methods:
                    called |= names_called(method, "self")
        if called == methods:
            return files, others
        methods = called


@each_stage
def test_a_stage_depends_on_the_code_that_it_imports(stage: str) -> None:
    # Whatever the task: what one task shares with others is a dep of a run of any of them.
    task_files = {found.relative_to(ROOT).as_posix() for found in (ROOT / "tunewright/task_types").glob("[!_]*.py")}
    chosen = sorted(task_files) if TASK_FILE in entries(stage, "deps") else []
    files = set().union(*(reached(f"stages/{stage}.py", *([file] if file else []))[0] for file in chosen or [""]))
    listed = {entry for entry in entries(stage, "deps") if entry.startswith(("stages/", "tunewright/"))}
    folders = {entry for entry in listed if (ROOT / entry).is_dir()}
    needed = {TASK_FILE if file in task_files else file for file in files}
    # What stands beside the module under its name, as a template does, belongs to the stage.
    needed |= {found.relative_to(ROOT).as_posix() for found in (ROOT / "stages").glob(f"{stage}.*")}
    needed = {file for file in needed if not any(file.startswith(f"{folder}/") for folder in folders)}
    assert needed == listed, paste(stage, "deps", needed - listed, listed - needed)


@each_stage
def test_a_stage_that_has_a_task_depends_on_the_task_s_file(stage: str) -> None:
    has_task = any(hint is TaskType for hint in hints(stage).values())
    assert (TASK_FILE in entries(stage, "deps")) == has_task, paste(
        stage, "deps", {TASK_FILE} if has_task else set(), set() if has_task else {TASK_FILE}
    )


def normal(name: str) -> str:
    """A distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


@cache
def pinned() -> dict[str, set[str]]:
    """Every distribution that requirements/ asks for by name → the files that pin it."""
    pins: dict[str, set[str]] = {}
    for file in (ROOT / "requirements").glob("*.txt"):
        if file.stem != "constraints":
            for line in file.read_text(encoding="utf-8").splitlines():
                if "==" in line:
                    pins.setdefault(normal(line.partition("==")[0]), set()).add(f"requirements/{file.name}")
    return pins


@cache
def distributions() -> dict[str, list[str]]:
    """What `import` names → the distributions that install it."""
    return {package: list(names) for package, names in packages_distributions().items()}


def homes(package: str) -> set[str]:
    """The requirements files that pin what `import package` loads; not installed here, it goes by its own name, or by
    that which it has in another environment."""
    here = distributions().get(package)
    if here is not None:
        found = {file for name in here for file in pinned().get(normal(name), ())}
        return found - set(OTHER_ENVIRONMENTS)
    names = {package, *(others[package] for others in OTHER_ENVIRONMENTS.values() if package in others)}
    return {file for name in names for file in pinned().get(normal(name), ())}


@pytest.mark.parametrize("top", [top for top in OURS if (ROOT / top).is_dir()])
def test_every_package_that_is_imported_is_pinned_by_name(top: str) -> None:
    for file in sorted((ROOT / top).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        every = frozenset(method.name for method in task_methods(name))
        for package in imports(name, every)[1] - set(sys.stdlib_module_names):
            assert homes(package), f"{file.relative_to(ROOT)} imports {package}: pin it in one of requirements/*.txt"


@each_stage
def test_a_stage_depends_on_the_pins_of_the_packages_that_it_imports(stage: str) -> None:
    _, packages = reached(f"stages/{stage}.py")
    for package in packages - NO_SHAPE - set(sys.stdlib_module_names):
        found = homes(package)
        assert found & set(entries(stage, "deps")), f"{package}: {paste(stage, 'deps (one of)', found, set())}"


@pytest.mark.parametrize(
    "file", sorted(path.relative_to(ROOT).as_posix() for top in OURS for path in (ROOT / top).rglob("__init__.py"))
)
def test_a_package_s_own_file_holds_a_docstring_only(file: str) -> None:
    # It runs whenever a module of the package is imported, yet a stage depends on it only by its whole folder.
    if not any(str(Path(file).parent) in entries(stage, "deps") for stage in STAGES):
        assert docstring_only(file), f"{file}: holds more than a docstring"


def test_importing_a_stage_loads_no_heavy_library() -> None:
    program = """
import importlib, sys
heavy = ("datasets", "great_expectations", "matplotlib", "numpy", "onnx", "onnxruntime", "pandas", "pyarrow",
         "scipy", "sklearn", "tokenizers", "torch", "transformers")
for stage in sys.argv[1:]:
    importlib.import_module(f"stages.{stage}")
    found = [name for name in heavy if name in sys.modules]
    if found:
        sys.exit(f"import stages.{stage} loads {', '.join(found)}: move the import into the function that needs it")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *MODULES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
