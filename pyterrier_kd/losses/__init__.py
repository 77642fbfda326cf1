"""Losses as values, in a file for each family: pointwise, pairwise, listwise, contrastive. They add and scale."""

from .base import BoundLoss, Loss, Term, Total
from .contrastive import InfoNCE
from .listwise import ADRMSE, KLDivergence, LambdaLoss, ListNet
from .pairwise import MarginMSE, PairwiseHinge, RankNet, WeightedRankNet
from .pointwise import MSE, BinaryCrossEntropy, HardLabels, SoftLabels

__all__ = [
    "ADRMSE", "MSE", "BinaryCrossEntropy", "BoundLoss", "HardLabels", "InfoNCE", "KLDivergence", "LambdaLoss",
    "ListNet", "Loss", "MarginMSE", "PairwiseHinge", "RankNet", "SoftLabels", "Term", "Total", "WeightedRankNet",
]
