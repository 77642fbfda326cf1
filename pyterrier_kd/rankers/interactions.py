"""How the vectors of a query and of a text make a score.

All read the (N, Td, Tq) products of N texts' vectors with a query's: what differs between a bi-encoder, ColBERT and TK is what becomes of them.
Comparing is done in float32 under any autocast: a score's differences are small beside the score.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .vectors import Vectors


class Interaction(nn.Module):
    """Makes scores of products."""

    def forward(self, products: Tensor, query_mask: Tensor, text_mask: Tensor) -> Tensor:
        """(N,) scores.

        Args:
            products: (N, Td, Tq) float32.
            query_mask: (N or 1, Tq) bool.
            text_mask: (N, Td) bool.
        """
        raise NotImplementedError

    def pairs(self, queries: Vectors, texts: Vectors) -> Tensor:
        """(N,) scores of N texts, each with its own query or all with one."""
        with torch.autocast(texts.vectors.device.type, enabled=False):
            theirs, own = texts.vectors.float(), queries.vectors.float()
            products = theirs @ own[0].T if len(queries) == 1 else theirs @ own.transpose(1, 2)
            scores: Tensor = self(products, queries.mask, texts.mask)
        return scores

    def every(self, queries: Vectors, texts: Vectors) -> Tensor:
        """(B, U) scores of B queries with each of U texts."""
        return torch.stack([self.pairs(queries.take([i]), texts) for i in range(len(queries))])


class Dot(Interaction):
    """The one product that there is (BERT_DOT)."""

    def forward(self, products: Tensor, query_mask: Tensor, text_mask: Tensor) -> Tensor:
        """(N,) scores; see ``Interaction``."""
        return products[:, 0, 0]

    def every(self, queries: Vectors, texts: Vectors) -> Tensor:
        """(B, U) scores; see ``Interaction``."""
        with torch.autocast(texts.vectors.device.type, enabled=False):
            return queries.vectors[:, 0].float() @ texts.vectors[:, 0].float().T


class MaxSim(Interaction):
    """The sum over a query's vectors of the largest product with any of the text's (ColBERT, arXiv:2004.12832, eq. 3)."""

    def forward(self, products: Tensor, query_mask: Tensor, text_mask: Tensor) -> Tensor:
        """(N,) scores; see ``Interaction``."""
        best = products.masked_fill(~text_mask[:, :, None], torch.finfo(products.dtype).min).amax(1)       # (N, Tq)
        return (best * query_mask).sum(1)
