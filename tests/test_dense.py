"""``BertDot`` in pyterrier_dr's index: every retriever, scorer and graph walk gives what comparing with all documents gives."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from conftest import WORDS, make_dot

import pyterrier_kd as kd

dr = pytest.importorskip("pyterrier_dr", reason="pip install 'pyterrier-kd[dense]'")
pytest.importorskip("faiss", reason="pip install 'pyterrier-kd[dense]'")
pytestmark = pytest.mark.filterwarnings("ignore:The given:UserWarning")       # pyterrier_dr makes tensors of what is only read
TOPICS = pd.DataFrame({"qid": ["1", "2", "3"], "query": ["find tea", "how to cook rice", "list the file"]})


@pytest.fixture(scope="module")
def dense() -> kd.BertDot:
    return make_dot()


@pytest.fixture(scope="module")
def documents() -> list[dict]:
    rng = np.random.default_rng(0)
    return [{"docno": f"d{i}", "text": " ".join(rng.choice(WORDS, 6))} for i in range(200)]


@pytest.fixture(scope="module")
def index(dense: kd.BertDot, documents: list[dict], tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("dense") / "x.flex"
    (dense >> dr.FlexIndex(str(folder), verbose=False)).index(documents)
    return dr.FlexIndex(str(folder), verbose=False)


@pytest.fixture(scope="module")
def best(dense: kd.BertDot, documents: list[dict]) -> pd.DataFrame:
    """Every document, scored by its text."""
    return dense(TOPICS.merge(pd.DataFrame(documents), how="cross")).sort_values(["qid", "rank"])


def assert_same(found: pd.DataFrame, best: pd.DataFrame, depth: int = 10) -> None:
    """Whether a ranking is that of all documents, with the same scores."""
    expected = best.groupby("qid").head(depth)
    found = found.sort_values(["qid", "score"], ascending=[True, False])
    assert found["docno"].tolist() == expected["docno"].tolist()
    assert np.allclose(found["score"], expected["score"], rtol=1e-5)


RETRIEVERS: dict[str, Callable] = {
    "default": lambda index: index.retriever() % 10,
    "numpy": lambda index: index.np_retriever(num_results=10),
    "torch": lambda index: index.torch_retriever(num_results=10, device="cpu"),
    "flat": lambda index: index.faiss_flat_retriever() % 10,
    "HNSW": lambda index: index.faiss_hnsw_retriever(neighbours=16, ef_search=200, num_results=10),
    "HNSW, read again": lambda index: dr.FlexIndex(str(index.index_path), verbose=False).faiss_hnsw_retriever(neighbours=16, ef_search=200, num_results=10),
    "IVF": lambda index: index.faiss_ivf_retriever(n_list=4, n_probe=4, num_results=10),
}


@pytest.mark.parametrize("name", RETRIEVERS)
def test_retrievers(name: str, dense: kd.BertDot, index: object, best: pd.DataFrame) -> None:
    assert_same((dense >> RETRIEVERS[name](index))(TOPICS), best)
    assert_same((dense.query_encoder() >> RETRIEVERS[name](index))(TOPICS), best)


@pytest.mark.parametrize("scorer", ["scorer", "np_scorer", "torch_scorer", "vec_loader"])
def test_scorers_need_no_text(scorer: str, dense: kd.BertDot, index: object, best: pd.DataFrame) -> None:
    candidates = best[["qid", "query", "docno"]].sample(frac=0.3, random_state=0)
    settings = {"device": "cpu"} if scorer == "torch_scorer" else {}
    pipeline = dense.query_encoder() >> getattr(index, scorer)(**settings)
    if scorer == "vec_loader":
        pipeline = pipeline >> dense
    found = pipeline(candidates).merge(best, on=["qid", "docno"])
    assert len(found) == len(candidates)
    assert np.allclose(found["score_x"], found["score_y"], rtol=1e-5)


WALKS: dict[str, Callable] = {
    "LADR": lambda index: index.ladr(k=16, hops=3, num_results=10),
    "adaptive LADR": lambda index: index.ladr_adaptive(k=16, depth=60, num_results=10),
    "GAR": lambda index: index.gar(k=16, num_results=200) % 10,
}


@pytest.mark.parametrize("name", WALKS)
def test_walks_over_the_graph_of_documents(name: str, dense: kd.BertDot, index: object, best: pd.DataFrame) -> None:
    first = pt.Transformer.from_df(best.groupby("qid").tail(40)[["qid", "query", "docno", "score"]])     # the worst documents: the walk must find the others
    walk = first >> dense.query_encoder() >> WALKS[name](index)
    assert_same(walk(TOPICS).groupby("qid").head(10), best)
