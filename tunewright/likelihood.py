"""How likely a language model holds a text to be, in batches that fit into memory. Heavy to call, light to import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tunewright.batches import sorted_batches
from tunewright.losses import IGNORED

if TYPE_CHECKING:
    import numpy as np

LOGITS_AT_ONCE = 2**26
"""Logits that one batch may have: rows · tokens · vocabulary, 256 MB as float32."""


def token_batches(
    lengths: Sequence[int], batch_size: int, vocabulary: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Rows of like length, longest first: at most `batch_size` of them, and fewer where their logits would not fit.

    max_tokens: padded tokens of a batch, in place of `batch_size` rows.
    """
    batches = []
    for batch in sorted_batches(lengths, batch_size, max_tokens):
        rows = max(1, LOGITS_AT_ONCE // (vocabulary * lengths[batch[0]])) if lengths[batch[0]] else len(batch)
        batches += [batch[start : start + rows] for start in range(0, len(batch), rows)]
    return batches


def padded(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> Any:
    """Rows of integers → a tensor (B, T), filled up at the right, or at the left."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side="left" if left else "right")


def negative_log_likelihoods(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    batch_size: int,
    pad_token_id: int,
    max_tokens: int | None = None,
) -> np.ndarray:
    """−Σ ln p of each row's labelled tokens (N,), in nats; a label −100 does not count, and the first never does.

    input_ids, labels: of each row, equally long, unshifted as Transformers has them.
    """
    import numpy as np
    import torch

    lengths = [len(row) for row in input_ids]
    found = np.zeros(len(lengths))
    training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in token_batches(lengths, batch_size, model.config.get_text_config().vocab_size, max_tokens):
            ids = padded([input_ids[row] for row in batch], pad_token_id).to(model.device)
            mask = padded([[1] * lengths[row] for row in batch], 0).to(model.device)
            # Virtual tokens of a prompt or prefix can have logits of their own, in front.
            logits = model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]
            for at, row in enumerate(batch):
                wanted = torch.as_tensor(labels[row][1:], dtype=torch.int64, device=logits.device)
                known = (wanted != IGNORED).nonzero().squeeze(-1)
                own = logits[at, known].float()
                of_label = own.gather(-1, wanted[known].unsqueeze(-1)).squeeze(-1)
                found[row] = (torch.logsumexp(own, dim=-1) - of_label).double().sum().item()
    model.train(training)
    return found


def pseudo_negative_log_likelihoods(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    special: frozenset[int],
    mask_token_id: int,
    batch_size: int,
    pad_token_id: int,
) -> np.ndarray:
    """−Σ ln p(token | all others) of each row (N,), in nats, by a masked language model: each token is hidden in a copy
    of its own, so a row of T tokens costs T rows. Those in `special` are neither hidden nor counted.

    Source: J. Salazar, D. Liang, T. Q. Nguyen, K. Kirchhoff, Masked language model scoring, ACL 2020, equation 1.
    """
    import numpy as np
    import torch

    hidden = [(row, at) for row, ids in enumerate(input_ids) for at, token in enumerate(ids) if token not in special]
    lengths = [len(input_ids[row]) for row, _ in hidden]
    found = np.zeros(len(input_ids))
    training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in token_batches(lengths, batch_size, model.config.get_text_config().vocab_size):
            asked = [hidden[copy] for copy in batch]
            ids = padded([input_ids[row] for row, _ in asked], pad_token_id)
            mask = padded([[1] * len(input_ids[row]) for row, _ in asked], 0).to(model.device)
            copies, places = torch.arange(len(asked)), torch.tensor([at for _, at in asked])
            tokens = ids[copies, places]
            ids[copies, places] = mask_token_id
            logits = model(input_ids=ids.to(model.device), attention_mask=mask).logits[copies, places].float()
            costs = torch.logsumexp(logits, dim=-1) - logits.gather(-1, tokens.to(logits.device)[:, None])[:, 0]
            np.add.at(found, [row for row, _ in asked], costs.double().cpu().numpy())
    model.train(training)
    return found


def costs_of_asked(
    model: Any,
    batches: Sequence[dict[str, Any]],
    members: Sequence[Sequence[int]],
    rows: int,
    asked: Callable[[Any], Any],
    visible: np.ndarray,
) -> dict[str, np.ndarray]:
    """What the hidden tokens of each row cost a model that was asked for them, and unigram frequencies, (rows,) each:
    nll (nats, summed), tokens, hits, unigram_nll, unigram_hits.

    batches: as a task collates them, from which the labels are taken.   members: of each batch, the row of each input.
    asked: labels (B, T) → which of them count.   visible: (V,), how often the reference has seen each token; above 0.
    """
    import numpy as np
    import torch

    from tunewright.compute import decoder_inputs

    unigram, commonest = np.log(visible / visible.sum()), int(visible.argmax())
    sums = {name: np.zeros(rows) for name in ("nll", "tokens", "hits", "unigram_nll", "unigram_hits")}
    training = model.training
    model.eval()
    with torch.inference_mode():
        for own, batch in zip(members, batches, strict=True):
            labels = batch.pop("labels")
            given = {name: value.to(model.device) for name, value in batch.items()}
            logits = model(**given, **decoder_inputs(model, labels.to(model.device))).logits
            counts = asked(labels)
            actual = labels[counts]
            log_p = torch.log_softmax(logits[counts.to(logits.device)].float(), dim=-1).cpu()
            at = np.array(own)[counts.nonzero()[:, 0].numpy()]
            for name, values in (
                ("nll", -log_p.gather(-1, actual[:, None])[:, 0].double().numpy()),
                ("tokens", np.ones(len(actual))),
                ("hits", (log_p.argmax(dim=-1) == actual).double().numpy()),
                ("unigram_nll", -unigram[actual.numpy()]),
                ("unigram_hits", (actual.numpy() == commonest).astype(float)),
            ):
                np.add.at(sums[name], at, values)
    model.train(training)
    return sums
