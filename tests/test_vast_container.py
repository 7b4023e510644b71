"""A launch at a Vast.ai whose instances are containers of our image: ``pytest -m container``.

IGNITE_TEST_IMAGE    the project's own image
"""

import os
import time

import pytest
from commands import TOY, launch
from containers import no_engine
from fakes.vast import FakeVast
from fakes.vast_container import ContainerBox
from pipelines import digests, run, toy_engine
from servers import s3_environment

from pipeline.store.places import open_store

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(no_engine() is not None, reason=f"no Docker engine: {no_engine()}"),
]


def test_our_image_does_the_errand_and_destroys_itself(tmp_path, endpoint, corpus, monkeypatch):
    """The same tokens as outside; weights may differ, as another libm adds floats otherwise."""
    image = os.environ.get("IGNITE_TEST_IMAGE")
    if not image:
        pytest.skip("IGNITE_TEST_IMAGE names no image")
    ours = {"IGNITE_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path), "IGNITE_PACE": "0.1"}
    with FakeVast(tmp_path / "boxes", kind=ContainerBox) as fake:
        for name, value in {**s3_environment(endpoint), **ours, **fake.environment()}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        words = ["vast", "--store", "s3://runs/contained", "--data", corpus, *TOY, "-y"]
        words += ["--my-credentials", "--image", image, "--cuda", "12.8", "--detach"]
        said = launch(*words)
        assert said.code == 0, said.out + said.err + fake.boxes[0].printed()
        until = time.monotonic() + 180
        while fake.billing_now() and time.monotonic() < until:
            time.sleep(0.2)
        assert len(fake.boxes) == 1 and fake.billing_now() == 0, fake.boxes[0].printed()
        asked = fake.asked("DELETE", "/api/v0/instances/")
        assert {each.by for each in asked} == {str(fake.boxes[0].id)}  # nobody else was there
        there = toy_engine(tmp_path / "none", corpus)
        there.store = open_store("s3://runs/contained")
        found = list(digests(there).values())
    here = toy_engine(tmp_path / "here", corpus)
    run(here)
    assert found[:3] == list(digests(here).values())[:3]
