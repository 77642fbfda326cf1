"""Every loss against slow, obvious code: plain loops over Python numbers, straight from the definition."""

import math
from dataclasses import replace
from itertools import combinations, permutations

import pytest
import torch

from pyterrier_kd.errors import MissingSignal
from pyterrier_kd.losses import (
    ADRMSE,
    MSE,
    BinaryCrossEntropy,
    HardLabels,
    InfoNCE,
    KLDivergence,
    LambdaLoss,
    ListNet,
    MarginMSE,
    PairwiseHinge,
    RankNet,
    SoftLabels,
    Total,
    WeightedRankNet,
)
from pyterrier_kd.signals import Batch, Needs, Signals

B, N = 4, 5


def batch_of(seed: int = 0, masked: bool = True, duplicates: bool = False) -> Batch:
    g = torch.Generator().manual_seed(seed)
    mask = torch.ones(B, N, dtype=torch.bool)
    if masked:
        mask[1, 3:] = False
        mask[2, 1:] = False
    labels = torch.randint(0, 3, (B, N), generator=g).float() * mask
    labels[0] = torch.tensor([2.0, 0, 1, 0, 0])
    docs = torch.arange(B * N).view(B, N)
    if duplicates:
        docs[3, 0] = docs[0, 1]
        docs[3, 1] = docs[0, 0]
    positives = torch.zeros(B, B * N, dtype=torch.bool)
    for b in range(B):
        for j in range(B * N):
            own = j // N == b and labels.flatten()[j] > 0
            same = any(docs[b, i] == docs.flatten()[j] and labels[b, i] > 0 for i in range(N))
            positives[b, j] = bool(own or same) and bool(mask.flatten()[j])
    return Batch(torch.arange(B), torch.arange(B * N).view(B, N), docs, labels, mask, positives)


def signals_of(seed: int, classes: int | None = None, ties: bool = False) -> Signals:
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(B, N, generator=g) * 3
    if ties:
        scores = scores.round()
    logits = None
    if classes:
        logits = torch.randn(B, N, classes, generator=g)
        scores = logits[..., 1] - logits[..., 0]
    return Signals(scores, logits=logits, in_batch=torch.randn(B, B * N, generator=g))


def real(batch: Batch, b: int) -> list[int]:
    return [i for i in range(N) if batch.mask[b, i]]


def loop_pairs(batch: Batch, value, better) -> float:
    terms = [value(b, i, j) for b in range(B) for i, j in permutations(real(batch, b), 2) if better(b, i, j)]
    return sum(terms) / max(1, len(terms))


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0)


STUDENT, TEACHER = signals_of(1), signals_of(2)
S, T = STUDENT.scores.tolist(), TEACHER.scores.tolist()


