"""A model in one GGUF file, as llama.cpp has it → the folder of safetensors that every other stage reads.

Its weights are multiplied out to float32, whatever number of bits they were cut to: what the cut lost stays lost. Heavy
to call (Transformers reads the file, with the package gguf), light to import.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tunewright.errors import UserError

MAGIC = b"GGUF"
# What Transformers' reader ends with: for what it does not know, and for a file that is cut off or has wrong numbers.
UNREADABLE = (ValueError, NotImplementedError, LookupError, OSError, OverflowError, RuntimeError, struct.error)


def convert(file: Path, folder: Path) -> None:
    """Write config, weights, tokenizer and chat template of `file` into `folder`.

    Raises
        UserError  a file that is no GGUF, or of an architecture or a kind of tokenizer that Transformers does not read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with file.open("rb") as stream:
        found = stream.read(len(MAGIC))
    if found != MAGIC:
        raise UserError(f"{file.name}: no GGUF file (it begins with {found!r}, expected {MAGIC!r}). Fetch it again.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        opened = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    except UNREADABLE as error:
        raise UserError(
            f"{file.name}: Transformers can't read this model ({type(error).__name__}: {error}). "
            "Fetch it again, or take the same model as safetensors."
        ) from error
    config = opened.config
    # The weights are plain numbers now: a config that still calls them quantized could not be saved or loaded.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    config.name_or_path = ""
    model = type(opened)(config)
    model.load_state_dict(opened.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
