"""Which pods are on networks, where the record of one cannot be read."""

import pytest

from secrun.errors import SecrunError
from secrun.network import state
from secrun.paths import Layout
from secrun.pod import networklook

UUID = "0a0a0a0a-1111-4111-8111-111111111111"


@pytest.fixture
def damaged(tmp_path):
    layout = Layout(root=tmp_path / "root", run_root=tmp_path / "run")
    pod = layout.root / "pods" / "run" / UUID
    pod.mkdir(parents=True)
    (pod / state.FILE_NAME).write_text("{")
    return layout


def test_whoever_only_looks_goes_on(damaged):
    assert list(networklook.members(damaged)) == []


def test_a_network_is_not_taken_for_free(damaged):
    with pytest.raises(SecrunError, match=r"network\.json"):
        list(networklook.members(damaged, whole=True))


def test_nothing_is_collected_that_a_pod_may_hold(damaged):
    (told,) = networklook.collect(damaged)
    assert told.startswith("nothing is collected on networks: ")
