"""Signs of GPUs, on machines that are made of a few files, and what torch is asked."""

import os

import pytest
import torch

from pipeline.hardware import Gpu, ask_gpu, ask_torch, names


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Makes a machine with these files, and with an nvidia-smi if there is a script of it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(*files: str, smi: str | None = None) -> Gpu:
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(KERNEL if name.endswith("version") else "")
        programs = tmp_path / "bin"
        programs.mkdir()
        if smi is not None:
            (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
            (programs / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(programs))
        return ask_gpu(tmp_path)

    return make


KERNEL = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)
GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)
"""
VERSION = "proc/driver/nvidia/version"


def test_a_machine_without_a_gpu(system):
    assert system() == Gpu(False, None, "")


def test_a_gpu_and_its_driver(system):
    assert system("dev/nvidia3", "dev/nvidiactl", VERSION) == Gpu(True, "580.65.06")


def test_a_gpu_without_a_word_of_its_driver(system):
    assert system("dev/nvidiactl").given


def test_the_driver_of_the_host_alone_is_no_gpu(system):
    found = system(VERSION)
    assert not found.given and "docker run --gpus all" in found.why


@pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")
def test_a_driver_that_only_nvidia_smi_knows(system):
    assert system("dev/nvidia0", smi="echo 535.104.05; echo 535.104.05") == Gpu(True, "535.104.05")


@pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")
def test_an_nvidia_smi_that_was_left_over_is_no_gpu(system):
    found = system(smi="echo 'No devices were found (library 535.18)'; exit 6")
    assert not found.given and found.driver is None
    assert found.why == "nvidia-smi: No devices were found (library 535.18)"


@pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")
def test_a_gpu_of_windows_that_does_not_answer_is_a_gpu(system):
    assert system("dev/dxg", smi="exit 1").given


def test_a_gpu_of_windows_that_is_not_nvidias_is_none(system):
    assert not system("dev/dxg").given


@pytest.mark.parametrize(("value", "given"), [("", False), ("-1", False), ("0", True)])
def test_a_gpu_that_the_environment_hides_is_none(system, monkeypatch, value, given):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert system("dev/nvidia0", VERSION).given == given


def test_which_devices_are_looked_at():
    assert names("auto", 2, False) == names("cuda", 2, False) == ["cuda:0", "cuda:1"]
    assert names("auto", 0, True) == ["mps"] and names("auto", 0, False) == ["cpu"]
    assert names("cuda:1", 2, False) == ["cuda:1"] and names("cpu", 2, False) == ["cpu"]
    assert names("cuda:2", 2, False) == names("cuda", 0, True) == names("mps", 2, False) == []


def test_this_machine_is_asked_without_starting_cuda_for_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "init", lambda: pytest.fail("CUDA was started"))
    found = ask_torch("cpu")
    assert found.version == torch.__version__ and [one.device for one in found.devices] == ["cpu"]
