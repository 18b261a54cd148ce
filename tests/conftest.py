"""What the tests share: a tiny real model, and a copy of this repository that runs in seconds.

Nothing here stands in for a part of ours: the stages, DVC, Prefect, Transformers and the data are the real ones,
only fewer rows and a model of 100 thousand weights.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

# Before PyTorch is imported: with models as small as these a second thread only waits, and while it waits it spins, on
# a core that another worker needs. What a test trains by `num_threads` has as many as that says.
os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}
# Or each of a thousand processes would compile the project anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

REPOSITORY = Path(__file__).parent.parent
ROWS = 700


def environment() -> dict[str, str]:
    """The environment of a child process: this interpreter's programs first, nobody's Prefect, no telemetry."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "TUNEWRIGHT_"))}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "COLUMNS": "400",  # a message is one line, whatever the terminal
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.com",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.com",
    }


def make_tiny_model(folder: Path, texts: list[str]) -> None:
    """A BERT of two layers with random weights (seeded) and a WordPiece tokenizer trained on `texts`."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from tunewright.tokenizer_training import special_tokens, train

    # Not by BertWordPieceTokenizer, which numbers its pieces anew in each process.
    special = special_tokens("encoder", "wordpiece")
    trained = train("wordpiece", lambda: texts, 1500, special, lowercase=True)
    folder.mkdir(parents=True, exist_ok=True)
    trained.save(str(folder / "tokenizer.json"))
    BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), model_max_length=128).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=trained.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA tiny model made by the tests.\n")


def make_tiny_decoder(folder: Path, texts: list[str], kind: str, chat_template: str | None = None) -> None:
    """A GPT-2 or a Llama of two layers with random weights (seeded), tied embeddings, and a byte-level BPE trained on
    `texts`."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trained.train_from_iterator(texts, vocab_size=600, min_frequency=2, show_progress=False, special_tokens=special)
    folder.mkdir(parents=True, exist_ok=True)
    trained.save(str(folder / "tokenizer.json"))
    end = "<|im_end|>" if chat_template else "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        additional_special_tokens=special[1:],
        bos_token=special[0],
        eos_token=end,
        pad_token=special[0],
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": trained.get_vocab_size(),
        "bos_token_id": 0,
        "eos_token_id": trained.token_to_id(end),
        "tie_word_embeddings": True,
    }
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=128, n_embd=32, n_layer=2, n_head=2, **common))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                **common,
            )
        )
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA tiny model made by the tests.\n")


