"""What readers of pods are told: logs, manifests, lists, images in use."""

import json
import re

import pytest

from support.secrun import Secrun

RELAXED = ("--pull=never", "--insecure-options=image")


def test_a_manifest_names_variables_but_holds_no_values(secrun: Secrun):
    uuid = secrun("prepare", "-e", "TOKEN=hunter2", *RELAXED, secrun.image, "--", "true").out.strip()
    text = secrun("cat-manifest", uuid).out
    (app,) = json.loads(text)["apps"]
    assert "TOKEN" in app["env_names"]
    assert "hunter2" not in text
    assert app["capabilities"] == sorted(app["capabilities"])
    assert json.loads(text)["relaxations"] == ["insecure-options:image"]
    secrun("rm", uuid)


def test_an_image_that_a_pod_needs_cannot_be_removed(secrun: Secrun):
    uuid = secrun("prepare", *RELAXED, secrun.image, "--", "true").out.strip()
    refused = secrun("image", "rm", secrun.image, code=None)
    assert refused.code != 0
    assert "pod" in refused.err
    secrun("run-prepared", "--rm", uuid)


@pytest.mark.parametrize("words", [("--full",), ("--quiet",), ("--no-legend",), ()])
def test_lists_of_pods_name_each_pod_once(secrun: Secrun, words):
    uuid = secrun("prepare", *RELAXED, secrun.image, "--", "true").out.strip()
    out = secrun("list", *words).out
    assert out.count(uuid[:8]) == 1
    assert ("UUID" in out) is (words in (("--full",), ()))
    secrun("rm", uuid)


def test_a_host_that_runs_pods_passes_the_doctor(secrun: Secrun):
    found = json.loads(secrun("doctor", "--format=json").out)
    assert [item for item in found["problems"] if item["fatal"]] == []


def test_the_doctor_takes_what_machines_need_for_a_note_unless_it_is_asked(secrun: Secrun):
    """No hardware virtualisation is to be had here."""
    notes = secrun("doctor").out
    assert "note --stage1=kvm: this processor shows neither vmx nor svm" in notes
    assert "FAIL this processor shows neither vmx nor svm" in secrun("doctor", "--stage1=kvm", code=125).out


def test_versions_are_told(secrun: Secrun):
    found = json.loads(secrun("version", "--format=json").out)
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["secrun"])
    assert re.match(r"\d+", found["systemd"])
    assert re.match(r"\d+\.\d+", found["crun"])