def test_mse() -> None:
    batch = batch_of()
    each = [(S[b][i] - T[b][i]) ** 2 for b in range(B) for i in real(batch, b)]
    assert MSE()(STUDENT, TEACHER, batch).item() == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_mse_of_pairs_is_the_mean_of_both_sides() -> None:
    student, teacher = torch.randn(7, 2), torch.randn(7, 2)
    batch = Batch(torch.arange(7), torch.zeros(7, 2).long(), torch.zeros(7, 2).long(), torch.tensor([[1.0, 0.0]]).repeat(7, 1), torch.ones(7, 2).bool(), torch.zeros(7, 14).bool())
    halves = 0.5 * (((student - teacher) ** 2)[:, 0].mean() + ((student - teacher) ** 2)[:, 1].mean())
    assert MSE()(Signals(student), Signals(teacher), batch).item() == pytest.approx(halves.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("classes", [None, 2])
def test_soft_labels(temperature: float, classes: int | None) -> None:
    batch, student, teacher = batch_of(), signals_of(1, classes), signals_of(2, classes)
    def probabilities(s: Signals, b: int, i: int) -> list[float]:
        z = s.logits[b, i].tolist() if classes else [0.0, s.scores[b, i].item()]
        e = [math.exp(v / temperature) for v in z]
        return [v / sum(e) for v in e]
    each = [-sum(p * math.log(q) for p, q in zip(probabilities(teacher, b, i), probabilities(student, b, i), strict=True)) for b in range(B) for i in real(batch, b)]
    assert SoftLabels(temperature)(student, teacher, batch).item() == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_two_logits_and_their_difference_say_the_same() -> None:
    two, batch = signals_of(3, 2), batch_of()
    one = Signals(two.scores)
    for loss in (SoftLabels(2.0), HardLabels()):
        assert loss(two, two, batch).item() == pytest.approx(loss(one, one, batch).item(), rel=1e-5)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_hard_labels_and_binary_cross_entropy(weight: float) -> None:
    batch = batch_of()
    each = [softplus(-S[b][i]) * weight if batch.labels[b, i] > 0 else softplus(S[b][i]) for b in range(B) for i in real(batch, b)]
    assert BinaryCrossEntropy(weight)(STUDENT, TEACHER, batch).item() == pytest.approx(sum(each) / len(each), rel=1e-5)
    if weight == 1.0:
        assert HardLabels()(STUDENT, TEACHER, batch).item() == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_margin_mse_over_n_texts() -> None:
    batch = batch_of()
    each = [((S[b][i] - S[b][j]) - (T[b][i] - T[b][j])) ** 2 for b in range(B) for i, j in combinations(real(batch, b), 2)]
    assert MarginMSE()(STUDENT, TEACHER, batch).item() == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_margin_mse_of_pairs_is_the_papers() -> None:
    student, teacher = torch.randn(7, 2), torch.randn(7, 2)
    batch = Batch(torch.arange(7), torch.zeros(7, 2).long(), torch.zeros(7, 2).long(), torch.zeros(7, 2), torch.ones(7, 2).bool(), torch.zeros(7, 14).bool())
    paper = torch.nn.functional.mse_loss(student[:, 0] - student[:, 1], teacher[:, 0] - teacher[:, 1])
    assert MarginMSE()(Signals(student), Signals(teacher), batch).item() == pytest.approx(paper.item(), rel=1e-5)


def test_margin_mse_anchored_in_batch() -> None:
    batch = batch_of()
    labels = batch.labels.clone()
    labels[:, 2] = 3.0 * batch.mask[:, 2]
    batch = replace(batch, labels=labels)
    s, t, mask = STUDENT.in_batch.tolist(), TEACHER.in_batch.tolist(), batch.mask.flatten().tolist()
    each = []
    for b in range(B):
        anchor = b * N + next(i for i in real(batch, b) if batch.labels[b, i] > 0) if any(batch.labels[b, i] > 0 for i in real(batch, b)) else b * N
        each += [((s[b][anchor] - s[b][j]) - (t[b][anchor] - t[b][j])) ** 2 for j in range(B * N) if mask[j] and j // N != b]
    assert MarginMSE(in_batch="anchored")(STUDENT, TEACHER, batch).item() == pytest.approx(sum(each) / len(each), rel=1e-5)
    with pytest.raises(ValueError, match="in_batch is True, False or 'anchored'"):
        MarginMSE(in_batch="all")


def test_margin_mse_in_batch() -> None:
    batch = batch_of()
    s, t, mask = STUDENT.in_batch.tolist(), TEACHER.in_batch.tolist(), batch.mask.flatten().tolist()
    columns = [j for j in range(B * N) if mask[j]]
    each = [((s[b][i] - s[b][j]) - (t[b][i] - t[b][j])) ** 2 for b in range(B) for i, j in combinations(columns, 2)]
    assert MarginMSE(in_batch=True)(STUDENT, TEACHER, batch).item() == pytest.approx(sum(each) / len(each), rel=1e-5)


@pytest.mark.parametrize("order", ["labels", "teacher"])
def test_pairwise_losses(order: str) -> None:
    batch = batch_of()
    target = batch.labels.tolist() if order == "labels" else T
    def better(b: int, i: int, j: int) -> bool:
        return target[b][i] > target[b][j]
    expected = loop_pairs(batch, lambda b, i, j: softplus(-(S[b][i] - S[b][j])), better)
    assert RankNet(order)(STUDENT, TEACHER, batch).item() == pytest.approx(expected, rel=1e-5)
    expected = loop_pairs(batch, lambda b, i, j: softplus(-(S[b][i] - S[b][j])) * abs(T[b][i] - T[b][j]), better)
    assert WeightedRankNet(order)(STUDENT, TEACHER, batch).item() == pytest.approx(expected, rel=1e-5)
    expected = loop_pairs(batch, lambda b, i, j: max(0.0, 0.7 - (S[b][i] - S[b][j])), better)
    assert PairwiseHinge(0.7, order)(STUDENT, TEACHER, batch).item() == pytest.approx(expected, rel=1e-5)


def test_weighted_ranknet_is_never_negative_where_the_teacher_prefers_the_negative() -> None:
    # the public code multiplies by the signed margin: -0.94 for a student margin of 1 and a teacher margin of -3
    batch = Batch(torch.arange(1), torch.zeros(1, 2).long(), torch.zeros(1, 2).long(), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2).bool(), torch.zeros(1, 2).bool())
    value = WeightedRankNet()(Signals(torch.tensor([[1.0, 0.0]])), Signals(torch.tensor([[0.0, 3.0]])), batch).item()
    assert value == pytest.approx(3 * softplus(-1.0), rel=1e-5)


@pytest.mark.parametrize(("ts", "tt"), [(1.0, 1.0), (0.5, 2.0)])
def test_listnet_and_kl(ts: float, tt: float) -> None:
    batch = batch_of()
    cross, entropy = [], []
    for b in range(B):
        rows = real(batch, b)
        p = [math.exp(T[b][i] / tt) for i in rows]
        q = [math.exp(S[b][i] / ts) for i in rows]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        cross.append(-sum(a * math.log(c) for a, c in zip(p, q, strict=True)))
        entropy.append(-sum(a * math.log(a) for a in p))
    assert ListNet(ts, tt)(STUDENT, TEACHER, batch).item() == pytest.approx(sum(cross) / B, rel=1e-5)
    assert KLDivergence(ts, tt)(STUDENT, TEACHER, batch).item() == pytest.approx((sum(cross) - sum(entropy)) / B, rel=1e-4)
    assert KLDivergence()(TEACHER, TEACHER, batch).item() == pytest.approx(0.0, abs=1e-6)


def loop_ranks(scores: list[float], rows: list[int]) -> dict[int, float]:
    return {i: 1 + sum(scores[j] > scores[i] for j in rows) + sum(scores[j] == scores[i] for j in rows if j != i) / 2 for i in rows}


@pytest.mark.parametrize("weighting", ["ndcg2", "lambdarank"])
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("ties", [False, True])
def test_lambda_loss(weighting: str, k: int | None, ties: bool) -> None:
    batch, student = batch_of(), signals_of(1, ties=ties)
    s, values = student.scores.tolist(), []
    for b in range(B):
        rows, labels = real(batch, b), batch.labels[b].tolist()
        best = sum((2**label - 1) / math.log2(1 + r) for r, label in enumerate(sorted((labels[i] for i in rows), reverse=True), start=1))
        if best == 0:
            continue
        rank, total = loop_ranks(s[b], rows), 0.0
        for i, j in permutations(rows, 2):
            if labels[i] <= labels[j] or (k is not None and min(rank[i], rank[j]) > k):
                continue
            gain = abs((2 ** labels[i]) - (2 ** labels[j])) / best
            if weighting == "lambdarank":
                discount = abs(1 / math.log2(1 + rank[i]) - 1 / math.log2(1 + rank[j]))
            else:
                apart = max(1, abs(rank[i] - rank[j]))
                discount = abs(1 / math.log2(1 + apart) - 1 / math.log2(2 + apart))
            total += gain * discount * math.log2(1 + math.exp(-1.5 * (s[b][i] - s[b][j])))
        values.append(total)
    assert LambdaLoss(weighting, k=k, sigma=1.5)(student, TEACHER, batch).item() == pytest.approx(sum(values) / len(values), rel=1e-5)


@pytest.mark.parametrize("ties", [False, True])
def test_adr_mse(ties: bool) -> None:
    batch, teacher, each = batch_of(), signals_of(2, ties=ties), []
    for b in range(B):
        rows = real(batch, b)
        rank = loop_ranks(teacher.scores[b].tolist(), rows)
        for i in rows:
            soft = 1 + sum(1 / (1 + math.exp(-2.0 * (S[b][j] - S[b][i]))) for j in rows if j != i)
            each.append((rank[i] - soft) ** 2 / math.log2(rank[i] + 1))
    assert ADRMSE(alpha=2.0)(STUDENT, teacher, batch).item() == pytest.approx(sum(each) / len(each), rel=1e-5)


@pytest.mark.parametrize("duplicates", [False, True])
def test_info_nce_masks_positives_and_duplicates(duplicates: bool) -> None:
    batch = batch_of(duplicates=duplicates)
    docs, mask, t = batch.docs.flatten().tolist(), batch.mask.flatten().tolist(), 0.5
    each = []
    for b in range(B):
        relevant = {docs[b * N + i] for i in real(batch, b) if batch.labels[b, i] > 0}
        seen, negatives = set(), []
        for j in range(B * N):
            if mask[j] and docs[j] not in seen and docs[j] not in relevant:
                negatives.append(STUDENT.in_batch[b, j].item())
            if mask[j]:
                seen.add(docs[j])
        for i in real(batch, b):
            if batch.labels[b, i] > 0:
                e = math.exp(S[b][i] / t)
                each.append(-math.log(e / (e + sum(math.exp(v / t) for v in negatives))))
    assert InfoNCE(t)(STUDENT, TEACHER, batch).item() == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_info_nce_within_the_list() -> None:
    batch, each = batch_of(), []
    for b in range(B):
        rows = real(batch, b)
        rest = sum(math.exp(S[b][i]) for i in rows if batch.labels[b, i] <= 0)
        each += [-math.log(math.exp(S[b][i]) / (math.exp(S[b][i]) + rest)) for i in rows if batch.labels[b, i] > 0]
    assert InfoNCE(in_batch=False)(STUDENT, TEACHER, batch).item() == pytest.approx(sum(each) / len(each), rel=1e-5)


ALL = [MSE(), SoftLabels(2.0), HardLabels(), BinaryCrossEntropy(), MarginMSE(), MarginMSE(in_batch=True), RankNet(), RankNet("teacher"), WeightedRankNet(),
       WeightedRankNet("teacher"), PairwiseHinge(), ListNet(), KLDivergence(), LambdaLoss(), LambdaLoss("lambdarank"), ADRMSE(), InfoNCE(), InfoNCE(in_batch=False)]


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_padding_changes_nothing_and_gets_no_gradient(loss) -> None:
    batch = batch_of()
    for filler in (0.0, 1e4):
        scores = STUDENT.scores.masked_fill(~batch.mask, filler).requires_grad_()
        columns = (~batch.mask).flatten()[None, :]
        every = STUDENT.in_batch.masked_fill(columns, filler).requires_grad_()
        teacher = Signals(TEACHER.scores.masked_fill(~batch.mask, -filler), in_batch=TEACHER.in_batch.masked_fill(columns, -filler))
        value = loss(Signals(scores, in_batch=every), teacher, batch)
        assert value.item() == pytest.approx(loss(STUDENT, TEACHER, batch).item(), rel=1e-5)
        value.backward()
        for tensor, hidden in ((scores, ~batch.mask), (every, columns.expand(B, -1))):
            if tensor.grad is not None:
                assert torch.isfinite(tensor.grad).all()
                assert (tensor.grad[hidden] == 0).all()


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_nothing_to_learn_from_is_zero_not_nan(loss) -> None:
    batch = batch_of()
    empty = Batch(batch.queries, batch.texts, batch.docs, torch.zeros(B, N), torch.zeros(B, N, dtype=torch.bool), torch.zeros(B, B * N, dtype=torch.bool))
    scores = STUDENT.scores.clone().requires_grad_()
    value = loss(Signals(scores, in_batch=STUDENT.in_batch), TEACHER, empty)
    assert value.item() == 0
    if value.requires_grad:
        value.backward()
        assert torch.isfinite(scores.grad).all()


def test_losses_add_and_scale() -> None:
    batch = batch_of()
    total = 0.25 * SoftLabels(temperature=5) + HardLabels() * 0.75
    expected = 0.25 * SoftLabels(temperature=5)(STUDENT, TEACHER, batch) + 0.75 * HardLabels()(STUDENT, TEACHER, batch)
    assert total(STUDENT, TEACHER, batch).item() == pytest.approx(expected.item())
    assert repr(total) == "0.25 * SoftLabels(temperature=5) + 0.75 * HardLabels()"
    assert repr(2 * (MSE() + MarginMSE())) == "2 * MSE() + 2 * MarginMSE(in_batch=False)"
    assert total.needs == Needs(student=frozenset({"scores"}), teacher=frozenset({"scores"}), labels=True)
    assert isinstance(total, Total)
    assert total == 0.25 * SoftLabels(temperature=5) + 0.75 * HardLabels()
    with pytest.raises(TypeError):
        MSE() + 1
    with pytest.raises(TypeError):
        MSE() * "heavy"


def test_a_schedule_without_a_name_can_be_printed() -> None:
    from functools import partial
    assert repr(partial(max, 0.5) * MSE()).endswith("* MSE()")


def test_a_weight_may_be_a_schedule() -> None:
    def falling(progress: float) -> float:
        return 1 - progress

    batch, loss = batch_of(), falling * MSE() + MarginMSE()
    assert repr(loss) == "falling * MSE() + MarginMSE(in_batch=False)"
    bound = loss.bind()
    for progress in (0.0, 0.25, 1.0):
        value, terms = bound(STUDENT, TEACHER, batch, progress)
        assert value.item() == pytest.approx((1 - progress) * terms["MSE()"].item() + terms["MarginMSE(in_batch=False)"].item(), rel=1e-5)
    doubled, _ = (2 * loss).bind()(STUDENT, TEACHER, batch, 0.5)
    assert doubled.item() == pytest.approx(2 * bound(STUDENT, TEACHER, batch, 0.5)[0].item(), rel=1e-5)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: SoftLabels(0), "SoftLabels(temperature=...) must be above 0, not 0."),
    (lambda: InfoNCE(-1), "InfoNCE(temperature=...) must be above 0, not -1."),
    (lambda: ListNet(0, 1), "The temperatures of ListNet(student_temperature=0, teacher_temperature=1) must be above 0."),
    (lambda: LambdaLoss("dcg"), "LambdaLoss(weighting='dcg') is unknown: it is 'ndcg2' or 'lambdarank'."),
    (lambda: RankNet("scores").needs, "order='scores' is unknown: it is 'labels' or 'teacher'."),
])
def test_bad_settings(make, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


def test_a_missing_signal_says_who_what_and_how() -> None:
    with pytest.raises(MissingSignal) as error:
        InfoNCE()(Signals(STUDENT.scores, who="CrossEncoder(x)"), TEACHER, batch_of())
    assert str(error.value) == ("InfoNCE(temperature=1.0, in_batch=True) needs the signal 'in_batch' from CrossEncoder(x), which reports only ['scores']. "
                                "Use a two-sided ranker such as BertDot, or a loss with in_batch=False.")
