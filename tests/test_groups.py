"""Training groups: what a frame becomes, which texts are chosen, and what a batch holds."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import make_frame, make_qrels

from pyterrier_kd.errors import DataError
from pyterrier_kd.groups import clean_qrels, from_frame, parent_docno
from pyterrier_kd.losses import MSE, MarginMSE, RankNet
from pyterrier_kd.sampling import Sampler
from pyterrier_kd.signals import Needs


def groups_of(frame: pd.DataFrame, qrels: pd.DataFrame | None = None):
    return from_frame(frame, frame["text"].tolist(), qrels, "test")


def test_every_row_finds_its_group(frame, qrels) -> None:
    shuffled = frame.sample(frac=1, random_state=3).reset_index(drop=True)
    groups = groups_of(shuffled, qrels)
    assert len(groups) == 6
    relevant = set(zip(qrels["qid"], qrels["docno"], strict=True))
    for g in range(6):
        for i in range(groups.starts[g], groups.starts[g + 1]):
            row = shuffled.iloc[groups.row[i]]
            assert groups.queries[g] == row["query"]
            assert groups.texts[groups.text[i]] == row["text"]
            assert (groups.label[i] > 0) == ((row["qid"], row["docno"]) in relevant)


def test_passages_get_the_labels_of_their_documents() -> None:
    frame = pd.DataFrame({"qid": "1", "query": "apple", "docno": ["a%p0", "a%p1", "b%p0", "c%px%p2"], "text": ["x", "y", "z", "w"]})
    groups = groups_of(frame, pd.DataFrame({"qid": ["1", "1"], "docno": ["a", "c%px"], "label": [2, 1]}))
    assert groups.label.tolist() == [2, 2, 0, 1]
    assert groups.parent.tolist() == [0, 0, 1, 2]
    assert len(set(groups.doc.tolist())) == 4
    assert parent_docno(pd.Series(["a%p3", "b", "c%p1%p2", "100%pure"])).tolist() == ["a", "b", "c%p1", "100%pure"]


def test_qrels_of_other_types_are_joined(frame) -> None:
    frame["qid"] = frame["qid"].str[1:].astype(int)
    qrels = pd.DataFrame({"qid": [0, 1], "docno": [frame["docno"][0], frame["docno"][5]], "label": ["1", "2"], "iteration": "0"})
    groups = groups_of(frame, qrels)
    assert groups.label.sum() == 3
    text = clean_qrels(qrels, "x")
    assert text["qid"].tolist() == ["0", "1"]


def test_of_repeated_judgements_the_highest_counts() -> None:
    qrels = pd.DataFrame({"qid": ["1", "1"], "docno": ["a", "a"], "label": [2, 0]})
    assert clean_qrels(qrels, "x")["label"].tolist() == [2]


def test_qrels_that_do_not_overlap_are_warned_of_with_counts(frame) -> None:
    qrels = pd.DataFrame({"qid": ["q0", "q1", "z"], "docno": ["nowhere", "nowhere2", "x"], "label": 1})
    with pytest.warns(UserWarning, match=r"none of the 30 candidates is relevant by the 3 qrels; 2 of 6 queries have qrels") as caught:
        groups_of(frame, qrels)
    assert "docnos such as 'd0x0', 'd1x1'; in the qrels 'nowhere', 'nowhere2'" in str(caught[0].message)


@pytest.mark.parametrize(("change", "message"), [
    (lambda f: pd.concat([f, f.head(2)]), "test: 2 of 32 rows repeat a (qid, docno) that was there before (first: ('q0', 'd0x0'), ('q0', 'd1x1')). Use frame.drop_duplicates(['qid', 'docno'])."),
    (lambda f: f.head(0), "test got no rows to train on: the frame of candidates is empty. Do the topics match the index?"),
    (lambda f: f.assign(query=[f"{q} {i}" if i == 1 else q for i, q in enumerate(f["query"])]), "test: the qids 'q0' have more than one query."),
])
def test_frames_that_cannot_be_used(frame, change, message) -> None:
    with pytest.raises(DataError) as error:
        groups_of(change(frame))
    assert str(error.value) == message


@pytest.mark.parametrize(("qrels", "message"), [
    (pd.DataFrame({"qid": ["1"], "docno": ["a"]}), "t: the qrels need the columns qid, docno and label; ['label'] are missing among ['qid', 'docno']."),
    (pd.DataFrame({"qid": ["1"], "docno": ["a"], "label": ["high"]}), "t: 1 of 1 qrels have a label that is not a number: 'high'."),
])
def test_qrels_that_cannot_be_used(qrels, message) -> None:
    with pytest.raises(DataError) as error:
        clean_qrels(qrels, "t")
    assert str(error.value) == message


def test_queries_with_too_little_are_left_out_and_counted(frame, qrels) -> None:
    few = pd.concat([frame[frame["qid"] == "q0"].head(1), frame[frame["qid"] != "q0"]])
    groups = groups_of(few, qrels[qrels["qid"] != "q3"])
    with pytest.warns(UserWarning, match="they are left out") as caught:
        usable = groups.usable(RankNet().needs, RankNet())
    assert str(caught[0].message) == ("RankNet(order='labels'): of 6 queries 1 have fewer than 2 candidates and 1 have no relevant candidate; they are left out.")
    assert len(usable) == 4
    assert usable.queries == [q for i, q in enumerate(groups.queries) if i not in (0, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert groups.usable(MSE().needs, MSE()) is groups
    with pytest.raises(DataError) as error:
        groups_of(frame.groupby("qid").head(1)).usable(MarginMSE().needs, MarginMSE())
    assert str(error.value) == ("MarginMSE(in_batch=False) has nothing to learn from: of 6 queries 6 have fewer than 2 candidates. "
                                "Retrieve deeper, or use a loss that needs less.")
    with pytest.raises(DataError, match="6 have no relevant candidate. Pass qrels whose docnos are among the candidates"):
        groups_of(frame).usable(RankNet().needs, RankNet())


# ---------------------------------------------------------------------- samplers

LABELS = np.array([0, 1, 0, 0, 2, 0, 0, 0], dtype=float)
SCORES = np.array([0.0, 5, 1, 2, 9, 3, 4, 8])


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("texts", [1, 2, 4, 8])
@pytest.mark.parametrize("choose", ["random", "top", "stratified", "bins"])
def test_a_sample_has_its_positives_first_and_no_text_twice(texts, choose) -> None:
    for seed in range(20):
        chosen = Sampler(texts=texts, choose=choose)(LABELS, SCORES, np.random.default_rng(seed))
        assert len(chosen) == len(set(chosen)) == texts
        assert LABELS[chosen[0]] > 0
        assert (LABELS[chosen[1:]] > 0).sum() == max(0, texts - 7)


def test_random_samples_reach_every_text() -> None:
    seen = {int(i) for seed in range(60) for i in Sampler(texts=3)(LABELS, None, np.random.default_rng(seed))}
    assert seen == set(range(8))


def test_top_takes_the_highest_teacher_scores() -> None:
    assert set(Sampler(texts=4, choose="top")(LABELS, SCORES, rng())[1:]) == {7, 6, 5}
    assert set(Sampler(texts=2, positives=0, choose="top")(LABELS, SCORES, rng())) == {4, 7}


def test_bins_are_chosen_alike_however_many_texts_they_hold() -> None:
    scores = np.concatenate([np.linspace(0, 0.09, 90), np.linspace(0.95, 1.0, 10)])
    chosen = [scores[Sampler(texts=2, choose="bins")(np.array([1] + [0] * 99), scores, np.random.default_rng(seed))[1]] for seed in range(400)]
    assert 0.4 < np.mean(np.array(chosen) > 0.5) < 0.6
    several = Sampler(texts=20, positives=0, choose="bins")(np.zeros(100), scores, np.random.default_rng(0))
    assert len(set(several)) == 20


def test_a_batch_holds_queries_of_one_topic() -> None:
    frame = make_frame(queries=23, texts=3)
    groups = replace(from_frame(frame, frame["text"].tolist(), None, "test"), topic=np.arange(23) % 3)
    batches = list(groups.batches(4, Sampler(texts=2), (0, 1)))
    assert len(batches) == groups.steps(4) == 2 + 2 + 2
    assert all(len(set((b.queries % 3).tolist())) == 1 for b in batches)
    assert sorted(q for b in batches for q in b.queries.tolist()) == list(range(23))
    assert groups.select(np.array([4, 7, 2])).topic.tolist() == [1, 1, 2]


def test_stratified_covers_the_range_of_scores() -> None:
    scores = np.array([0.0] * 50 + [1.0] * 45 + [10.0] * 5)
    spread, plain = [], []
    for seed in range(30):
        spread.append(np.ptp(scores[Sampler(texts=4, positives=0, choose="stratified")(np.zeros(100), scores, np.random.default_rng(seed))]))
        plain.append(np.ptp(scores[Sampler(texts=4, positives=0)(np.zeros(100), scores, np.random.default_rng(seed))]))
    assert np.mean(spread) > 9 > np.mean(plain) + 4
    with pytest.raises(DataError, match="chooses by teacher scores, but this stage has none ahead of training"):
        Sampler(texts=2, choose="stratified")(LABELS, None, rng())


@pytest.mark.parametrize("settings", [{"texts": 0}, {"texts": 2, "positives": 3}, {"choose": "best"}])
def test_bad_samplers(settings) -> None:
    with pytest.raises(ValueError, match="texts and bins must be at least 1, positives 0 to texts, choose 'random', 'top', 'stratified' or 'bins'"):
        Sampler(**settings)


# ---------------------------------------------------------------------- batches


def test_an_epoch_has_every_group_once_and_is_a_function_of_its_seed(frame, qrels) -> None:
    groups = groups_of(make_frame(queries=13), make_qrels(make_frame(queries=13)))
    first, again, other = ([b.queries.tolist() for b in groups.batches(4, Sampler(3), seed)] for seed in ((0, 1), (0, 1), (0, 2)))
    assert first == again != other
    assert sorted(q for b in first for q in b) == list(range(13))
    assert groups.steps(4) == len(first) == 4


def test_processes_share_an_epoch_and_skipping_goes_on_where_it_stopped() -> None:
    groups = groups_of(make_frame(queries=13))
    whole = [b.queries.tolist() for b in groups.batches(2, Sampler(3), (7,))]
    parts = [[b.queries.tolist() for b in groups.batches(2, Sampler(3), (7,), part=(k, 2))] for k in range(2)]
    assert len(parts[0]) == len(parts[1]) == 3
    assert [b for pair in zip(*parts, strict=True) for b in pair] == whole[:6]
    rest = [b.texts.tolist() for b in groups.batches(2, Sampler(3), (7,), skip=3)]
    assert rest == [b.texts.tolist() for b in groups.batches(2, Sampler(3), (7,))][3:]


def test_a_batch_says_what_the_rows_say(frame, qrels) -> None:
    frame = frame.drop(index=[6, 7, 8]).reset_index(drop=True)
    groups = groups_of(frame, qrels).with_teacher(np.arange(len(frame), dtype=float))
    texts = dict(zip(zip(frame["query"], frame["text"], strict=True), frame.index, strict=True))
    for batch in groups.batches(3, Sampler(texts=4), (0,)):
        for b, g in enumerate(batch.queries.tolist()):
            size = int(batch.mask[b].sum())
            assert size == min(4, groups.sizes[g])
            for i in range(size):
                row = frame.loc[texts[groups.queries[g], groups.texts[batch.texts[b, i]]]]
                own = frame[(frame["query"] == groups.queries[g]) & (frame["text"] == row["text"])]
                assert batch.teacher[b, i].item() in own.index.tolist()
                assert row["qid"] == f"q{g}"
        assert (batch.labels[~batch.mask] == 0).all()
        assert (batch.docs[~batch.mask] == -1).all()


def test_documents_relevant_to_one_query_are_known_in_anothers_texts() -> None:
    frame = pd.DataFrame({"qid": ["1", "1", "2", "2"], "query": ["apple", "apple", "tea", "tea"], "docno": ["a", "b", "b", "c"], "text": ["x", "y", "y", "z"]})
    groups = groups_of(frame, pd.DataFrame({"qid": ["1", "2", "2"], "docno": ["a", "b", "a"], "label": [1, 1, 1]}))
    batch = next(groups.batches(2, Sampler(texts=2, positives=0), (0,)))
    for b, g in enumerate(batch.queries.tolist()):
        for j in range(4):
            name = ["a", "b", "c"][groups.parent[groups.doc.tolist().index(batch.docs.flatten()[j].item())]]
            assert batch.positives[b, j].item() == (name in {0: {"a"}, 1: {"a", "b"}}[g])
    negatives = batch.negatives()
    names = [["a", "b", "c"][d] for d in batch.docs.flatten().tolist()]
    for b, g in enumerate(batch.queries.tolist()):
        kept = [names[j] for j in range(4) if negatives[b, j]]
        assert sorted(kept) == {0: ["b", "c"], 1: ["c"]}[g]


def test_rows_without_a_teacher_score_are_dropped(frame) -> None:
    scores = np.arange(len(frame), dtype=float)
    scores[[0, 1, 2, 3, 4, 9]] = np.nan
    groups = groups_of(frame).with_teacher(scores)
    assert groups.sizes.tolist() == [0, 4, 5, 5, 5, 5]
    with pytest.warns(UserWarning, match="of 6 queries 1 have fewer than 1 candidates"):
        assert len(groups.usable(Needs(), MSE())) == 5
