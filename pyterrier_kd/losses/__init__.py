"""Losses as values, in a file for each family: pointwise, pairwise, listwise, contrastive, layerwise. They add and scale."""

from .base import BoundLoss, Loss, Term, Total
from .contrastive import InfoNCE
from .layerwise import Attention, Embedding, Hidden, Relations
from .listwise import ADRMSE, KLDivergence, LambdaLoss, ListNet
from .pairwise import MarginMSE, PairwiseHinge, RankNet, WeightedRankNet
from .pointwise import MSE, BinaryCrossEntropy, HardLabels, SoftLabels

__all__ = [
    "ADRMSE", "MSE", "Attention", "BinaryCrossEntropy", "BoundLoss", "Embedding", "HardLabels", "Hidden", "InfoNCE", "KLDivergence",
    "LambdaLoss", "ListNet", "Loss", "MarginMSE", "PairwiseHinge", "RankNet", "Relations", "SoftLabels", "Term", "Total", "WeightedRankNet",
]
