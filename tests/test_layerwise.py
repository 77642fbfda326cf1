"""Losses over layers: each against plain loops in float64 over what the models compute, and what they must not depend on."""

import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
import transformers
from conftest import make_config, make_cross, make_dot, make_frame, make_qrels, make_tokenizer
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

import pyterrier_kd as kd
from pyterrier_kd.errors import LayerMismatch, MissingSignal
from pyterrier_kd.groups import from_frame
from pyterrier_kd.losses import Attention, Embedding, HardLabels, Hidden, MarginMSE, Relations, SoftLabels
from pyterrier_kd.losses.layer_maps import layer_pairs
from pyterrier_kd.losses.layerwise import SquaredProduct
from pyterrier_kd.rankers import base
from pyterrier_kd.sampling import Sampler
from pyterrier_kd.signals import Texts

SIZES = {"vocab_size": len(make_tokenizer()), "max_position_embeddings": 64}


def make(kind: str, layers: int, hidden: int, seed: int, heads: int = 4, **changes: object) -> kd.CrossEncoder:
    """A random cross-encoder of some make."""
    torch.manual_seed(seed)
    if kind == "bert":
        model = transformers.BertForSequenceClassification(make_config(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_labels=2, **changes))
    elif kind == "electra":
        model = transformers.ElectraForSequenceClassification(transformers.ElectraConfig(
            **SIZES, embedding_size=16, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=64, num_labels=2, initializer_range=0.2))
    elif kind == "roberta":
        model = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(
            **SIZES, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=64, num_labels=2, pad_token_id=0, initializer_range=0.2))
    elif kind == "distilbert":
        model = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(
            **SIZES, dim=hidden, n_layers=layers, n_heads=heads, hidden_dim=64, num_labels=2, initializer_range=0.2))
    else:
        model = transformers.ModernBertForSequenceClassification(transformers.ModernBertConfig(
            **SIZES, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=64, num_labels=2, local_attention=8, initializer_range=0.2,
            global_attn_every_n_layers=2, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, **changes))
    return kd.CrossEncoder(model, make_tokenizer(), device="cpu")


MAKES = ["bert", "distilbert", "electra", "roberta", "modernbert"]
FRAME = make_frame(queries=4, texts=3)
GROUPS = from_frame(FRAME, FRAME["text"].tolist(), None, "test")
BATCH = next(GROUPS.batches(4, Sampler(texts=3), (0,)))
TEXTS = Texts(tuple(FRAME["text"].unique()[:5]))


def pairs_of(student: kd.CrossEncoder) -> list[tuple[str, str]]:
    return [(GROUPS.queries[q], GROUPS.texts[t]) for q, row in zip(BATCH.queries.tolist(), BATCH.texts.tolist(), strict=True) for t in row]


def value(loss: kd.losses.Loss, student: kd.Ranker, teacher: kd.Ranker, learned: torch.nn.ModuleDict | None = None) -> float:
    """The loss as a training computes it."""
    bound = loss.bind(student.architecture(), teacher.architecture(), learned)
    with torch.no_grad():
        ours = student.signals(BATCH, student.tokens(GROUPS.queries, GROUPS.texts), loss.needs.student, bound.student_layers)
        theirs = teacher.signals(BATCH, teacher.tokens(GROUPS.queries, GROUPS.texts), loss.needs.teacher, bound.teacher_layers)
        return float(bound(ours, theirs, BATCH, 0.0)[0])


# ---------------------------------------------------------------------- slow, obvious code


