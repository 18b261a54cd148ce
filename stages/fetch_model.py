"""Pin and copy the base model: its configuration, its weights as safetensors, its tokenizer, and nothing else.

Reads   paths.model_source    what pins the model: the requirement file of its package, or its own folder
        paths.model_choice    which model, where from, its licence: from choose_model
Writes  paths.fetched_model   a folder that Transformers loads; from scratch it holds a word of that
Report  paths.reports/fetch_model.json: licence, parameters, architecture, SHA-256

`model_name_or_path` is one of
    package:MODULE/FOLDER     a folder inside an installed package, which is never imported
    ./models/NAME, /abs/NAME  a local folder that lies in paths.model_source
    …/NAME.gguf               of these two, one file in llama.cpp's form: its weights become safetensors in float32
    ORGANISATION/NAME         a model on the Hugging Face Hub, at the commit that `model_revision` pins
    auto                      the candidate that choose_model chooses
    null                      none: `init_model` makes one from scratch
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tunewright import gguf_models
from tunewright.base_models import AUTO, check_pinned, is_hub_id, local_model
from tunewright.errors import Unreachable, UserError
from tunewright.files import atomic_folder, read_json, sha256_tree
from tunewright.foreign_files import PICKLED, check_runs_no_code, check_shards
from tunewright.gates import license_fault
from tunewright.params import Section
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage

# What a model consists of. Weights are safetensors alone: any other form may run code when it is opened.
WANTED = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    "LICENSE*",
    "README.md",
)


class FetchModelParams(Section):
    """Which base model, and from where."""

    model_name_or_path: str | None = Field(min_length=1)
    model_revision: str | None = Field(
        pattern=r"^[0-9a-f]{40}$", description="the 40-digit commit of a hub id, or null"
    )
    license: str | None = Field(min_length=1, description="the model's licence, where its own files name none")

    @model_validator(mode="after")
    def _a_hub_id_is_pinned(self) -> Self:
        check_pinned(self.model_name_or_path, self.model_revision)
        return self


class FetchModelPaths(Paths):
    model_source: Dep
    model_choice: Dep
    fetched_model: Out


class FetchModelReport(Report):
    """What the base model is. `parameters` counts floating-point weights; `sha256` covers every copied file."""

    model_name_or_path: str | None = None
    model_revision: str | None = None
    license: str | None = None
    architecture: str | None = None
    model_type: str | None = None
    parameters: int | None = None
    sha256: str | None = None


def run(paths: FetchModelPaths) -> FetchModelReport:
    """Copy the model into paths.fetched_model.

    Raises
        UserError    a package that is not installed, a folder that is not there, pickled weights only, code of
                     its own, links out of the folder, no tokenizer, no licence.
        Unreachable  the Hub did not answer.
    """
    choice = read_json(paths.model_choice)
    name, revision = choice["model_name_or_path"], choice["model_revision"]
    with atomic_folder(paths.fetched_model) as staging:
        if name is None:
            # DVC warns of an empty folder again and again.
            (staging / "README.md").write_text("Nothing was fetched: init_model makes the base model from scratch.\n")
            return FetchModelReport(applies=False)
        if is_hub_id(name):
            _download(name, revision, staging)
        else:
            source = local_model(name, paths.model_source)
            if source.is_file():
                gguf_models.convert(source, staging)
            else:
                _copy(source, staging)
        config = _checked_config(name, staging)
        if not (staging / "tokenizer.json").is_file():
            _convert_tokenizer(name, staging)
        return FetchModelReport(
            model_name_or_path=name,
            model_revision=revision,
            license=_license(name, staging, choice["license"]),
            architecture=(config.get("architectures") or ["unknown"])[0],
            model_type=config.get("model_type", "unknown"),
            parameters=sum(_parameters(file) for file in sorted(staging.glob("*.safetensors"))),
            sha256=sha256_tree(staging),
        )


def check(
    paths: FetchModelPaths,
    params: FetchModelParams,
    allowed: Annotated[list[str] | None, Key("gate_data.allowed_licenses")],
) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`): a package or a folder that is not there, a
    licence that gate_data will not let through. Of a model on the Hub it is what params state; its card may say
    otherwise."""
    name, found = params.model_name_or_path, params.license
    if name is None or name == AUTO:
        return []
    try:
        if not is_hub_id(name):
            found = _license(name, local_model(name, paths.model_source), params.license)
    except UserError as error:
        return [str(error)]
    fault = license_fault(found, allowed) if allowed is not None and found is not None else None
    if fault is None:
        return []
    return [
        f"fetch_model.model_name_or_path: {name}: {fault}; gate_data.allowed_licenses has {', '.join(allowed or ())}."
    ]


