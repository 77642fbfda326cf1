"""How the vectors of a query and of a text make a score.

All read the (N, Td, Tq) products of N texts' vectors with a query's: what differs between a bi-encoder, ColBERT and TK is what becomes of them.
Comparing is done in float32 under any autocast: a score's differences are small beside the score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from .vectors import Vectors


class Interaction(nn.Module):
    """Makes scores of products.

    Attributes:
        idempotent: Whether a vector of a text that is there several times changes no score.
    """

    idempotent: ClassVar[bool] = False

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

    idempotent = True

    def forward(self, products: Tensor, query_mask: Tensor, text_mask: Tensor) -> Tensor:
        """(N,) scores; see ``Interaction``."""
        if not (text_mask.is_cpu and text_mask.all()):      # on another device, looking would wait for it
            products = products.masked_fill(~text_mask[:, :, None], torch.finfo(products.dtype).min)
        best = products.amax(1)                                                                            # (N, Tq)
        return (best * query_mask).sum(1)


# e^-50 is 2e-22: a thousand of them change no count of at least 1e-10 in float32, and logarithms see none below; means of counts see 2e-22 beside scores
VANISHED = -50.0
MEANS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, -0.1, -0.3, -0.5, -0.7, -0.9)


class KernelPooling(Interaction):
    """Soft counts of how well each of a query's words is matched: Gaussian kernels over cosines, summed over the text (TK).

    Args:
        variant: "improved" (default): one sum of logarithms, each kernel's count with a learned factor; the code published for
            arXiv:2002.01854, with which arXiv:2010.02666 works. "paper": two branches as in arXiv:2002.01854, section 3.2, one of
            logarithms, one of counts divided by the text's length.
        means: Of the kernels. Default: 11, from -0.9 to 1.
        sigma: Their width. Default 0.1.
    """

    def __init__(self, variant: str = "improved", means: Sequence[float] = MEANS, sigma: float = 0.1) -> None:
        super().__init__()
        self.variant, self.means, self.sigma = variant, tuple(means), sigma
        count = len(self.means)
        self.log_weights = nn.Linear(count, 1, bias=False)
        nn.init.uniform_(self.log_weights.weight, -0.014, 0.014)
        if variant == "improved":
            self.factors = nn.Parameter(torch.ones(count))
        else:
            self.mean_weights, self.branches = nn.Linear(count, 1, bias=False), nn.Linear(2, 1, bias=False)
            nn.init.uniform_(self.mean_weights.weight, -0.014, 0.014)
            self.scale = nn.Parameter(torch.full((1,), 0.01))

    def forward(self, products: Tensor, query_mask: Tensor, text_mask: Tensor) -> Tensor:
        """(N,) scores; see ``Interaction``."""
        real = text_mask[:, :, None]
        counts = torch.stack([self._kernel(products, mean).mul(real).sum(1) for mean in self.means], dim=-1)                                       # (N, Tq, K)
        own = query_mask[:, :, None]
        if self.variant == "improved":
            scores: Tensor = self.log_weights(((counts * self.factors).clamp(min=1e-10).log() * own).sum(1))
            return scores[:, 0]
        logs = (counts.clamp(min=1e-10).log2() * self.scale * own).sum(1)                                                                          # (N, K)
        means = (counts / (text_mask.sum(1)[:, None, None] + 1) * self.scale * own).sum(1)
        combined: Tensor = self.branches(torch.cat([self.log_weights(logs), self.mean_weights(means)], dim=1))
        return combined[:, 0]

    def _kernel(self, products: Tensor, mean: float) -> Tensor:
        """(N, Td, Tq): how near each product is to a kernel's mean; exactly 0 where it is nothing beside the least count (see ``subnormal``)."""
        exponents = (products - mean).square() * (-0.5 / self.sigma ** 2)
        return nn.functional.threshold(exponents, VANISHED, -math.inf).exp()