def make_tiny_encoder_decoder(folder: Path, texts: list[str]) -> None:
    """A T5 of two layers each with random weights (seeded) and a byte-level BPE tokenizer trained on `texts`."""
    import torch
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    trained = ByteLevelBPETokenizer(add_prefix_space=True)
    special = ["<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(texts, vocab_size=400, min_frequency=2, special_tokens=special, show_progress=False)
    backend = trained._tokenizer
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    names = dict(zip(("pad_token", "eos_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=128, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=backend.get_vocab_size(),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA tiny model made by the tests.\n")


ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FRENCH = ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf")


def number_pairs() -> list[tuple[str, str]]:
    """All numbers of one and of two digits, in English words and in French ones."""
    digits = [(first,) for first in range(10)] + [(first, second) for first in range(10) for second in range(10)]
    return [(" ".join(ENGLISH[at] for at in row), " ".join(FRENCH[at] for at in row)) for row in digits]


@pytest.fixture(scope="session")
def tiny_encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a tiny T5 with random weights; its tokenizer knows the words of `number_pairs`."""
    folder = tmp_path_factory.mktemp("tiny_t5") / "model"
    make_tiny_encoder_decoder(folder, [text for pair in number_pairs() for text in pair] * 2)
    return folder


def reviews(rows: int) -> bytes:
    """About `rows` real movie reviews, at even steps over the whole file: it begins with the kindest."""
    lines = (REPOSITORY / "data/raw/movie_reviews/movie_reviews.tsv").read_bytes().split(b"\r\n")
    return b"\r\n".join(lines[: len(lines) // rows * rows : len(lines) // rows]) + b"\r\n"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the tiny model."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny_model(folder, reviews(ROWS).decode().splitlines())
    return folder


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a tiny GPT-2, which has no chat template."""
    folder = tmp_path_factory.mktemp("tiny") / "gpt2"
    make_tiny_decoder(folder, reviews(ROWS).decode().splitlines(), "gpt2")
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a tiny Llama with a chat template of ChatML's form."""
    from tunewright.chat_templates import CHATML

    folder = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_decoder(folder, reviews(ROWS).decode().splitlines(), "llama", CHATML)
    return folder


@dataclass
class Project:
    """A copy of this repository in a folder of its own, with git and DVC, few rows and the tiny model."""

    root: Path

    @classmethod
    def copy(cls, folder: Path) -> Project:
        """A copy of the repository inside `folder`, committed to git, in which nothing has run yet."""
        root = folder / "project"
        root.mkdir()
        copy_repository(root)
        (root / "dvc.lock").unlink(missing_ok=True)
        return cls(root).commit()

    @classmethod
    def make(cls, folder: Path, model: Path) -> Project:
        """The same with few rows and the tiny model."""
        found = cls.copy(folder)
        (found.root / "data/raw/movie_reviews/movie_reviews.tsv").write_bytes(reviews(ROWS))
        shutil.copytree(model, found.root / "models/tiny")
        found.edit(_small)
        return found.commit()

    def commit(self) -> Project:
        """Commit everything to git."""
        self.run("git", "init", "--quiet", "--initial-branch=main")
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "the project as it stands")
        return self

    def run(self, *command: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; `python` is this interpreter."""
        found = subprocess.run(
            command, cwd=self.root, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and found.returncode:
            raise AssertionError(f"{command} → {found.returncode}\n{found.stdout}\n{found.stderr}")
        return found

    def stage(self, name: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one stage as DVC runs it, without DVC."""
        return self.run("python", "-m", f"stages.{name}", check=check)

    def tunewright(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the `tunewright` command with the project's own code."""
        return self.run("python", "-m", "flows.cli", *arguments, check=check)

    def run_file(self, stage: str) -> Path:
        """Where the story of a stage's latest run stands."""
        return self.root / f".tunewright/runs/{stage}.json"

    def edit(self, change: Callable[[Any], None]) -> None:
        """Edit params.yaml, keeping its comments."""
        yaml = YAML()
        path = self.root / "params.yaml"
        params = yaml.load(path.read_text(encoding="utf-8"))
        change(params)
        with path.open("w", encoding="utf-8") as stream:
            yaml.dump(params, stream)

    def lock(self) -> Any:
        """The parsed dvc.lock."""
        return YAML(typ="safe").load((self.root / "dvc.lock").read_text(encoding="utf-8"))

    def ran(self) -> set[str]:
        """The stages that have run since `forget_runs`."""
        return {file.stem for file in (self.root / ".tunewright/runs").glob("*.json")}

    def forget_runs(self) -> None:
        """Forget which stages have run."""
        shutil.rmtree(self.root / ".tunewright/runs", ignore_errors=True)


def _small(params: Any) -> None:
    params["paths"]["model_source"] = "models/tiny"
    params["fetch_model"]["model_name_or_path"] = "./models/tiny"
    params["validate"]["min_rows"] = 100
    params["audit_data"]["sensitive_features"] = []  # which switches audit_model off too
    params["gate_data"]["max_label_share_gap"] = 0.5
    params["tokenize"]["max_length"] = 64
    params["finetune"].update(per_device_train_batch_size=16, learning_rate=1e-3, eval_steps=8, logging_steps=4)
    params["baseline"].update(ngram_range=[1], C=[1.0])
    params["evaluate"]["bootstrap_samples"] = 200
    params["explain"]["enabled"] = False  # tests/unit/test_explain.py has it at work
    params["memorization"].update(max_rows=50, bootstrap_samples=100)
    params["verdict"].update(min_metrics={"accuracy": 0.1}, max_metrics={}, min_margin_over_baseline=-1.0)
    params["export"]["parity_rows"] = 8


def copy_repository(root: Path) -> None:
    """Copy what git would: tracked files, and new ones that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    """A small project, committed to git, in which nothing has run yet."""
    return Project.make(tmp_path, tiny_model)
