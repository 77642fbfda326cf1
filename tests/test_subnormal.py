"""Numbers that are too small to change anything become 0, and nothing else changes."""

import pandas as pd
import pytest
import torch

import pyterrier_kd as kd
from pyterrier_kd import subnormal
from pyterrier_kd.losses import RankNet
from pyterrier_kd.rankers import interactions
from pyterrier_kd.signals import Batch, Signals
from pyterrier_kd.training import Training

SMALLEST = torch.finfo(torch.float32).smallest_normal


def subnormals(values: torch.Tensor) -> int:
    return int(((values != 0) & (values.abs() < SMALLEST)).sum())


def batch(labels: torch.Tensor) -> Batch:
    rows = torch.arange(labels.numel()).view(labels.shape)
    positives = torch.zeros(len(labels), labels.numel(), dtype=torch.bool)
    return Batch(torch.arange(len(labels)), rows, rows, labels, torch.ones_like(rows, dtype=torch.bool), positives)


@pytest.mark.parametrize("signal", ["scores", "logits", "in_batch"])
def test_a_settled_pair_has_no_gradient_and_others_keep_theirs(signal) -> None:
    labels, margins = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0.5, 20.0, 60.0, 95.0])
    gradients = []
    for drop in (False, True):
        weights = torch.stack([margins, torch.zeros(4)], dim=1).requires_grad_()
        given = weights * 1.0
        signals = Signals(**{"scores": torch.zeros(4, 2), signal: given})
        if drop:
            subnormal.drop_gradients(signals)
        RankNet()(Signals(given), signals, batch(labels)).backward()
        gradients.append(weights.grad)
    assert gradients[0][:3].ne(0).all()
    assert subnormals(gradients[0]) == 2
    assert torch.equal(gradients[1][:2], gradients[0][:2])
    assert not gradients[1][2:].any()


def test_moments_that_are_next_to_nothing_become_zero() -> None:
    weights = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weights])
    weights.grad = torch.ones(4)
    optimizer.step()
    values = torch.tensor([1e-3, 1e-29, 1e-31, -1e-40])
    for moment in ("exp_avg", "exp_avg_sq"):
        optimizer.state[weights][moment].copy_(values)
    subnormal.drop_moments(optimizer)
    for moment in ("exp_avg", "exp_avg_sq"):
        assert optimizer.state[weights][moment].tolist() == [*values[:2].tolist(), 0.0, 0.0]
    assert optimizer.state[weights]["step"] == 1


@pytest.mark.parametrize("words", [1, 50])
@pytest.mark.parametrize("variant", ["improved", "paper"])
def test_a_kernel_far_from_every_product_counts_nothing_and_no_score_changes(variant, words, monkeypatch) -> None:
    torch.manual_seed(0)
    pooling = interactions.KernelPooling(variant)
    cosines = torch.rand(8, words, 10) * 2 - 1
    found = []
    for least in (interactions.VANISHED, -1e30):
        monkeypatch.setattr(interactions, "VANISHED", least)
        products = cosines.clone().requires_grad_()
        scores = pooling(products, torch.ones(1, 10, dtype=torch.bool), torch.ones(8, words, dtype=torch.bool))
        scores.sum().backward()
        found.append((scores.detach(), products.grad, sum(subnormals(pooling._kernel(cosines, mean)) for mean in pooling.means)))
    (scores, gradients, none), (as_they_are, their_gradients, some) = found
    assert torch.equal(scores, as_they_are)
    assert torch.equal(gradients, their_gradients)
    assert none == 0 < some


def test_training_drops_both(frame: pd.DataFrame, qrels: pd.DataFrame, cross: kd.CrossEncoder, monkeypatch) -> None:
    dropped = []
    monkeypatch.setattr(subnormal, "EVERY", 2)
    monkeypatch.setattr(subnormal, "drop_moments", lambda optimizer: dropped.append(len(optimizer.state)))
    settled, step = [], Training._step

    def watched(self):
        result = step(self)
        settled.append(sum(float(p.grad.abs().sum()) for p in self.module.parameters() if p.grad is not None))
        return result

    monkeypatch.setattr(Training, "_step", watched)
    monkeypatch.setattr(subnormal, "GRADIENT", 1e9)
    kd.Distiller(cross, loss=RankNet(), steps=4, batch_size=2, scores=False, verbose=False).fit(frame, qrels)
    assert settled == [0.0] * 4
    assert len(dropped) == 2
    assert all(dropped)
