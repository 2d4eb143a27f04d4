"""Commands on a Dask cluster give the serial run's numbers, and pages leave out what ``[report]`` says."""

import pytest

from neuroenc import data
from neuroenc.study import Study, caption, read_config, run

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

CONFIG = """
[data]
name = "world"
options = { n_train = 80, n_test = 24, n_bank = 40, n_voxels = 30, n_subjects = 2 }
[evaluation]
scheme = "test"
permutations = 20
[features]
model = "world"
[captions]
space.model = "world"
bank.source = "unseen"
gate.kind = "none"
decoder = { kind = "retrieval", caption_bank = "unseen" }
grounding.enabled = false
stability = { folds = 2, bootstraps = 0, halves = 0, null_voxels = 5 }
"""
QUIET = {"progress": False, "say": lambda _: None}


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """Scores and captions of two small subjects, in one folder."""
    folder = tmp_path_factory.mktemp("serial")
    (folder / "my.toml").write_text(CONFIG)
    summaries = [work(read_config(folder / "my.toml"), folder / "out", **QUIET) for work in (run, caption)]
    return folder, summaries


def test_a_dask_client_gives_the_serial_numbers(serial, tmp_path):
    distributed = pytest.importorskip("distributed")
    folder, summaries = serial
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client, distributed.get_task_stream(client) as stream:
        for work, alone in zip((run, caption), summaries):
            found = work(read_config(folder / "my.toml"), tmp_path / "out", client=client, **QUIET)
            assert {k: v for k, v in found.items() if k != "seconds"} == {
                k: pytest.approx(v, abs=1e-6) for k, v in alone.items() if k != "seconds"
            }
    # The fits ran there: one of each subject on the features of each command.
    assert len({task["worker"] for task in stream.data}) == 2
    assert len(stream.data) == 4
    both = [data.load(place / "out" / "report" / "scores.nc")["r"].values for place in (folder, tmp_path)]
    assert both[0] == pytest.approx(both[1], abs=1e-6)


def test_the_report_leaves_out_what_the_config_says(serial):
    folder, _ = serial
    whole = Study(read_config(folder / "my.toml"), folder / "out", progress=False).until("score").report().read_text()
    assert all(f'tab-name">{name}' in whole for name in ("Accuracy", "Captions"))
    less = read_config(folder / "my.toml", ['report.without=["captions", "maps"]'])
    page = Study(less, folder / "out", progress=False).until("score").report().read_text()
    assert 'tab-name">Captions' not in page
    assert 'class=" maps"' in whole
    assert 'class=" maps"' not in page
