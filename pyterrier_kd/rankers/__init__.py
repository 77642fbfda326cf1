"""Rankers, in a file for each architecture: trainable scorers of (query, text) pairs that are PyTerrier transformers."""

from .base import Ranker, Tokens
from .bert_dot import BertDot
from .colbert import ColBERT
from .cross_encoder import CrossEncoder
from .prettr import PreTTR
from .tk import TK
from .two_sided import TwoSided

__all__ = ["TK", "BertDot", "ColBERT", "CrossEncoder", "PreTTR", "Ranker", "Tokens", "TwoSided"]
