"""Every ranker with every loss: the loss falls and a store gives the student's scores, or the error says why the two cannot go together."""

from pathlib import Path

import numpy as np
import pytest
from conftest import make_colbert, make_cross, make_dot, make_frame, make_prettr, make_qrels, make_tk

import pyterrier_kd as kd
from pyterrier_kd import losses
from pyterrier_kd.errors import MissingSignal
from pyterrier_kd.signals import LAYERWISE, REMEDIES

RANKERS = {"CrossEncoder": make_cross, "CrossEncoder of 2 classes": lambda **k: make_cross(classes=2, **k), "BertDot": make_dot,
           "BertDot, mean, normalised": lambda **k: make_dot(pooling="mean", normalize=True, scale=10.0, **k),
           "ColBERT": make_colbert, "ColBERT, as in arXiv:2010.02666": lambda **k: make_colbert(preset="matchmaker", **k),
           "TK": make_tk, "TK, as in its paper": lambda **k: make_tk(variant="paper", **k),
           "PreTTR, joined at layer 0": lambda layers=2, **k: make_prettr(layers=layers, join=0, **k), "PreTTR": make_prettr}
LOSSES = [losses.MSE(), losses.SoftLabels(2.0), losses.HardLabels(), losses.BinaryCrossEntropy(2.0), losses.MarginMSE(), losses.MarginMSE(in_batch=True), losses.MarginMSE(in_batch="anchored"),
          losses.RankNet(), losses.RankNet("teacher"), losses.WeightedRankNet(), losses.WeightedRankNet("teacher"), losses.PairwiseHinge(),
          losses.PairwiseHinge(order="teacher"), losses.ListNet(), losses.KLDivergence(2.0, 2.0), losses.LambdaLoss(), losses.LambdaLoss("lambdarank"),
          losses.ADRMSE(), losses.InfoNCE(), losses.InfoNCE(in_batch=False), 0.5 * losses.SoftLabels() + 0.5 * losses.HardLabels(), losses.Attention(), losses.Hidden(),
          losses.Hidden(projection="shared"), losses.Embedding(), losses.Relations(), losses.Attention() + losses.SoftLabels()]


def test_no_loss_is_left_out_of_the_matrix() -> None:
    public = {getattr(losses, name) for name in losses.__all__} - {losses.Loss, losses.Term, losses.Total, losses.BoundLoss}
    assert public == {type(loss) for loss in LOSSES} - {losses.Total}


@pytest.mark.parametrize("name", RANKERS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_loss_falls_or_the_error_says_why(name: str, loss: losses.Loss, tmp_path: Path) -> None:
    frame = make_frame(queries=8, texts=4)
    teacher = make_dot(seed=5, layers=4) if "in_batch" in loss.needs.teacher else make_cross(seed=5, layers=4)
    if loss.needs.teacher & LAYERWISE and not name.startswith("TK"):      # one that reads the same tokens at the same places
        teacher = RANKERS[name](seed=5, layers=4)
    distiller = kd.Distiller(RANKERS[name](seed=1), teacher, loss=loss, steps=12, batch_size=8, learning_rate=3e-2 if "paper" in name else 3e-3, dropout=0, validate_every=4, verbose=False,
                             strategy=kd.Stage(loss, sampler=kd.Sampler(texts=4), warmup=0.0))
    if lacking := sorted(loss.needs.student - distiller.student.signal_names):
        with pytest.raises(MissingSignal) as error:
            distiller.fit(frame, make_qrels(frame))
        assert str(error.value) == (f"{loss!r} needs the signal {lacking[0]!r} from the student {distiller.student!r}, which reports only {sorted(distiller.student.signal_names)}. "
                                    + REMEDIES[lacking[0]])
        return
    if name == "PreTTR" and loss.needs.student & LAYERWISE and not isinstance(loss, losses.Relations):         # which compares the last layers alone
        with pytest.raises(MissingSignal, match=r"The layers \[[01]\] of PreTTR.* read query and text apart: losses over layers see those from join=[12] on"):
            distiller.fit(frame, make_qrels(frame))
        return
    history = distiller.fit(frame, make_qrels(frame)).history_
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    student = distiller.student_
    assert student != distiller.student
    if name.startswith("CrossEncoder"):
        with pytest.raises(AttributeError, match="doc_encoder"):
            student.doc_encoder()
        return
    store = (student.doc_encoder() >> kd.DocumentStore(tmp_path / "store", dtype="float32")).index(frame.drop_duplicates("docno").to_dict("records"))
    assert np.allclose(store.scorer(student)(frame.drop(columns="text"))["score"], student(frame)["score"], rtol=1e-5, atol=1e-5)


def test_a_foreign_teacher_cannot_give_in_batch_scores() -> None:
    import pyterrier as pt
    frame = make_frame()
    teacher = pt.apply.doc_score(lambda row: float(len(row["text"])))
    with pytest.raises(MissingSignal, match=r"MarginMSE\(in_batch=True\) needs the signal 'in_batch' from the teacher .*, which reports only \['scores'\]"):
        kd.Distiller(make_dot(), teacher, loss=losses.MarginMSE(in_batch=True), verbose=False).fit(frame)
