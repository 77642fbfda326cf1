"""Run by colbert-ai's own environment (see test_peers.py): reads a BERT or a ColBERT with colbert-ai, saves it where OUT_FOLDER is not empty, and prints its scores.

python colbert_ai_scores.py FOLDER OUT_FOLDER PAIRS_JSON SETTINGS_JSON
"""

import json
import sys

import torch
from colbert.infra import ColBERTConfig
from colbert.modeling.colbert import ColBERT, colbert_score
from colbert.modeling.tokenization import DocTokenizer, QueryTokenizer

folder, out, pairs, settings = sys.argv[1:]
ColBERT.loaded_extensions = True        # compiled ones, which scoring padded documents does not use
model = ColBERT(folder, ColBERTConfig(checkpoint=folder, **json.loads(settings)))
if out:
    model.save(out)
queries, texts = zip(*json.loads(pairs), strict=True)
with torch.no_grad():
    encoded = model.query(*QueryTokenizer(model.colbert_config, verbose=0).tensorize(list(queries)))
    documents, mask = model.doc(*DocTokenizer(model.colbert_config).tensorize(list(texts)), keep_dims="return_mask")
    scores = colbert_score(encoded, documents, mask, config=model.colbert_config)
sys.stdout.write("\n" + json.dumps(scores.tolist()) + "\n")
