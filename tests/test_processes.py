"""Two processes train one student: their gradients are synchronised, and both end with the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import json, os, sys
sys.path.insert(0, {tests!r})
import accelerate
from conftest import make_cross, make_dot, make_frame, make_qrels
import pyterrier_kd as kd
frame = make_frame(queries=16, texts=4)
ranker, teacher = {student}, make_dot(5)
stage = kd.Stage({loss}, sampler=kd.Sampler(texts=3), steps=10, batch_size=4, learning_rate=3e-3, dropout=0)
distiller = kd.Distiller(ranker, teacher, strategy=stage, validate_every=5, verbose=False, scores=False, checkpoint={folder!r}).fit(frame, make_qrels(frame))
state = accelerate.PartialState()
with open({folder!r} + f"/out{{state.process_index}}", "w") as out:
    json.dump([state.num_processes, distiller.student_.fingerprint(), distiller.history_["loss"].tolist()], out)
"""


@pytest.mark.parametrize(("student", "loss"), [("make_cross(1)", "kd.losses.MSE()"), ("make_dot(1)", "kd.losses.MarginMSE(in_batch=True)")])
def test_two_processes_end_with_the_same_weights(student, loss, tmp_path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), folder=str(tmp_path), student=student, loss=loss))
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script)]
    found = []
    for _ in range(2):          # the second time, both resume from the finished checkpoint
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found += [json.loads((tmp_path / f"out{i}").read_text()) for i in range(2)]
    assert {f[0] for f in found} == {2}
    assert len({f[1] for f in found}) == 1
    assert found[0][2][1] < found[0][2][0]
