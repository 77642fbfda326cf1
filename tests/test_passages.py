"""Passages: every word in one, none cut by the model, read as in the whole; documents ranked by them, compiled or not."""

import random
import unittest

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import tokenizers
import torch
import transformers
from conftest import WORDS, make_cross, make_dot, make_frame, make_tk, make_tokenizer

import pyterrier_kd as kd
from pyterrier_kd import splitting
from pyterrier_kd.errors import DataError
from pyterrier_kd.groups import Groups, from_frame
from pyterrier_kd.passages import first_passage, k_max_mean, max_passage, mean_passage, split
from pyterrier_kd.sampling import KeepTop
from pyterrier_kd.splitting import Splitter
from pyterrier_kd.tokens import encode

SAMPLE = ["the quick brown fox, it's 3,141 y/o: re-reads 'naïve' cafés! x_y = f(a, b)\n\n    return None", "tea and jam to eat", *WORDS] * 5


def make_bpe(prefix: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as RoBERTa's and ModernBERT's are."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(SAMPLE, trainer)
    backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=prefix)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", cls_token="<s>", sep_token="</s>", model_max_length=64)


def make_unigram() -> transformers.PreTrainedTokenizerFast:
    """A sentence-piece tokenizer, as XLM-RoBERTa's is."""
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Metaspace()])
    backend.train_from_iterator(SAMPLE, tokenizers.trainers.UnigramTrainer(vocab_size=200, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", cls_token="<s>", sep_token="</s>", unk_token="<unk>", model_max_length=64)


TOKENIZERS = {"wordpiece": make_tokenizer, "byte bpe": make_bpe, "byte bpe, prefix": lambda: make_bpe(True), "unigram": make_unigram}
HARD = ["", " ", "jam", "\n\n", "🍎🍏👩‍👩‍👧 jam 漢字かな交じり文 tea", "漢字" * 60, "x" * 300, "a" * 50 + " " + "b" * 50, "tab\tand\n\n\nnewlines   many spaces ", "it's o'clock: 3,141.59 (e.g. [x]) -- re-read!",
        "👍" * 40, "def f(x):\n    return {'a': x_y, \"b\": [1, 2]}\n" * 6, "É" * 30, " ".join(["supercalifragilisticexpialidocious"] * 9), "[SEP] in [MASK] the <s> text </s>"]


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    pieces = [*WORDS, "ab", "xyz" * 9, ".", ",", "\n", "  ", "\t", "漢字", "👍", "é", "'s", "3.14", "-", "(", ")", "_x_", "\u200b", "A" * 20]
    return ["".join(rng.choice(pieces) + rng.choice([" ", " ", " ", "", "\n"]) for _ in range(rng.randrange(90))) for _ in range(count)]


def candidates(texts: list[str], title: bool = False) -> pd.DataFrame:
    frame = pd.DataFrame({"qid": [f"q{i % 3}" for i in range(len(texts))], "query": [f"how to find {WORDS[i % 3]}" for i in range(len(texts))],
                          "docno": [f"d{i}" for i in range(len(texts))], "text": texts, "url": [f"u{i}" for i in range(len(texts))]})
    titles = ["apple {}", "bread {} ", "{}  ", "", " ", "漢字" * 40, "tea\n{}", "{} " * 60, "x" * 200]
    return frame.assign(title=[titles[i % len(titles)].replace("{}", WORDS[i % 5]) for i in range(len(texts))]) if title else frame


def words_of(tokenizer, text: str) -> list[str]:
    return [w for w, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) if w.strip("Ġ▁ĊĉčÂł \t\n")] if text.strip() else []


# ---------------------------------------------------------------------- the windows


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("length", "stride"), [(12, 12), (12, 5), (7, 1), (40, 20)])
def test_every_word_is_in_a_window_which_reads_as_in_the_whole(name: str, length: int, stride: int) -> None:
    tokenizer = TOKENIZERS[name]()
    splitter = Splitter(tokenizer)
    whole_words = 0
    for text in HARD + random_texts(40, seed=length + stride):
        (words,) = splitter.words([text])
        assert words.ids.tolist() == encode(tokenizer, [text])[0]
        windows = list(splitter.windows(words, length, stride))
        covered = 0
        for window in windows:
            assert text[window.start:window.start + len(window.text)] == window.text, "a window is a slice of the text"
            assert not text[covered:window.start].strip(" \t\n\u200b"), "nothing but white space lies between two windows"
            covered = max(covered, window.start + len(window.text))
            assert encode(tokenizer, [window.text])[0] == window.ids.tolist(), "and has these tokens on its own"
            assert len(window.ids) <= length
        assert not text[covered:].strip(" \t\n\u200b")
        if max(np.diff(words.starts[splitter._bounds(words, False)]), default=0) <= length:      # no word had to be cut: the tokens of all windows are those of the whole
            whole_words += 1
            if stride == length and text.strip():
                joined = [i for w in windows for i in w.ids.tolist()]
                spaces = {i for i in words.ids.tolist() if not tokenizer.convert_ids_to_tokens(i).strip("ĠĊĉ▁")}
                assert [i for i in joined if i not in spaces] == [i for i in words.ids.tolist() if i not in spaces]
    assert whole_words > 10


