"""Tokens and windows: every row once, nothing padded to a global maximum, memory given back."""

import numpy as np
import pytest
import torch
import transformers
from conftest import make_cross, make_tokenizer

from pyterrier_kd import scoring, tokens
from pyterrier_kd.errors import DataError
from pyterrier_kd.tokens import Template, assemble, check_room, encode, tokenise

TEXTS = ["apple bread", "", "how to find a list in the file", "tea", "unknownword 123"]


def test_a_table_holds_what_the_tokenizer_says() -> None:
    tokenizer = make_tokenizer()
    table = tokenise(tokenizer, TEXTS, 6)
    assert len(table) == 5
    for i, text in enumerate(TEXTS):
        assert table[i].tolist() == encode(tokenizer, [text])[0][:6]
    assert table.lengths.tolist() == [len(table[i]) for i in range(5)]
    assert table.cut == 2
    assert len(tokenise(tokenizer, [], 6)) == 0
    assert tokenise(tokenizer, ["tea"], 6, prompt="apple ")[0].tolist() == encode(tokenizer, ["apple tea"])[0]


def test_large_tables_are_kept_on_disk(monkeypatch) -> None:
    tokenizer = make_tokenizer()
    expected = tokenise(tokenizer, TEXTS * 7, 6)
    monkeypatch.setattr(tokens, "CHUNK", 4)
    monkeypatch.setattr(tokens, "IN_MEMORY", 20)
    table = tokenise(tokenizer, TEXTS * 7, 6)
    assert isinstance(table.ids, np.memmap)
    assert table.ids.tolist() == expected.ids.tolist()
    assert table.starts.tolist() == expected.starts.tolist()
    assert table.cut == expected.cut


TEMPLATES = {
    "bert": ("[CLS] $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"),
    "roberta": ("[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B [SEP]"),
    "no start": ("$A [SEP]", "$A [SEP] $B [SEP]"),
    "nothing": ("$A", "$A $B"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_are_what_the_tokenizer_makes_of_pairs(name: str) -> None:
    from tokenizers.processors import TemplateProcessing
    tokenizer = make_tokenizer()
    single, pair = TEMPLATES[name]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    for segments in (1, 2):
        template = Template.of(tokenizer, segments, types=True)
        rows = [(a, b)[:segments] for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]      # the third row has the same text twice
        table = tokenise(tokenizer, TEXTS, 60)
        ids = [tuple(table[TEXTS.index(t)] for t in row) for row in rows]
        ours = assemble(template, ids, 0, "cpu")
        theirs = tokenizer(*([list(column) for column in zip(*rows, strict=True)]), padding=True, return_tensors="pt", return_token_type_ids=True)
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), key
        assert template.special == len(tokenizer(*rows[0])["input_ids"]) - sum(len(encode(tokenizer, [t])[0]) for t in rows[0])
        assert Template.of(tokenizer, segments, types=False).types is None


def test_a_tokenizer_that_mixes_segments_is_refused() -> None:
    class Mixing:
        def __call__(self, *texts, **kwargs):
            if isinstance(texts[0], list):
                return {"input_ids": [[len(t)] for t in texts[0]]}
            return {"input_ids": [99]}
    with pytest.raises(DataError, match=r"Mixing does not encode the 2 segment\(s\) of a row independently of each other"):
        Template.of(Mixing(), 2, types=False)


def test_batches_are_padded_to_their_own_longest_row() -> None:
    ranker, seen = make_cross(batch_size=2), []
    forward = ranker.model.forward
    ranker.model.forward = lambda **k: seen.append(tuple(k["input_ids"].shape)) or forward(**k)
    ranker.score(["tea"] * 6, ["apple " * n for n in (30, 1, 2, 29, 10, 11)])
    assert seen == [(2, 34), (2, 15), (2, 6)]


def test_room_for_a_text() -> None:
    check_room(["a"], np.array([5]), 3, 9, "x")
    with pytest.raises(DataError, match=r"x reads 9 tokens, 3 of them special: 1 of 2 queries \(6 tokens the longest\) leave no room for a text: 'b'"):
        check_room(["a", "b"], np.array([5, 6]), 3, 9, "x")


# ---------------------------------------------------------------------- windows and batches


@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_windows_have_every_row_once_and_keep_texts_together(size: int) -> None:
    codes = np.random.default_rng(0).integers(0, 12, 60)
    windows = list(scoring.windows(codes, size))
    assert sorted(np.concatenate(windows).tolist()) == list(range(60))
    assert max(map(len, windows)) <= 2 * size
    if size >= 10:
        seen = [set(codes[w].tolist()) for w in windows]
        assert sum(len(s) for s in seen) == 12          # no text is prepared twice
    assert list(scoring.windows(np.zeros(0, dtype=int), size)) == []


def test_a_text_with_more_rows_than_a_window_goes_on_in_the_next() -> None:
    sizes = [len(w) for w in scoring.windows(np.zeros(50, dtype=int), 10)]
    assert sum(sizes) == 50
    assert max(sizes) <= 20


def test_batches_keep_to_their_budget_longest_first() -> None:
    lengths = np.random.default_rng(1).integers(1, 50, 200)
    batches = list(scoring.length_batches(lengths, 128))
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    for batch in batches:
        assert len(batch) * lengths[batch].max() <= 128
    longest = [lengths[b].max() for b in batches]
    assert longest == sorted(longest, reverse=True)
    assert [len(b) for b in scoring.length_batches(np.array([300, 2, 2, 2]), 128, rows=2)] == [1, 2, 1]


def test_results_come_back_in_row_order() -> None:
    lengths = np.random.default_rng(2).integers(1, 50, 100)
    done = []
    found = scoring.by_length(lengths, lambda rows: np.stack([rows, lengths[rows]], axis=1), 64, done.append)
    assert found[:, 0].tolist() == list(range(100))
    assert sum(done) == 100


def test_running_out_of_memory_halves_the_batches() -> None:
    lengths, sizes = np.full(64, 10), []

    def forward(rows: np.ndarray) -> np.ndarray:
        sizes.append(len(rows))
        if len(rows) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return rows.astype(np.float32)

    assert scoring.by_length(lengths, forward, 320).tolist() == list(range(64))
    assert sizes[:5] == [32, 16, 8, 4, 4]
    with pytest.raises(torch.OutOfMemoryError):
        scoring.by_length(lengths[:2], lambda rows: (_ for _ in ()).throw(torch.OutOfMemoryError("x")), 320)


def test_memory_is_bounded_whatever_the_length_of_the_frame(monkeypatch) -> None:
    ranker, held = make_cross(), []
    prepare = type(ranker)._prepare_texts
    monkeypatch.setattr(type(ranker), "_prepare_texts", lambda self, texts: held.append(len(texts)) or prepare(self, texts))
    monkeypatch.setattr(scoring, "WINDOW", 50)
    ranker.score(["tea"] * 400, [f"apple {i}" for i in range(400)])
    assert max(held) <= 50
    assert sum(held) == 400


def test_type_ids_follow_their_segments() -> None:
    tokenizer = make_tokenizer()
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerBase)
    template = Template.of(tokenizer, 2, types=True)
    batch = assemble(template, [(np.array([7, 8]), np.array([9])), (np.array([7]), np.array([], dtype=int))], 0, "cpu")
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