def _copy(source: Path, staging: Path) -> None:
    wanted = sorted({file for pattern in WANTED for file in source.glob(pattern)})
    for file in wanted:
        if not file.resolve().is_relative_to(source.resolve()):
            raise UserError(f"{file}: a link out of the model's folder is refused. Put the file itself there.")
        if file.is_file():
            shutil.copyfile(file, staging / file.name)
    pickled = sorted(file.name for pattern in PICKLED for file in source.glob(pattern))
    _need_safetensors(str(source), staging, pickled)


def _need_safetensors(name: str, staging: Path, pickled: list[str]) -> None:
    if any(staging.glob("*.safetensors")):
        return
    if pickled:
        raise UserError(
            f"{name}: weights only as {', '.join(pickled)}, which can run code when opened; expected *.safetensors. "
            "Convert them where you trust their source (`save_pretrained` in Transformers writes safetensors)."
        )
    raise UserError(f"{name}: no weights found; expected *.safetensors.")


def _download(name: str, revision: str | None, staging: Path) -> None:
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        files = [found.rfilename for found in HfApi().model_info(name, revision=revision).siblings or []]
        snapshot_download(name, revision=revision, allow_patterns=list(WANTED), local_dir=staging)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"fetch_model.model_name_or_path: the hub has no {name} at {revision}, or it asks for a token: HF_TOKEN."
        ) from error
    except (httpx2.HTTPError, OSError, HfHubHTTPError) as error:
        raise Unreachable(
            f"fetch_model: the hub did not give {name} ({type(error).__name__}). Check the network or HF_ENDPOINT, or "
            "name a local folder (./…) or a model that a package carries (package:…)."
        ) from error
    shutil.rmtree(staging / ".cache", ignore_errors=True)
    pickled = [file for file in files if any(PurePosixPath(file).match(pattern) for pattern in PICKLED)]
    _need_safetensors(name, staging, pickled)


def _checked_config(name: str, staging: Path) -> dict[str, Any]:
    if not (staging / "config.json").is_file():
        raise UserError(f"{name}: no config.json; expected a model folder as `save_pretrained` writes it.")
    check_runs_no_code(name, staging)
    check_shards(name, staging)
    config: dict[str, Any] = read_json(staging / "config.json")
    return config


def _convert_tokenizer(name: str, staging: Path) -> None:
    """Write tokenizer.json where a model brings only the older forms: the stages after this read that one file."""
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(staging, trust_remote_code=False).save_pretrained(staging)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{name}: no tokenizer.json, and none can be made from its files: {error}") from error


def _license(name: str, staging: Path, stated: str | None) -> str:
    """The licence that the model's card names in its front matter, else the one that params state."""
    card = staging / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---\s*\n", text, flags=re.DOTALL)
    named = re.search(r"^license:\s*[\"']?([\w.+-]+)", front.group(1), flags=re.MULTILINE) if front else None
    found = named.group(1) if named else stated
    if found is None:
        raise UserError(f"{name}: its files name no licence. State it in fetch_model.license, once you have read it.")
    return found


def _parameters(file: Path) -> int:
    """The number of floating-point weights in a safetensors file, from its header alone.

    Raises
        UserError  for a file that is cut off or is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            slices = [opened.get_slice(key) for key in opened.keys()]  # noqa: SIM118 - no mapping
            count = 0
            for found in slices:
                if found.get_dtype().startswith(("F", "BF")):
                    size = 1
                    for extent in found.get_shape():
                        size *= extent
                    count += size
            return count
    except SafetensorError as error:
        raise UserError(f"{file.name}: not a whole safetensors file ({error}). Fetch the model again.") from error


if __name__ == "__main__":
    run_stage(run)
