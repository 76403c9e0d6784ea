"""The layers whose rows are tokens, embedding and head, of which each shard has some.

Logits go to the first shard, which samples: each is sent once, and sampling needs whole rows (penalties, top-p,
logprobs). What it draws goes to the others with the next step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .shard import Tokens
from .shard_group import ShardGroup


class TokenEmbedding:
    def __init__(self, table: Tensor, tokens: Tokens, group: ShardGroup) -> None:
        """table: [the shard's tokens, hidden]"""
        self._table, self._tokens, self._group = table, tokens, group

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: [num_tokens] of the whole vocabulary. Returns [num_tokens, hidden]."""
        if self._group.size == 1:
            return F.embedding(token_ids, self._table)
        own = token_ids - self._tokens.first
        is_elsewhere = (own < 0) | (own >= len(self._table))
        x = F.embedding(own.masked_fill(is_elsewhere, 0), self._table).masked_fill(is_elsewhere[:, None], 0)
        self._group.all_reduce(x)
        return x


class LMHead:
    def __init__(self, table: Tensor, tokens: Tokens, group: ShardGroup) -> None:
        """table: [the shard's tokens, hidden]"""
        self._table, self._tokens, self._group = table, tokens, group

    def project(self, hidden: Tensor, num_added: int) -> Tensor:
        """hidden: [n, hidden]. Returns the logits of the shard's tokens: [n, tokens], and, where they are the last of
        the vocabulary, of num_added further ones, as zeros."""
        logits = F.linear(hidden, self._table)
        return F.pad(logits, (0, num_added)) if num_added and self._tokens.are_last else logits

    def gather(self, logits: Tensor, num_added: int) -> Tensor:
        """logits: as `project` made them. Returns [n, vocab + num_added] in the first shard, [n, 0] in others."""
        if self._group.size == 1:
            return logits
        most, vocab_size = self._tokens.most, self._tokens.vocab_size
        sent = F.pad(logits, (0, most + num_added - logits.shape[1]))  # of one shape in all shards
        parts = self._group.gather(sent)
        if not parts:
            return logits[:, :0]
        last = vocab_size - most * (len(parts) - 1) + num_added
        return torch.cat([*(part[:, :most] for part in parts[:-1]), parts[-1][:, :last]], dim=1)
