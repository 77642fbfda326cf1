"""Run by PyLate's own environment (see test_peers.py): makes a ColBERT of PyLate's from a BERT's folder, saves it, and prints its scores.

python pylate_scores.py BERT_FOLDER OUT_FOLDER PAIRS_JSON SETTINGS_JSON
"""

import json
import sys

from pylate import models, scores

bert, out, pairs, settings = sys.argv[1:]
model = models.ColBERT(model_name_or_path=bert, embedding_size=16, device="cpu", **json.loads(settings))
model.save_pretrained(out)
queries, texts = zip(*json.loads(pairs), strict=True)
encoded = [model.encode(list(side), is_query=is_query, convert_to_tensor=True) for side, is_query in ((queries, True), (texts, False))]
sys.stdout.write(json.dumps([float(scores.colbert_scores(q[None], t[None])[0, 0]) for q, t in zip(*encoded, strict=True)]) + "\n")