def listen(ranker: kd.CrossEncoder, query: str, text: str) -> dict[str, list[np.ndarray]]:
    """What one pair does in a model, alone and so without padding: q, k, v (A, T, d) from its linear layers, hidden states from transformers, in float64."""
    encoder, kept = ranker.model.base_model, []
    names = {"distilbert": ("q_lin", "k_lin", "v_lin"), "modernbert": ("Wqkv",)}.get(encoder.config.model_type, ("query", "key", "value"))
    hooks = [m.register_forward_hook(lambda _, __, out: kept.append(out[0].double())) for n, m in encoder.named_modules() if n.split(".")[-1] in names]
    inputs = ranker.tokenizer(query, text, return_tensors="pt")
    if ranker.template.types is None:
        inputs.pop("token_type_ids", None)
    outer = []
    layers = next(m for m in encoder.modules() if isinstance(m, torch.nn.ModuleList))
    hooks += [layer.register_forward_hook(lambda _, __, out: outer.append((out if isinstance(out, torch.Tensor) else out[0])[0].double())) for layer in layers]
    with torch.no_grad():
        states = encoder(**inputs, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    heads = encoder.config.num_attention_heads
    if encoder.config.model_type == "modernbert":
        length = kept[0].shape[0]
        projections = []
        for number, both in enumerate(kept):
            q, k, v = (both.view(length, 3, heads, -1)[:, i].transpose(0, 1) for i in range(3))
            cos, sin = encoder.rotary_emb(torch.zeros(1, length, encoder.config.hidden_size), torch.arange(length)[None], encoder.config.layer_types[number])
            q, k = apply_rotary_pos_emb(q[None], k[None], cos.double(), sin.double(), unsqueeze_dim=1)
            projections.append((q[0].numpy(), k[0].numpy(), v.numpy()))
    else:
        projections = [tuple(x.view(x.shape[0], heads, -1).transpose(0, 1).numpy() for x in kept[i:i + 3]) for i in range(0, len(kept), 3)]
    return {"qkv": projections, "hidden": [x.numpy() for x in outer], "embedding": [states[0][0].double().numpy()]}


def seen(ranker: kd.CrossEncoder, layer: int, i: int, j: int) -> bool:
    config = ranker.model.config
    return config.model_type != "modernbert" or config.layer_types[layer] == "full_attention" or abs(i - j) <= config.sliding_window


def slow_attention(student, teacher, pairs) -> float:
    total = 0.0
    for m, g in pairs:
        squares, count = 0.0, 0
        for query, text in pairs_of(student):
            (qs, ks, _), (qt, kt, _) = listen(student, query, text)["qkv"][m], listen(teacher, query, text)["qkv"][g]
            for head in range(qs.shape[0]):
                for i in range(qs.shape[1]):
                    for j in range(qs.shape[1]):
                        if seen(student, m, i, j):
                            difference = qs[head, i] @ ks[head, j] / math.sqrt(qs.shape[2]) - qt[head, i] @ kt[head, j] / math.sqrt(qt.shape[2])
                            squares, count = squares + difference ** 2, count + 1
        total += squares / count
    return total


def slow_hidden(student, teacher, pairs, matrix, name="hidden") -> float:
    total = 0.0
    for m, g in pairs:
        squares, count = 0.0, 0
        for query, text in pairs_of(student):
            ours, theirs = listen(student, query, text)[name][m], listen(teacher, query, text)[name][g]
            for token in range(len(ours)):
                for dimension in range(theirs.shape[1]):
                    squares += (matrix[dimension] @ ours[token] - theirs[token, dimension]) ** 2
                    count += 1
        total += squares / count
    return total


def slow_relations(student, teacher, pairs, heads) -> float:
    total = 0.0
    for m, g in pairs:
        for which in range(3):
            divergence, rows = 0.0, 0
            for query, text in pairs_of(student):
                distributions = []
                for ranker, layer in ((student, m), (teacher, g)):
                    x = listen(ranker, query, text)["qkv"][layer][which]
                    x = x.transpose(1, 0, 2).reshape(x.shape[1], -1)                          # (T, H)
                    width = x.shape[1] // heads
                    each = []
                    for head in range(heads):
                        part = x[:, head * width:(head + 1) * width]
                        scores = np.array([[part[i] @ part[j] / math.sqrt(width) if seen(ranker, layer, i, j) else -np.inf for j in range(len(x))] for i in range(len(x))])
                        each.append(np.exp(scores) / np.exp(scores).sum(1, keepdims=True))
                    distributions.append(each)
                for ours, theirs in zip(*distributions, strict=True):
                    for i in range(len(ours)):
                        divergence += sum(t * math.log(t / s) for s, t in zip(ours[i], theirs[i], strict=True) if t > 0)
                        rows += 1
            total += divergence / rows
    return total


@pytest.mark.parametrize("kind", MAKES)
def test_losses_equal_slow_code(kind: str) -> None:
    student, teacher = make(kind, 2, 32, seed=1), make(kind, 4, 48, seed=2)
    pairs = [(0, 1), (1, 3)] if kind != "modernbert" else [(0, 2), (1, 3)]
    layers = "uniform" if kind != "modernbert" else [2, 3]
    learned = torch.nn.ModuleDict()
    assert value(Attention(layers=layers), student, teacher) == pytest.approx(slow_attention(student, teacher, pairs), rel=1e-5)
    ours = value(Hidden(layers=layers), student, teacher, learned)
    assert ours == pytest.approx(slow_hidden(student, teacher, pairs, learned["hidden_32_48"].weight.detach().double().numpy()), rel=1e-5)
    ours = value(Embedding(), student, teacher, learned)
    assert ours == pytest.approx(slow_hidden(student, teacher, [(0, 0)], learned["embedding_32_48"].weight.detach().double().numpy(), "embedding"), rel=1e-5)
    assert value(Relations(layers={1: 3}, heads=8), student, teacher) == pytest.approx(slow_relations(student, teacher, [(1, 3)], 8), rel=1e-5)
    assert value(Relations(layers=layers, heads=4), student, teacher) == pytest.approx(slow_relations(student, teacher, pairs, 4), rel=1e-5)


def reference_attention(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As TinyBERT's code has it: additive mask, entries of at most -100 set to 0 in both, mean over everything."""
    masked = [scores + (~mask[:, None, None, :]).float() * -10000.0 for scores in (student, teacher)]
    zeroed = [torch.where(scores <= -1e2, torch.zeros_like(scores), scores) for scores in masked]
    return torch.nn.functional.mse_loss(*zeroed)


def test_reference_mode_is_the_public_codes_mean() -> None:
    student, teacher = make("bert", 2, 32, seed=1), make("bert", 4, 48, seed=2)
    loss = Attention(reference=True)
    bound = loss.bind(student.architecture(), teacher.architecture())
    tables = [r.tokens(GROUPS.queries, GROUPS.texts) for r in (student, teacher)]
    with torch.no_grad():
        ours, theirs = student.signals(BATCH, tables[0], loss.needs.student, bound.student_layers), teacher.signals(BATCH, tables[1], loss.needs.teacher, bound.teacher_layers)
        (mine,), (his,) = ours.layers, theirs.layers
        expected = sum(reference_attention(mine.attention(m), his.attention(g), mine.mask) for m, g in ((0, 1), (1, 3)))
        assert not mine.mask.all()
        assert float(bound(ours, theirs, BATCH, 0.0)[0]) == pytest.approx(float(expected), rel=1e-5)
    assert value(Attention(), student, teacher) != pytest.approx(float(expected), rel=0.05)


@contextlib.contextmanager
def padded(by: int, monkeypatch: pytest.MonkeyPatch):
    """Every batch gets some more columns of padding."""
    real = base.assemble

    def assemble(template, segments, pad_id, device):
        return {k: torch.nn.functional.pad(v, (0, by), value=pad_id if k == "input_ids" else 0) for k, v in real(template, segments, pad_id, device).items()}

    with monkeypatch.context() as patch:
        patch.setattr("pyterrier_kd.rankers.cross_encoder.assemble", assemble)
        yield


@pytest.mark.parametrize("kind", MAKES)
def test_padding_changes_no_loss_but_the_references(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = make(kind, 2, 32, seed=1), make(kind, 4, 48, seed=2)
    layers = "uniform" if kind != "modernbert" else [2, 3]
    for loss in (Attention(layers=layers), Hidden(layers=layers), Embedding(), Relations(layers=layers, heads=4), Attention(layers=layers, reference=True)):
        learned = torch.nn.ModuleDict()
        before = value(loss, student, teacher, learned)
        with padded(9, monkeypatch):
            after = value(loss, student, teacher, learned)
        changed = abs(after - before) / before
        assert changed > 1e-2 if getattr(loss, "reference", False) else changed < 1e-5


def test_the_layers_heard_do_not_change_what_a_model_says() -> None:
    for kind in MAKES:
        ranker = make(kind, 3, 32, seed=4)
        tokens = ranker.tokens(GROUPS.queries, GROUPS.texts)
        everything = {name: frozenset(range(3)) for name in ("hidden", "queries", "keys", "values")} | {"embedding": frozenset()}
        with torch.no_grad():
            plain, heard = ranker.signals(BATCH, tokens), ranker.signals(BATCH, tokens, frozenset({"scores", "hidden"}), everything)
        assert torch.allclose(plain.scores, heard.scores, atol=1e-5)
        assert all(set(piece.hidden) == {0, 1, 2} and set(piece.queries) == {0, 1, 2} for piece in heard.layers)
        assert ranker.model.config._attn_implementation == "sdpa"
        assert not any("tap" in name for m in ranker.model.modules() for name in vars(m))


def test_only_the_mapped_layers_are_kept_and_the_fused_kernel_stays() -> None:
    ranker = make("bert", 4, 32, seed=4)
    with torch.no_grad():
        heard = ranker.signals(BATCH, ranker.tokens(GROUPS.queries, GROUPS.texts), frozenset({"hidden"}), {"hidden": frozenset({1}), "keys": frozenset({2})})
    (piece,) = heard.layers
    assert (set(piece.hidden), set(piece.keys), set(piece.queries), piece.embedding) == ({1}, {2}, set(), None)


def test_gradients_reach_every_mapped_layer_and_the_projections() -> None:
    student, teacher = make("bert", 2, 32, seed=1), make("bert", 4, 48, seed=2)
    loss = Attention() + Hidden() + Embedding() + 0.5 * Relations()
    bound = loss.bind(student.architecture(), teacher.architecture())
    student.model.train()
    ours = student.signals(BATCH, student.tokens(GROUPS.queries, GROUPS.texts), loss.needs.student, bound.student_layers)
    with torch.no_grad():
        theirs = teacher.signals(BATCH, teacher.tokens(GROUPS.queries, GROUPS.texts), loss.needs.teacher, bound.teacher_layers)
    total, values = bound(ours, theirs, BATCH, 0.0)
    total.backward()
    assert set(values) == {"Attention()", "Hidden()", "Embedding()", "Relations()"}
    assert float(total.detach()) == pytest.approx(sum(float(v) * (0.5 if k == "Relations()" else 1) for k, v in values.items()), rel=1e-5)
    for name, parameter in [*student.encoder.named_parameters(), *bound.named_parameters()]:
        assert (parameter.grad is not None and float(parameter.grad.abs().sum()) > 0) == ("pooler" not in name), name


def test_the_gradient_of_the_squared_product_is_that_of_automatic_differentiation() -> None:
    q, k = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    near = torch.rand(2, 1, 5, 5) > 0.3
    for mask in (None, near):
        assert torch.autograd.gradcheck(lambda a, b, m=mask: SquaredProduct.apply(a, b, m), (q, k))
        assert float(SquaredProduct.apply(q, k, mask).detach()) == pytest.approx(float(((q @ k.transpose(-1, -2)) * (1 if mask is None else mask)).square().sum().detach()))


# ---------------------------------------------------------------------- layer maps


@pytest.mark.parametrize(("layers", "student", "teacher", "expected"), [
    ("uniform", 4, 12, [(0, 2), (1, 5), (2, 8), (3, 11)]), ("uniform", 6, 12, [(i, 2 * i + 1) for i in range(6)]),
    ("uniform", 5, 12, [(0, 1), (1, 4), (2, 6), (3, 9), (4, 11)]), ("uniform", 3, 4, [(0, 0), (1, 2), (2, 3)]), ("uniform", 2, 2, [(0, 0), (1, 1)]),
    ("last", 3, 12, [(0, 9), (1, 10), (2, 11)]), ("skip", 4, 12, [(0, 2), (1, 5), (2, 8)]),
    ([0, None, 7], 3, 12, [(0, 0), (2, 7)]), ({-1: -1}, 3, 12, [(2, 11)]), ({0: 3, 2: -2}, 3, 12, [(0, 3), (2, 10)]),
])
def test_layer_maps(layers, student, teacher, expected) -> None:
    assert list(layer_pairs(Attention(layers=layers).layers, student, teacher)) == expected


@pytest.mark.parametrize(("layers", "message"), [
    ("uniform", "maps a student of 6 layers to a teacher of 4, which has fewer"), ([0, 1], "names 2 teacher layers for a student of 6 layers"),
    ([0, 1, 2, 3, 4, 5], r"maps the \(student, teacher\) layers \[\(4, 4\), \(5, 5\)\]: the student has the layers 0 to 5, the teacher 0 to 3"),
    ([None] * 6, "maps no layer"), ({9: 0}, r"maps the \(student, teacher\) layers \[\(9, 0\)\]"), ({0: -9}, r"\[\(0, -9\)\]")])
def test_layer_maps_that_do_not_fit_say_why(layers, message) -> None:
    with pytest.raises(LayerMismatch, match=message):
        layer_pairs(Attention(layers=layers).layers, 6, 4)


def test_unknown_settings_are_refused() -> None:
    for layers in ("unifrom", 3):
        with pytest.raises(ValueError, match=rf"Attention\(layers={layers!r}\) is unknown"):
            Attention(layers=layers)
    with pytest.raises(ValueError, match=r"Relations\(heads=0\) must be at least 1"):
        Relations(heads=0)
    assert Attention(layers={0: None, 1: 3}) == Attention(layers={1: 3})
    for loss in (Hidden, Embedding):
        with pytest.raises(ValueError, match="is unknown: it is 'own', 'shared' or None"):
            loss(projection="mine")


def test_losses_print_as_they_are_written() -> None:
    total = Attention() + Hidden(layers=[1, None]) + 0.5 * Embedding(projection="shared") + SoftLabels() + HardLabels()
    assert repr(total) == "Attention() + Hidden(layers=(1, None)) + 0.5 * Embedding(projection='shared') + SoftLabels(temperature=1.0) + HardLabels()"


# ---------------------------------------------------------------------- what cannot be compared


def test_projections_are_shared_where_asked_and_kept() -> None:
    student, teacher = make("bert", 2, 32, seed=1).architecture(), make("bert", 4, 48, seed=2).architecture()
    learned = torch.nn.ModuleDict()
    (Hidden(projection="shared") + Embedding(projection="shared")).bind(student, teacher, learned)
    assert list(learned) == ["shared_32_48"]
    assert learned["shared_32_48"].bias is not None
    first = learned["shared_32_48"]
    (Hidden() + Hidden(projection="shared") + Embedding()).bind(student, teacher, learned)
    assert sorted(learned) == ["embedding_32_48", "hidden_32_48", "shared_32_48"]
    assert learned["shared_32_48"] is first
    assert learned["hidden_32_48"].bias is None
    assert torch.allclose(learned["hidden_32_48"].weight.T @ learned["hidden_32_48"].weight, torch.eye(32), atol=1e-5)
    with pytest.raises(LayerMismatch, match=r"Hidden\(projection=None\) needs equal hidden sizes, not 32 and 48: let it learn a projection"):
        Hidden(projection=None).bind(student, teacher)
    assert value(Hidden(projection=None), make("bert", 2, 32, seed=1), make("bert", 4, 32, seed=1)) > 0


def refused(student: kd.Ranker, teacher: object, loss: kd.losses.Loss, message: str, error: type[Exception] = LayerMismatch) -> None:
    with pytest.raises(error, match=message):
        kd.Distiller(student, teacher, loss=loss, verbose=False).fit(FRAME, make_qrels(FRAME))


def test_encoders_that_cannot_be_compared_are_refused_with_what_to_use_instead() -> None:
    student = make("bert", 2, 32, seed=1)
    other = make("bert", 4, 48, seed=2)
    other.tokenizer = transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"])})
    refused(student, other, Hidden(), r"must read the same tokens; they differ in tokenizer: .* Use a loss over scores instead, such as MarginMSE\(\)")
    refused(student, make("bert", 4, 48, seed=2, heads=6), Attention(), r"has 4 heads and the teacher .* 6\. Use Relations\(\) instead")
    refused(student, kd.CrossEncoder(other.model, make_tokenizer(), max_length=32, device="cpu"), Hidden(), "differ in max_length: 64 and 32. Give both the same max_length")
    refused(make_dot(), make_cross(), Attention(), "reads query and text and the teacher .* reads pair. Use a loss over scores instead")
    refused(student, make_cross(seed=3) + make_cross(seed=4), Hidden(), "compares layers, and the teacher has none to compare. Use a loss over scores instead")
    refused(student, FRAME[["qid", "docno", "score"]], Embedding(), "the teacher has none to compare")
    refused(student, other, MarginMSE(in_batch=True), "needs the signal 'in_batch' from the student", MissingSignal)
    small, large = make("modernbert", 2, 32, seed=1), make("modernbert", 4, 48, seed=2)
    refused(small, large, Attention(layers=[1, 2]), r"student's layer 0 is full_attention, the teacher's layer 1 is sliding_attention. Map layers of the same kind, such as layers=\[0, 1\]")
    refused(student, make("bert", 4, 48, seed=2), Relations(heads=32), "heads=32 must divide the hidden sizes of both, 32 and 48: pass a divisor of 16")
    with pytest.raises(LayerMismatch, match=r"must know the layers of student and teacher first"):
        Attention()(None, None, BATCH)


def test_encoders_that_differ_in_segment_embeddings_alone_can_be_compared() -> None:
    student, teacher = make("distilbert", 2, 32, seed=1), make("bert", 4, 48, seed=2)
    assert (student.template.types, teacher.template.types is None) == (None, False)
    assert value(Hidden() + Attention(), student, teacher) > 0


def test_padded_slots_of_a_batch_count_for_nothing() -> None:
    student, teacher = make_dot(seed=1), make_dot(seed=2, layers=4)
    bound = Hidden().bind(student.architecture(), teacher.architecture())
    ragged = dataclasses.replace(BATCH, mask=BATCH.mask.clone(), texts=BATCH.texts.clone())
    ragged.mask[:, 1:] = False
    ragged.texts[:, 1:] = 0
    alone = dataclasses.replace(BATCH, mask=BATCH.mask[:, :1], texts=BATCH.texts[:, :1])
    values = []
    for batch in (ragged, alone):
        with torch.no_grad():
            signals = [r.signals(batch, r.tokens(GROUPS.queries, GROUPS.texts), frozenset({"hidden"}), layers) for r, layers in
                       ((student, bound.student_layers), (teacher, bound.teacher_layers))]
            values.append(float(bound(*signals, batch, 0.0)[0]))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_distiller_that_was_fitted_teaches_with_its_layers() -> None:
    first = kd.Distiller(make_cross(seed=3, layers=4), make_cross(seed=4), steps=1, verbose=False).fit(FRAME)
    history = kd.Distiller(make_cross(seed=5), first, loss=Hidden(), steps=1, verbose=False).fit(FRAME).history_
    assert history["Hidden()"].notna().all()


def test_attention_that_cannot_be_heard_is_an_error_and_never_nothing() -> None:
    torch.manual_seed(0)
    config = transformers.DebertaV2Config(**SIZES, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=1, relative_attention=True, pos_att_type=["p2c", "c2p"])
    ranker = kd.CrossEncoder(transformers.DebertaV2ForSequenceClassification(config), make_tokenizer(), device="cpu")
    refused(ranker.clone(), ranker, Attention(), r"do not say what their attention reads .* Use Hidden\(\) and Embedding\(\) alone", MissingSignal)
    history = kd.Distiller(ranker.clone(), ranker, loss=Hidden() + Embedding(), steps=1, verbose=False).fit(FRAME).history_
    assert history[["Hidden()", "Embedding()"]].notna().all(axis=None)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("make_ranker", [make_cross, make_dot])
def test_layers_are_learned_from_and_the_student_comes_nearer(make_ranker) -> None:
    teacher, student = make_ranker(seed=1, layers=4), make_ranker(seed=2, layers=2)
    loss = Attention() + Hidden() + Embedding() + Relations()
    distiller = kd.Distiller(student, teacher, loss=loss, steps=40, learning_rate=3e-3, batch_size=6, dropout=0, verbose=False)
    history = distiller.fit(FRAME).history_
    for term in ("Attention()", "Hidden()", "Embedding()", "Relations()"):
        assert history[term].iloc[-1] < history[term].iloc[0]
    assert history["Hidden()"].iloc[-1] < 0.8 * history["Hidden()"].iloc[0]


def test_texts_alone_are_read_alike_by_rankers_that_share_a_tokenizer() -> None:
    cross, dot = make_cross(seed=1), make_dot(seed=1)
    dot.model.encoder.load_state_dict(cross.model.bert.state_dict())
    wanted = {"hidden": frozenset({0, 1}), "embedding": frozenset()}
    (a,), (b,) = cross.read(TEXTS, wanted).layers, dot.read(TEXTS, wanted).layers
    assert cross.architecture(alone=True).reads == dot.architecture(alone=True).reads
    assert torch.allclose(a.hidden[1], b.hidden[1], atol=1e-6)
    ids = cross.tokenizer(list(TEXTS.texts), return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = cross.model.bert(**ids, output_hidden_states=True).hidden_states
    order = np.argsort(-ids["attention_mask"].sum(1).numpy(), kind="stable")
    assert torch.allclose((a.hidden[1] - expected[2][order]) * a.mask.unsqueeze(-1), torch.zeros(()), atol=1e-5)
    assert torch.allclose((a.embedding - expected[0][order]) * a.mask.unsqueeze(-1), torch.zeros(()), atol=1e-5)
