from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.cluster import Cluster, expand_counts, expand_nodes, find_cluster, from_slurm, from_tf_config
from shared.runtime import RuntimeConfig

ROOT = Path(__file__).parents[2]


def tf_config(cluster: Any, kind: str = "worker", index: Any = 0) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


PAIR = tf_config({"worker": ["a:1", "b:2"]}, index=1)
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "3",
    "SLURM_JOB_NODELIST": "node[08-09]",
    "SLURM_TASKS_PER_NODE": "2,1",
    "SLURM_JOB_ID": "12",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("a[1-3]", ["a1", "a2", "a3"]),
        ("a[08-10,12]", ["a08", "a09", "a10", "a12"]),
        ("a[1-2,07],b", ["a1", "a2", "a07", "b"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("gpu-[3],cpu-1.site.org", ["gpu-3", "cpu-1.site.org"]),
        ("a[1-2]-ib", ["a1-ib", "a2-ib"]),
    ],
)
def test_lists_of_nodes(text, expected):
    assert expand_nodes(text) == expected


@pytest.mark.parametrize("text", ["", "a[1-2", "a]1", "a[]", "a[x]", "a[3-1]", "a[1-2-3]", "a[[1]]"])
def test_malformed_lists_of_nodes(text):
    with pytest.raises(ValueError, match=r"nodes"):
        expand_nodes(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("1", [1]), ("2(x3),1", [2, 2, 2, 1]), ("4,2(x2)", [4, 2, 2]), ("1, 2", [1, 2])]
)
def test_counts_by_node(text, expected):
    assert expand_counts(text) == expected


@pytest.mark.parametrize("text", ["", "x", "2(3)", "2(x)", "-1"])
def test_malformed_counts(text):
    with pytest.raises(ValueError, match=r"written like 2\(x3\),1"):
        expand_counts(text)