def test_windows_are_as_long_as_they_can_be() -> None:
    splitter = Splitter(make_tokenizer())
    (words,) = splitter.words([" ".join(["tea"] * 100)])
    assert [len(w.ids) for w in splitter.windows(words, 30, 20)] == [30, 30, 30, 30, 20]
    assert [len(w.ids) for w in splitter.windows(words, 30, 30)] == [30, 30, 30, 10]
    assert [len(w.ids) for w in splitter.windows(words, 100, 50)] == [100]


@pytest.mark.parametrize("part", [1, 30, 4096])
def test_windows_are_the_same_where_tokens_are_located_only_when_asked_for(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "PART", part)
    splitter = Splitter(make_tokenizer())
    assert splitter.begins is not None
    texts = HARD + random_texts(60, seed=part) + [" ".join(random_texts(20, seed=9))]
    located = []
    monkeypatch.setattr(splitting, "char_starts", lambda encoding, starts=splitting.char_starts: located.append(len(encoding.ids)) or starts(encoding))
    eager, lazy = splitter.words(texts), splitter.words(texts, places=False)
    assert sum(located) == sum(len(words.ids) for words in eager)
    assert max(len(words.parts) for words in lazy) > 2 or part == 4096
    for text, one, other in zip(texts, eager, lazy, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.starts.tolist() == other.starts.tolist()
        assert one.chars(0, len(one.ids)).tolist() == other.chars(0, len(one.ids)).tolist()
        for length, stride in ((12, 12), (7, 3)):
            pairs = zip(splitter.windows(one, length, stride), splitter.windows(other, length, stride), strict=True)
            assert all((a.start, a.text, a.ids.tolist()) == (b.start, b.text, b.ids.tolist()) for a, b in pairs), text


def test_only_the_chosen_passage_is_located(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, located = make_cross(seed=2), []
    frame = candidates([" ".join(random.Random(i).choices(WORDS, k=4000)) for i in range(3)])
    monkeypatch.setattr(splitting, "char_starts", lambda encoding, starts=splitting.char_starts: located.append(len(encoding.ids)) or starts(encoding))
    (split(ranker) >> ranker >> max_passage()).compile()(frame)
    assert 0 < sum(located) < sum(len(encode(ranker.tokenizer, [text])[0]) for text in frame["text"]) / 2


def test_a_character_that_is_several_words_is_in_one_window() -> None:
    backend = tokenizers.Tokenizer.from_str(make_tokenizer().backend_tokenizer.to_str())
    backend.normalizer = tokenizers.normalizers.NFKC()
    splitter = Splitter(transformers.PreTrainedTokenizerFast(tokenizer_object=backend))
    text = "tea \u2026 " * 30       # three dots
    (words,) = splitter.words([text])
    assert len(words.ids) == 4 * 30
    for length in (4, 5, 6, 7):
        for window in splitter.windows(words, length, length):
            assert splitter.ids(window.text).tolist() == window.ids.tolist()


# ---------------------------------------------------------------------- frames


def make_reader(name: str, **settings: object) -> kd.CrossEncoder:
    """A random cross-encoder with one of the tokenizers."""
    tokenizer = TOKENIZERS[name]()
    torch.manual_seed(1)
    if name == "wordpiece":
        return make_cross(seed=1, **settings)
    config = transformers.RobertaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=70, num_labels=1,
                                        pad_token_id=1, bos_token_id=0, eos_token_id=2, initializer_range=0.2)
    return kd.CrossEncoder(transformers.RobertaForSequenceClassification(config), tokenizer, device="cpu", **settings)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("title", [False, True])
@pytest.mark.parametrize("prompt", ["", "text: ", "passage:", "Document"])
def test_no_passage_is_cut_by_the_model_and_compiled_scores_are_the_same(name: str, title: bool, prompt: str) -> None:
    ranker = make_reader(name, text_prompt=prompt)
    frame = candidates(HARD + random_texts(20, seed=3), title)
    pipeline = split(ranker) >> ranker >> max_passage()
    passages = split(ranker).transform(frame)
    queries, texts = ranker._prepare_queries(passages["query"].tolist()), ranker._tokenise_texts(passages["text"].tolist())
    for docno, text in zip(frame["docno"], frame["text"], strict=True):
        own = passages.loc[passages["docno"].str.startswith(f"{docno}%"), "text"]
        assert text.strip(" \t\n\u200b")[:1] in own.iloc[0]
        assert text.strip(" \t\n\u200b")[-1:] in own.iloc[-1]
    lengths = queries.lengths + texts.lengths + ranker.template.special
    assert lengths.max() <= 64
    assert np.sort(lengths)[-20:].min() >= 60           # and the room is used
    assert texts.cut == 0
    slow, fast = pipeline(frame), pipeline.compile()(frame)
    assert type(pipeline.compile()).__name__ == "RankByPassages"
    assert np.abs(slow["score"] - fast["score"]).max() < 1e-5
    pd.testing.assert_frame_equal(slow.drop(columns=["score", "rank"]), fast.drop(columns=["score", "rank"]))      # ranks of equal scores are rounding's
    assert (pt.model.add_ranks(fast.drop(columns="rank"))["rank"].to_numpy() == fast["rank"].to_numpy()).all()
    assert slow["docno"].tolist() == frame["docno"].tolist()
    assert slow["url"].tolist() == frame["url"].tolist()


@pytest.mark.parametrize("aggregate", [max_passage(), first_passage(), mean_passage(), k_max_mean(2)], ids=repr)
@pytest.mark.parametrize("make_ranker", [make_cross, make_dot])
def test_compiled_pipelines_are_the_same_for_every_aggregate_and_ranker(aggregate, make_ranker) -> None:
    ranker = make_ranker(seed=3)
    frame = candidates(random_texts(30, seed=8), title=True)
    frame = pd.concat([frame, frame.assign(qid="q9", query="what is tea")], ignore_index=True)         # the same documents for another query
    pipeline = split(ranker, length=20, stride=9) >> ranker >> aggregate
    slow, fast = pipeline(frame), pipeline.compile()(frame)
    assert np.abs(slow["score"] - fast["score"]).max() < 1e-5
    pd.testing.assert_frame_equal(slow.drop(columns=["score", "rank"]), fast.drop(columns=["score", "rank"]))
    assert set(fast.columns) == {"qid", "query", "docno", "text", "url", "title", "score", "rank"}


def test_each_document_is_tokenised_once_and_each_text_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = make_dot(seed=3)
    frame = candidates([" ".join(WORDS * 3)] * 2 + [" ".join(WORDS[::-1] * 2)])
    frame = pd.concat([frame.assign(qid=f"q{i}", query=f"find {WORDS[i]}", docno=["a", "b", "c"]) for i in range(4)], ignore_index=True)
    fused = (split(ranker, length=20) >> ranker >> max_passage()).compile()
    read, encoded = [], []
    words, encode_table = Splitter.words, kd.BertDot.encode
    monkeypatch.setattr(Splitter, "words", lambda self, texts, *a, **k: read.extend(filter(None, texts)) or words(self, texts, *a, **k))
    monkeypatch.setattr(kd.BertDot, "encode", lambda self, side, table, *a, **k: encoded.append(len(table)) or encode_table(self, side, table, *a, **k))
    fused(frame)
    assert len(read) == len(set(read)) == 2
    assert encoded[0] == 4                              # queries
    assert sum(encoded[1:]) == sum(len(split(ranker, length=20)(frame[["docno", "text"]].iloc[[i]])) for i in (0, 2))


def test_first_passages_alone_are_scored_where_they_alone_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, seen = make_cross(), []
    score = kd.CrossEncoder._score_rows
    monkeypatch.setattr(kd.CrossEncoder, "_score_rows", lambda self, q, query_rows, *a: seen.append(len(query_rows)) or score(self, q, query_rows, *a))
    (split(ranker, length=10) >> ranker >> first_passage()).compile()(candidates([" ".join(WORDS)] * 5))
    assert seen == [5]


def test_a_splitter_that_counts_otherwise_is_not_fused() -> None:
    ranker = make_cross()
    for other in (make_cross(max_length=32), make_cross(text_prompt="text: ")):
        assert type((split(other) >> ranker >> max_passage()).compile()).__name__ == "Compose"
    for limit in (make_dot(doc_length=12), make_cross(max_length=20)):       # a splitter that knows no limit: cut as the model cuts
        pipeline = split(make_tokenizer(), 20) >> limit >> max_passage()
        frame = candidates(random_texts(9, 5))
        with pytest.warns(UserWarning, match="were cut"):
            slow = pipeline(frame)
        limit._cut_reported = False
        with pytest.warns(UserWarning, match="were cut"):
            fast = pipeline.compile()(frame)
        assert np.abs(slow["score"] - fast["score"]).max() < 1e-5
    assert type((split(make_tokenizer(), 20) >> ranker >> max_passage()).compile()).__name__ == "RankByPassages"
    assert type((split(make_bpe(), 20) >> ranker >> max_passage()).compile()).__name__ == "Compose"


def test_titles_stand_before_every_passage_and_leave_half_of_the_room() -> None:
    ranker = make_cross()
    frame = candidates([" ".join(WORDS * 2)] * 2).assign(title=["apple bread", " ".join(WORDS * 3)])
    passages = split(ranker)(frame)
    first = passages[passages["docno"].str.startswith("d0%")]
    assert first["text"].str.startswith("apple bread ").all()
    assert (first["title"] == "apple bread").all()
    second = passages[passages["docno"].str.startswith("d1%")]["text"].tolist()
    room = 64 - 3 - 4
    head = " ".join(WORDS[:room // 2])
    assert all(text.startswith(head + " ") for text in second)
    assert second[0] == head + " " + " ".join((WORDS * 2)[:room - room // 2])
    untitled = split(ranker, title=None)(frame)
    assert untitled["text"].iloc[0] == " ".join((WORDS * 2)[:room])
    assert split(ranker, title="nothing")(frame)["text"].iloc[0] == untitled["text"].iloc[0]


def test_a_ranker_of_several_fields_has_the_last_one_split() -> None:
    ranker = make_cross(text_field=("title", "text"))
    frame = candidates([" ".join(WORDS * 3)] * 2).assign(title=["apple bread", " ".join(WORDS * 3)])
    plain = make_cross()
    pipeline = split(ranker) >> ranker >> max_passage()
    both, one = pipeline(frame), (split(plain) >> plain >> max_passage())(frame)
    assert np.abs(both["score"] - one["score"]).max() < 1e-5
    assert np.abs(pipeline.compile()(frame)["score"] - both["score"]).max() < 1e-5
    assert split(ranker)(frame)["text"].iloc[0].startswith("apple bread cheese")


def test_documents_without_queries_are_split_for_indexing() -> None:
    documents = pd.DataFrame({"docno": ["a", "b"], "text": [" ".join(WORDS * 2), "tea"]})
    assert split(make_dot())(documents)["docno"].tolist() == ["a%p0", "a%p1", "b%p0"]
    assert split(make_cross(), length=30)(documents)["docno"].tolist() == ["a%p0", "a%p1", "a%p2", "a%p3", "b%p0"]
    with pytest.raises(DataError, match=r"documents without queries, so how much room there is beside a query is not known: pass length="):
        split(make_cross())(documents)


def test_bad_settings_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"split: stride=40 must be from 1 to length=30: a longer one would leave words out of every passage"):
        split(make_cross(), length=30, stride=40)
    with pytest.raises(ValueError, match=r"stride=200 must be from 1 to length=61"):
        split(make_cross(), stride=200)
    with pytest.raises(ValueError, match=r"length=3 is too short: a window needs at least 4 tokens"):
        split(make_cross(), length=3, stride=1)
    with pytest.raises(ValueError, match=r"split\(tokenizer\) needs length="):
        split(make_tokenizer())
    with pytest.raises(DataError, match=r"Splitting needs a fast tokenizer"):
        split(object(), 10)
    with pytest.raises(DataError, match=r"a query leaves 2 tokens for prompt, title and passage, too few: pass query_length="):
        split(make_cross())(candidates(["tea"]).assign(query=" ".join(["tea"] * 59)))
    with pytest.raises(DataError, match=r"a query leaves 23 tokens for prompt, title and passage|leaves \d+ tokens for prompt"):
        split(make_cross(max_length=24, text_prompt=" ".join(["tea"] * 16) + " "))(candidates(["tea"] * 3))
    with pytest.raises(ValueError, match=r"split\(text_field='body'\): this ranker reads \['text'\]"):
        split(make_cross(), text_field="body")
    for p in ((pipeline := split(make_cross()) >> make_cross() >> max_passage()), pipeline.compile()):
        with pytest.raises(DataError, match="1 of 3 rows have no string in the column 'query'"):
            p(candidates(["tea"] * 3).assign(query=["a", None, "b"]))
    with pytest.raises(Exception, match="text"):
        split(make_cross())(candidates(["tea"]).drop(columns="text"))


@pytest.mark.parametrize("text", ["", "tea", "tea " * 200_000, "x" * 200_000, "漢" * 5000, "👍" * 3000], ids=["0 words", "1 word", "200,000 words", "no spaces", "CJK", "emoji"])
@pytest.mark.parametrize("name", ["wordpiece", "byte bpe"])
def test_documents_of_every_size(name: str, text: str) -> None:
    ranker = make_reader(name)
    passages = split(ranker)(candidates([text, "jam"]))
    assert passages["docno"].iloc[0] == "d0%p0"
    assert passages["docno"].iloc[-1] == "d1%p0"
    if len(text) < 10_000:
        fused = (split(ranker) >> ranker >> max_passage()).compile()
        assert len(fused(candidates([text, "jam"]))) == 2


def test_empty_frames_and_unusual_indexes() -> None:
    ranker = make_cross()
    pipeline = split(ranker) >> ranker >> max_passage()
    empty = candidates(["tea"]).iloc[:0]
    for p in (pipeline, pipeline.compile()):
        assert list(p(empty).columns) == ["qid", "query", "docno", "text", "url", "score", "rank"]
        frame = candidates(random_texts(5, 1))
        before = frame.copy()
        frame.index = [7] * 5
        assert len(p(frame)) == 5
        pd.testing.assert_frame_equal(frame.reset_index(drop=True), before)


# ---------------------------------------------------------------------- aggregates


def test_aggregates_equal_slow_code_and_keep_columns() -> None:
    rng = np.random.default_rng(0)
    rows = [{"qid": q, "query": q, "docno": f"{d}%p{i}", "score": float(rng.integers(0, 6)), "text": f"{d} {i}", "url": d}
            for q in ("q1", "q2") for d in ("b", "a%p7", "c") for i in range(int(rng.integers(1, 6)))]
    frame = pd.DataFrame(rows).sample(frac=1, random_state=1)
    documents = list(dict.fromkeys((q, d.rsplit("%p", 1)[0]) for q, d in zip(frame["qid"], frame["docno"], strict=True)))
    for aggregate, value in ((max_passage(), max), (mean_passage(), lambda s: sum(s) / len(s)), (k_max_mean(2), lambda s: sum(sorted(s)[-2:]) / min(2, len(s)))):
        out = aggregate(frame)
        assert list(zip(out["qid"], out["docno"], strict=True)) == documents
        for (q, d), score, text in zip(documents, out["score"], out["text"], strict=True):
            group = frame[(frame["qid"] == q) & (frame["docno"].str.rsplit("%p", n=1).str[0] == d)]
            assert score == pytest.approx(value(group["score"].tolist()))
            assert text == (group["text"].iloc[0] if aggregate.kind == "mean" else group.loc[group["score"] == group["score"].max(), "text"].iloc[0])
    first = first_passage()(frame)
    assert (first["text"].str[-1] == "0").all()
    assert set(first.columns) == set(frame.columns) | {"rank"}
    assert frame.equals(pd.DataFrame(rows).sample(frac=1, random_state=1))


def test_aggregates_take_whole_documents_and_refuse_scores_that_are_none() -> None:
    frame = make_frame()
    assert max_passage()(frame)["docno"].tolist() == frame["docno"].tolist()
    with pytest.raises(DataError, match=r"max_passage\(\): 1 of 30 passages have no finite score"):
        max_passage()(frame.assign(score=[float("nan"), *[1.0] * 29]))
    with pytest.raises(ValueError, match="kind must be one of max, first, mean, k_max_mean, k at least 1"):
        k_max_mean(0)
    assert repr(k_max_mean(3)) == "k_max_mean(3)"
    assert max_passage() == max_passage() != mean_passage()
    assert len({max_passage(), max_passage(), k_max_mean(2)}) == 2


def test_pyterriers_own_passages_work_too() -> None:
    ranker = make_cross()
    frame = candidates([" ".join(WORDS * 2)] * 4)
    with pytest.warns(UserWarning, match="split them into passages"):
        out = (pt.text.sliding("text", length=100, stride=50, prepend_attr=None) >> ranker >> pt.text.max_passage())(frame.assign(text=" ".join(WORDS * 4)))
    assert len(out) == 4
    ours = (pt.text.sliding("text", length=20, stride=10, prepend_attr=None) >> ranker >> max_passage())(frame)
    theirs = (pt.text.sliding("text", length=20, stride=10, prepend_attr=None) >> ranker >> pt.text.max_passage())(frame)
    assert dict(zip(ours["docno"], ours["score"], strict=True)) == dict(zip(theirs["docno"], theirs["score"], strict=True))


@pytest.mark.parametrize("transformer", [split(make_cross(), length=20), max_passage(), (split(make_cross()) >> make_cross() >> max_passage()).compile()], ids=["split", "max", "fused"])
def test_pyterriers_own_tests_pass(transformer) -> None:
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(pt.testing.transformer_test_class(lambda: transformer))
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun >= 2
    assert not result.failures, result.failures
    assert not result.errors, result.errors


def test_integer_docnos_come_out_as_strings_compiled_or_not() -> None:
    ranker = make_cross()
    pipeline = split(ranker) >> ranker >> max_passage()
    frame = candidates(random_texts(4, 2)).assign(docno=range(4))
    assert pipeline(frame)["docno"].tolist() == pipeline.compile()(frame)["docno"].tolist() == ["0", "1", "2", "3"]


def test_a_ranker_that_reads_titles_has_them_split() -> None:
    assert split(make_cross(text_field="title"))(pd.DataFrame({"qid": ["1"], "query": ["tea"], "docno": ["a"], "title": [" ".join(WORDS)]}))["title"].tolist()[0] == " ".join(WORDS)


def test_compiled_for_indexing_vectors_are_added() -> None:
    dense = make_dot()
    documents = pd.DataFrame({"docno": ["a", "b"], "text": [" ".join(WORDS * 2), "tea"]})
    plain, compiled = (split(dense) >> dense)(documents), (split(dense) >> dense).compile()(documents)
    assert np.allclose(np.stack(plain["doc_vec"]), np.stack(compiled["doc_vec"]))


# ---------------------------------------------------------------------- training on passages


def test_passages_are_trained_with_their_documents_labels_and_validated_by_documents() -> None:
    frame = candidates([" ".join(random.Random(i).choices(WORDS, k=90)) for i in range(12)])
    qrels = frame.iloc[::2][["qid", "docno"]].assign(label=1)
    teacher = make_cross(seed=5)
    distiller = kd.Distiller(make_cross(seed=6), teacher, loss=kd.losses.HardLabels() + kd.losses.SoftLabels(), steps=4, verbose=False)
    pipeline = split(distiller) >> distiller >> max_passage()
    (split(distiller) >> distiller).fit(frame, qrels, frame, qrels)
    assert len(pipeline(frame)) == 12
    assert type(pipeline.compile()).__name__ == "RankByPassages"
    compiled = pipeline.compile()
    distiller.seed = 3
    (split(distiller) >> distiller).fit(frame, qrels, frame, qrels)     # once more: the compiled pipeline ranks with the new student
    assert np.abs(compiled(frame)["score"] - pipeline(frame)["score"]).max() < 1e-5
    assert 0 < distiller.history_["nDCG@10"].iloc[-1] <= 1
    groups = from_frame(split(distiller)(frame), ["x"] * len(split(distiller)(frame)), qrels, "test")
    assert groups.label.mean() == pytest.approx(0.5, abs=0.2)


def test_the_teachers_top_passages_are_kept_per_document_or_query() -> None:
    rng = np.random.default_rng(0)
    starts, parent, scores = np.array([0, 40, 70]), rng.integers(0, 6, 70), rng.integers(0, 9, 70).astype(float)
    for keep in (KeepTop(5), KeepTop(3, per="query"), KeepTop(1), KeepTop(100)):
        kept = keep(starts, parent, scores)
        expected = np.zeros(70, dtype=bool)
        for a, b in ((0, 40), (40, 70)):
            for d in range(6) if keep.per == "document" else [None]:
                rows = [i for i in range(a, b) if d is None or parent[i] == d]
                expected[sorted(rows, key=lambda i: (-scores[i], i))[:keep.count]] = True
        assert (kept == expected).all()
    with pytest.raises(ValueError, match="count must be at least 1, per 'document' or 'query'"):
        KeepTop(0)


def test_documents_named_like_passages_keep_their_labels() -> None:
    frame = make_frame(2, 3).assign(docno=["a%p1", "a%p2", "b%p1", "a%p1", "a", "c%p0"])
    qrels = pd.DataFrame({"qid": ["q0", "q1"], "docno": ["a%p1", "c"], "label": 1})
    groups = from_frame(frame, frame["text"].tolist(), qrels, "test")
    assert groups.label.tolist() == [1, 0, 0, 0, 0, 1]


def test_groups_that_the_filter_leaves_without_what_a_loss_needs_are_left_out() -> None:
    frame = make_frame()
    qrels = frame.groupby("qid").tail(1)[["qid", "docno"]].assign(label=1)
    for loss in (kd.losses.Hidden() + kd.losses.HardLabels(), kd.losses.HardLabels()):
        with pytest.warns(UserWarning, match="of 6 queries .* have no relevant candidate; they are left out"):
            kd.Distiller(make_cross(seed=6), make_cross(seed=5), loss=loss, keep_top=KeepTop(2, per="query"), steps=1, verbose=False).fit(frame, qrels)
    with pytest.raises(DataError, match="6 have fewer than 2 candidates"):
        kd.Distiller(make_cross(seed=6), make_cross(seed=5), loss=kd.losses.MarginMSE(), keep_top=KeepTop(1, per="query"), steps=1, verbose=False).fit(frame, qrels)
    for bad in ({"keep_top": 5, "teacher": make_cross()}, {"keep_top": KeepTop(5)}):
        with pytest.raises(ValueError, match=r"it needs a teacher= that scores pairs, and a value such as kd.KeepTop\(5\)"):
            kd.Distiller(make_cross(), loss=kd.losses.HardLabels(), verbose=False, **bad).fit(frame, qrels)


def remembering(seen: set[str]):
    """``Groups._batch``, which remembers the texts that it gives."""
    real = Groups._batch

    def batch(self, *args):
        made = real(self, *args)
        seen.update(self.texts[t] for t in made.texts[made.mask].tolist())
        return made

    return batch


def test_training_on_the_teachers_top_passages_sees_only_those(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = candidates([" ".join(random.Random(i).choices(WORDS, k=90)) for i in range(12)])
    teacher = make_cross(seed=5)
    passages = split(teacher, length=20)(frame)
    scored = teacher(passages)
    best = scored.assign(d=scored["docno"].str.rsplit("%p", n=1).str[0]).sort_values("score", ascending=False).groupby(["qid", "d"]).head(2)
    for loss in (kd.losses.MSE(), kd.losses.Hidden() + kd.losses.SoftLabels()):
        seen: set[str] = set()
        with monkeypatch.context() as patch:
            patch.setattr(Groups, "_batch", remembering(seen))
            kd.Distiller(make_cross(seed=6), teacher, loss=loss, keep_top=KeepTop(2), epochs=30, verbose=False).fit(passages)
        assert seen <= set(best["text"])
        assert len(seen) > 0.8 * best["text"].nunique()




def test_tk_ranks_passages() -> None:
    frame, ranker = make_frame(), make_tk()
    pipeline = split(ranker, length=4) >> ranker >> max_passage()
    fused = pipeline.compile()
    assert hash(split(ranker)) == hash(split(ranker))
    assert np.allclose(fused(frame)["score"], pipeline(frame)["score"], atol=1e-5)


def test_documents_that_stand_twice_are_refused() -> None:
    frame, ranker = make_frame(), make_dot()
    twice = pd.concat([frame, frame.head(1)], ignore_index=True)
    pipeline = split(ranker, length=4) >> ranker >> max_passage()
    for one in (pipeline, pipeline.compile()):
        with pytest.raises(DataError, match=r"stand there again \(first: \['q0', 'd0x0"):
            one(twice)


def test_no_documents_have_no_passages() -> None:
    assert len(split(make_cross())(pd.DataFrame({"docno": [], "text": []}, dtype=object))) == 0
