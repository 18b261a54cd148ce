"""A tokenizer of one's own, trained on texts: byte-level BPE, WordPiece or Unigram. The same texts give the same bytes.

Two of the three trainers of the package `tokenizers` (0.23) don't: they walk through hash tables whose order is drawn
anew each time, so WordPiece numbers its pieces differently and Unigram sums its floats in another order. Here WordPiece
is given its first pieces in sorted order, and Unigram is trained by SentencePiece, the method's own program, on one
thread; what either has learnt is then a plain `tokenizers.Tokenizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tunewright.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["byte_level_bpe", "wordpiece", "unigram"]
Family = Literal["encoder", "decoder", "encoder_decoder"]
Texts = Callable[[], Iterable[str]]
"""The texts, from the start each time it is called: one trainer reads them twice."""

MIN_FREQUENCY = 2
"""BPE and WordPiece join a pair of pieces into one of its own where it stands this often."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that no text is cut into, in the order of their ids, which begin with 0."""

    roles: dict[str, str]
    """`pad_token`, `eos_token`, … → the token; one token may have several roles."""
    further: list[str] = field(default_factory=list)
    before: str | None = None
    """What stands before a text, and after it."""
    after: str | None = None

    @property
    def all(self) -> list[str]:
        """Each token once."""
        return list(dict.fromkeys([*self.roles.values(), *self.further]))


def special_tokens(family: Family, kind: Kind, extra_ids: int = 0, *, chat: bool = False) -> SpecialTokens:
    """What models of a family are used to: BERT's, GPT-2's and T5's.

    extra_ids: sentinels <extra_id_0>, …, which stand for the spans that a T5 is to fill in.
    chat: the marks of the turns of CHATML too.
    """
    further = [f"<extra_id_{number}>" for number in range(extra_ids)] + (["<|im_start|>", "<|im_end|>"] if chat else [])
    if family == "encoder":
        roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        return SpecialTokens({**roles, "mask_token": "[MASK]"}, further, "[CLS]", "[SEP]")
    if family == "encoder_decoder":
        roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        return SpecialTokens(roles, further, None, "</s>")
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    # Bytes leave nothing unknown; the other kinds need a token for a character that was not in training.
    return SpecialTokens(roles if kind == "byte_level_bpe" else {**roles, "unk_token": "<unk>"}, further)


def train(kind: Kind, texts: Texts, vocab_size: int, special: SpecialTokens, *, lowercase: bool) -> Tokenizer:
    """Train a tokenizer.

    vocab_size: entries at most, the special tokens included; of little text come fewer.

    Raises
        UserError  where vocab_size has no room for the single characters.
    """
    made = {"byte_level_bpe": _byte_level_bpe, "wordpiece": _wordpiece, "unigram": _unigram}[kind]
    tokenizer = made(texts, vocab_size, special, lowercase)
    tokenizer.add_special_tokens(special.all)
    if special.after is not None:
        from tokenizers.processors import TemplateProcessing

        start = f"{special.before} " if special.before else ""
        around = [token for token in (special.before, special.after) if token]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{start}$A {special.after}",
            pair=f"{start}$A {special.after} $B:1 {special.after}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in around],
        )
    return tokenizer


def _byte_level_bpe(texts: Texts, vocab_size: int, special: SpecialTokens, lowercase: bool) -> Tokenizer:
    """GPT-2's: pieces of bytes, so that every text comes back as it was and nothing is unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=special.all,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _wordpiece(texts: Texts, vocab_size: int, special: SpecialTokens, lowercase: bool) -> Tokenizer:
    """BERT's: words and, after ##, their pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    unknown = special.roles["unk_token"]

    def trained(size: int, first: list[str]) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=MIN_FREQUENCY, special_tokens=first, show_progress=False
        )
        tokenizer.train_from_iterator(texts(), trainer)
        return tokenizer

    # A vocabulary without room holds the single characters alone. Those inside words come in no fixed order; named as
    # special tokens they are numbered first, and all that is learnt follows from the numbers.
    single = trained(1, []).get_vocab()
    if len(single) + len(special.all) > vocab_size:
        raise _too_small(vocab_size, len(single) + len(special.all))
    inside = sorted(piece for piece in single if piece.startswith("##") and len(piece) == 3)
    tokenizer = trained(vocab_size, [*special.all, *inside])
    # Again from the vocabulary, in which those are no longer special.
    learnt = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token=unknown))
    learnt.normalizer, learnt.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    learnt.decoder = decoders.WordPiece()
    return learnt


def _unigram(texts: Texts, vocab_size: int, special: SpecialTokens, lowercase: bool) -> Tokenizer:
    """T5's: pieces with probabilities, ▁ for the space before a word (Kudo 2018)."""
    import io

    import sentencepiece
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    steps = [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    normalizer = normalizers.Sequence([*steps, normalizers.Lowercase()] if lowercase else steps)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(normalizer.normalize_str(text) for text in texts()),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocab_size - len(special.all) + 1,  # its own unknown token is none of ours
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            max_sentence_length=2**30,
            num_threads=1,
            bos_id=-1,
            eos_id=-1,
            unk_id=0,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"init_model.from_scratch.vocab_size: found {vocab_size}; SentencePiece can't train so small a vocabulary "
            f"on these texts ({str(error).splitlines()[-1]}). Raise it."
        ) from error
    found = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [(found.id_to_piece(number), found.get_score(number)) for number in range(1, found.get_piece_size())]
    ours = special.all
    tokenizer = Tokenizer(
        models.Unigram(
            [*((token, 0.0) for token in ours), *(entry for entry in pieces if entry[0] not in ours)],
            unk_id=ours.index(special.roles["unk_token"]),
        )
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _too_small(found: int, needed: int) -> UserError:
    return UserError(
        f"init_model.from_scratch.vocab_size: found {found}; the special tokens and the single characters of these "
        f"texts are {needed} already. Raise it, or take byte_level_bpe."
    )
