"""Files that others have made, looked at before anything opens them: what would run code, or leads out of its folder.

Weights are safetensors alone, which hold numbers and nothing else; a pickle runs what it likes when it is opened. No
configuration may name code: Transformers asks on the terminal whether to run it, and here nobody is to be asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tunewright.errors import UserError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.h5", "*.msgpack")
INDEX = "model.safetensors.index.json"
CONFIGS = (
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)
AUTO_MAP = "auto_map"
"""Where a configuration says which Python file of the model holds its classes."""
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Where it says which attention is computed: a name with a slash is compiled code of the Hub."""


def pickled(folder: Path) -> list[str]:
    """The names of files that can run code when they are opened, at any depth."""
    return sorted({found.relative_to(folder).as_posix() for pattern in PICKLED for found in folder.rglob(pattern)})


def check_runs_no_code(name: str, folder: Path) -> None:
    """Refuse a model whose configurations name code, at any depth.   name: of the model, for the message.

    Raises
        UserError  naming the file and the key; for a configuration that is no JSON object, too.
    """
    for file in sorted(found for config in CONFIGS for found in folder.rglob(config)):
        where = file.relative_to(folder).as_posix()
        for key, value in _keys(_object(name, file, where)):
            if key == AUTO_MAP and value:
                raise UserError(
                    f"{name}: {where} asks to run code of its own ({AUTO_MAP}), which is refused. "
                    "Use a model that Transformers itself knows."
                )
            if key in KERNELS and any(
                "/" in str(one) for one in (value.values() if isinstance(value, dict) else [value])
            ):
                raise UserError(
                    f"{name}: {where} asks for compiled code of the Hub ({key}: {value}), which is refused. "
                    "Take the key out; Transformers chooses one of its own then."
                )


def check_shards(name: str, folder: Path) -> None:
    """Refuse an index of weights that names what is no file of its own folder.

    Raises
        UserError  naming the first such file.
    """
    file = folder / INDEX
    if not file.is_file():
        return
    named = _object(name, file, INDEX).get("weight_map")
    shards = sorted({str(shard) for shard in named.values()}) if isinstance(named, dict) else []
    wrong = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
    if wrong or not shards:
        found = wrong[0] if wrong else "no file"
        raise UserError(f"{name}: {INDEX} names {found}; expected *.safetensors of the model's own folder.")


def inside(name: str) -> bool:
    """Whether a name that a manifest lists stays in the manifest's folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _object(name: str, file: Path, where: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: {where} is no JSON ({error}). Fetch the model again.") from error
    if not isinstance(found, dict):
        raise UserError(
            f"{name}: {where} holds a {type(found).__name__}; expected a JSON object. Fetch the model again."
        )
    return found


def _keys(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
