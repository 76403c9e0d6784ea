"""The two layers whose weights have a row for each token, embedding and head. Each shard has some of the rows.

Logits go to the first shard, which samples: each is sent once, and sampling needs whole rows (penalties, top-p,
logprobs). The sampled tokens go to the other shards with the next step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .shard import Tokens
from .shard_group import ShardGroup


class TokenEmbedding:
    def __init__(self, rows: Tensor, tokens: Tokens, group: ShardGroup) -> None:
        """rows: [the shard's tokens, hidden]."""
        self._rows, self._tokens, self._group = rows, tokens, group

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: [num_tokens], of the whole vocabulary. Returns [num_tokens, hidden]."""
        if self._group.size == 1:
            return F.embedding(token_ids, self._rows)
        own = token_ids - self._tokens.first
        is_elsewhere = (own < 0) | (own >= len(self._rows))
        x = F.embedding(own.masked_fill(is_elsewhere, 0), self._rows).masked_fill(is_elsewhere[:, None], 0)
        self._group.all_reduce(x)
        return x


class LMHead:
    def __init__(self, rows: Tensor, tokens: Tokens, group: ShardGroup) -> None:
        """rows: [the shard's tokens, hidden]."""
        self._rows, self._tokens, self._group = rows, tokens, group

    def project(self, hidden: Tensor, num_added: int) -> Tensor:
        """Returns the logits of the shard's tokens, [n, tokens]. If these are the last of the vocabulary, num_added
        columns of zeros follow. hidden: [n, hidden]."""
        logits = F.linear(hidden, self._rows)
        return F.pad(logits, (0, num_added)) if num_added and self._tokens.are_last else logits

    def gather(self, logits: Tensor, num_added: int) -> Tensor:
        """Collects the logits of all shards: [n, vocab + num_added] in the first shard, [n, 0] in the others.

        logits: the result of `project`.
        """
        if self._group.size == 1:
            return logits
        most, vocab_size = self._tokens.most, self._tokens.vocab_size
        sent = F.pad(logits, (0, most + num_added - logits.shape[1]))  # one shape in all shards
        parts = self._group.gather(sent)
        if not parts:
            return logits[:, :0]
        last = vocab_size - most * (len(parts) - 1) + num_added
        return torch.cat([*(part[:, :most] for part in parts[:-1]), parts[-1][:, :last]], dim=1)