@pytest.mark.parametrize(
    ("workers", "index", "environment", "expected"),
    [
        ("off", -1, {"TF_CONFIG": PAIR}, None),
        ("auto", -1, {}, None),
        ("auto", -1, {"TF_CONFIG": ""}, None),
        ("auto", -1, {"TF_CONFIG": "{}"}, None),
        ("auto", -1, {"TF_CONFIG": tf_config({"worker": ["a:1"]})}, None),
        ("auto", -1, {"TF_CONFIG": PAIR}, (("a:1", "b:2"), 1)),
        ("tf_config", -1, {"TF_CONFIG": PAIR, "TRIPTYCH_WORKERS": "c:1,d:1"}, (("a:1", "b:2"), 1)),
        ("a:1,b:2", 1, {}, (("a:1", "b:2"), 1)),
        (" a:1 , b:2 ", 0, {"TF_CONFIG": PAIR}, (("a:1", "b:2"), 0)),
        ("a:1", -1, {}, None),
        ("[::1]:1,[::2]:1", 1, {}, (("[::1]:1", "[::2]:1"), 1)),
        ("a:1,b:2", -1, {"TRIPTYCH_WORKER_INDEX": "1", "SLURM_PROCID": "0"}, (("a:1", "b:2"), 1)),
        ("a:1,b:2", -1, {"SLURM_PROCID": "1"}, (("a:1", "b:2"), 1)),
        ("j-{index}.s:22*3", -1, {"JOB_COMPLETION_INDEX": "2"}, (("j-0.s:22", "j-1.s:22", "j-2.s:22"), 2)),
        ("auto", -1, {"TRIPTYCH_WORKERS": "j-{index}:22*2", "JOB_COMPLETION_INDEX": "1"}, (("j-0:22", "j-1:22"), 1)),
        ("kubernetes", -1, {"TRIPTYCH_WORKERS": "j-{index}:22*2", "JOB_COMPLETION_INDEX": "0"},
         (("j-0:22", "j-1:22"), 0)),
        ("auto", -1, STEP, (("node08:20768", "node08:20769", "node09:20768"), 2)),
        # A batch script without srun, and a step of one task, are one process.
        ("auto", -1, {k: v for k, v in STEP.items() if k != "SLURM_STEP_ID"}, None),
        ("auto", -1, STEP | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ("slurm", -1, STEP | {"TRIPTYCH_WORKER_PORT": "5000"}, (("node08:5000", "node08:5001", "node09:5000"), 2)),
        ("slurm", -1, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "a[1-2]"},
         (("a1:20000", "a2:20000"), 1)),
        ("slurm", -1, STEP | {"SLURM_STEP_NODELIST": "x[1-3]", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"},
         (("x1:20768", "x2:20768", "x3:20768"), 2)),
    ],
)  # fmt: skip
def test_clusters_are_found(workers, index, environment, expected):
    cluster = find_cluster(workers, index, environment)
    assert (cluster and (cluster.addresses, cluster.index)) == expected


@pytest.mark.parametrize(
    ("workers", "index", "environment", "message"),
    [
        ("tf_config", -1, {}, "needs the environment variable TF_CONFIG"),
        ("kubernetes", -1, {"JOB_COMPLETION_INDEX": "0"}, "needs the environment variable TRIPTYCH_WORKERS"),
        ("slurm", -1, {}, "needs the environment variable SLURM_PROCID"),
        ("slurm", -1, {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "SLURM_JOB_NODELIST. Start it with srun"),
        ("slurm", -1, STEP | {"SLURM_TASKS_PER_NODE": "1(x2)"}, r"2 nodes and 3 tasks, but places \[1, 1\]"),
        ("slurm", -1, STEP | {"SLURM_PROCID": "3"}, "3 workers, numbered from 0; this one is said to be number 3"),
        ("a:1,b:2", -1, {}, r"2 workers are given .*\(--worker-index N\)"),
        ("a:1,b:2", 2, {}, "this one is said to be number 2"),
        ("a:1,b:2", -1, {"JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX must be a number from 0 on; it is 'x'"),
        ("a:1,b", 0, {}, "address is host:port; received 'b'"),
        ("a:1,b:99999", 0, {}, "received 'b:99999'"),
        ("a:1,:2", 0, {}, "received ':2'"),
        ("a:1,a:1", 0, {}, "Two workers have one address"),
        ("two", 0, {}, "received 'two'"),
        ("", 0, {}, "There are 0 workers"),
        ("j-{index}:22", 0, {}, "ends with the number of workers"),
        ("local:2", -1, {}, "only the scripts' `train` can do"),
        ("auto", -1, {"TF_CONFIG": "nonsense"}, "TF_CONFIG is no JSON"),
        ("auto", -1, {"TF_CONFIG": "[]"}, "no 'cluster'"),
        ("auto", -1, {"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, "no 'task'"),
        ("auto", -1, {"TF_CONFIG": tf_config({"worker": ["a:1", "b:1"], "ps": ["c:1"]})}, "no parameter servers"),
        ("auto", -1, {"TF_CONFIG": tf_config({"worker": ["a:1"], "evaluator": ["b:1"]}, "evaluator")},
         "this process is 'evaluator'"),
        ("auto", -1, {"TF_CONFIG": tf_config({"worker": ["a:1", "b:1"]}, index=2)}, "worker 2; its cluster has 2"),
        ("auto", -1, {"TF_CONFIG": tf_config({"worker": ["a:1", "b:1"]}, index="0")}, "worker 0; its cluster has 2"),
        ("auto", -1, {"TF_CONFIG": tf_config({"worker": "a:1"})}, "must have a list of addresses"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(workers, index, environment, message):
    with pytest.raises(ValueError, match=message):
        find_cluster(workers, index, environment)


def test_a_chief_is_worker_0():
    jobs = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    assert from_tf_config(tf_config(jobs, "chief")) == Cluster(("a:1", "b:1", "c:1"), 0, "TF_CONFIG")
    assert from_tf_config(tf_config(jobs, "worker", 1)).index == 2


def test_jobs_on_one_node_have_ports_of_their_own():
    ports = {from_slurm(STEP | {"SLURM_JOB_ID": str(job)}).addresses[0] for job in range(1000, 1100)}
    assert len(ports) == 100


def test_a_cluster_says_who_it_is():
    assert str(Cluster(("a:1", "b:2"), 1, "TF_CONFIG")) == "worker 1 of 2 (b:2, from TF_CONFIG)"


def test_wrong_workers_end_a_script_in_one_line(tmp_path):
    arguments = ["train", "--train", str(tmp_path), "--output", str(tmp_path / "model"), "--workers", "a:1,b:2"]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.jpg").write_bytes(b"x")
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "image_classification.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if line.startswith("error: 2 workers are given")]


def test_a_worker_refuses_devices_that_are_not_there(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", PAIR)
    with pytest.raises(ValueError, match=r"asks for 'gpu:7'; a worker on this machine has cpu"):
        RuntimeConfig(devices="gpu:7").apply()
