"""Can this machine train? Judged for GPUs that are not here, tried on the CPU that is."""

import errno
import json
import os
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from commands import pipeline

from pipeline import preflight as looks
from pipeline.hardware import Device, Gpu, Torch

CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
Usage = namedtuple("Usage", "total used free")


def gpu_torch(name: str = "NVIDIA H200", capability=(9, 0), archs=CU130, gpus: int = 1) -> Torch:
    """A torch that sees GPUs of one kind."""
    devices = tuple(Device(f"cuda:{n}", name, capability, 140 << 30) for n in range(gpus))
    return Torch("2.13.0+cu130", "13.0", archs, devices, gpus)


def blind_torch(cuda: str | None) -> Torch:
    """A torch that sees no GPU."""
    return Torch("2.13.0", cuda, CU130, (Device("cpu", "x86_64"),), 0, "CUDA unknown error")


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def one_gpu(monkeypatch):
    """A machine with an H200 that computes as the CPU does."""
    monkeypatch.setattr(looks, "ask_torch", lambda device: gpu_torch())
    monkeypatch.setattr(looks, "ask_gpu", lambda: Gpu(True, "580.65.06"))
    monkeypatch.setattr(looks, "compute", lambda device, left, right: left @ right + left)
    monkeypatch.setattr(looks, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


# architectures


@pytest.mark.parametrize(
    ("name", "capability", "on_cu130", "on_cu126"),
    [
        ("GTX 1080", (6, 1), False, True),
        ("P100", (6, 0), False, True),
        ("V100", (7, 0), False, True),
        ("T4", (7, 5), True, True),
        ("A100", (8, 0), True, True),
        ("RTX 3060", (8, 6), True, True),
        ("RTX 4090", (8, 9), True, True),
        ("H200", (9, 0), True, True),
        ("B200", (10, 0), True, False),
        ("RTX 5090", (12, 0), True, False),
        ("K80", (3, 7), False, False),
    ],
)
def test_which_torch_runs_on_which_gpu(name, capability, on_cu130, on_cu126):
    for archs, fits in ((CU130, on_cu130), (CU126, on_cu126)):
        found = gpu_torch(name, capability, archs)
        check = looks.judge_architecture(found.devices[0], found)
        assert check.state == ("ok" if fits else "FAIL"), check
        assert f"cuda:0 ({name}, 140.0 GiB) is sm_{capability[0]}{capability[1]}" in check.words
        assert " ".join(archs) in check.words


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_80", (8, 6), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_120a", (12, 1), False),
        ("compute_90a", (10, 0), False),
        ("sm_100f", (10, 3), True),
        ("sm_103f", (10, 0), False),
        ("compute_100f", (12, 0), False),
        ("compute_80", (12, 0), True),
        ("compute_90", (8, 9), False),
        ("gfx90a", (9, 0), False),
    ],
)
def test_what_one_architecture_runs_on(arch, capability, runs):
    assert looks.runs_on(arch, capability) == runs


def test_the_fix_is_a_torch_that_has_the_gpu():
    def words(capability, archs, gpus=1):
        found = gpu_torch("GPU", capability, archs, gpus)
        return looks.judge_architecture(found.devices[0], found).words

    assert "TORCH_VARIANT=cu126, or pip install 'torch==2.13.0'" in words((6, 0), CU130)
    assert "TORCH_VARIANT=cu130, or pip install --upgrade torch" in words((12, 0), CU126)
    assert "TORCH_VARIANT=cu126" in words((7, 0), CU130)
    assert "Use --device cpu" in words((3, 7), CU126)
    assert "CUDA_VISIBLE_DEVICES" not in words((6, 0), CU130)
    assert words((6, 0), CU130, gpus=2).endswith("with --device or CUDA_VISIBLE_DEVICES")


# drivers


@pytest.mark.parametrize(
    ("cuda", "driver", "answers"),
    [
        (
            "13.0",
            "535.104.05",
            ["535.104.05, too old for torch's CUDA 13.0, which needs 580", "126"],
        ),
        ("13.2", "470.57", ["470.57, too old for torch's CUDA 13.2", "install a newer driver"]),
        ("12.6", "515.1", ["515.1, too old for torch's CUDA 12.6, which needs 525"]),
        ("12.6", "525.60.13", ["torch cannot use it: CUDA unknown error"]),
        ("13.0", "580.65.06", ["torch cannot use it: CUDA unknown error"]),
        ("13.0", None, ["(version unknown), but torch cannot use it: CUDA unknown error"]),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_a_failure(cuda, driver, answers):
    check = looks.judge_driver(blind_torch(cuda), Gpu(True, driver), asked=False)
    assert check.state == "FAIL"
    assert all(answer in check.words for answer in answers)
    if driver == "470.57" or cuda == "12.6":  # those have nothing from cu126
        assert "cu126" not in check.words


def test_a_torch_for_the_cpu_beside_a_gpu_is_noted():
    check = looks.judge_driver(blind_torch(None), Gpu(True, "580.65.06"), asked=False)
    assert check.state == "note" and "TORCH_VARIANT=cu130" in check.words
    assert looks.judge_driver(blind_torch(None), Gpu(True, "580.65.06"), asked=True).state == "FAIL"


@pytest.mark.parametrize(("asked", "state"), [(False, "note"), (True, "FAIL")])
def test_no_gpu_is_a_failure_only_if_one_was_asked_for(asked, state):
    for cuda in (None, "13.0"):
        check = looks.judge_driver(blind_torch(cuda), Gpu(), asked)
        assert check.state == state and check.words.startswith("no GPU here: ")
        assert ("computing on the CPU" in check.words) != asked


def test_a_driver_that_works_though_it_is_old_is_noted():
    assert looks.judge_driver(gpu_torch(), Gpu(True, "535.1"), asked=True).state == "note"
    assert looks.judge_driver(gpu_torch(), Gpu(True, "580.1"), asked=True).state == "ok"
    assert looks.judge_driver(gpu_torch(), Gpu(False, None), asked=True).state == "ok"


# devices


def test_a_device_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    told = pipeline("preflight", "--quiet", "--device", "mps", "--store", tmp_path)
    assert told.code == 1 and told.out.startswith("FAIL device: --device mps: torch ")


def test_a_gpu_is_looked_at_from_end_to_end(one_gpu, tmp_path):
    told = pipeline("preflight", "--device", "cuda", "--store", tmp_path)
    assert told.code == 0, told.out
    assert told.out.splitlines()[:5] == [
        "ok   torch: 2.13.0+cu130, built for CUDA 13.0",
        "ok   driver: a GPU with NVIDIA driver 580.65.06",
        f"ok   architecture: cuda:0 (NVIDIA H200, 140.0 GiB) is sm_90; torch has {' '.join(CU130)}",
        "ok   kernel: cuda:0 (NVIDIA H200) computes, and rightly",
        "ok   precision: cuda:0 computes in bfloat16, unless --precision differs",
    ]


def test_json_is_for_programs(one_gpu, tmp_path):
    told = pipeline("preflight", "--json", "--store", tmp_path)
    found = json.loads(told.out)
    assert told.code == 0 and found["ok"]
    assert set(found) == {"ok", "checks", "devices", "torch", "cuda", "archs"}
    assert set(found["checks"][0]) == {"name", "state", "words"}
    device = {"device": "cuda:0", "name": "NVIDIA H200", "capability": [9, 0]}
    assert found["devices"] == [{**device, "memory": 140 << 30}]
    assert found["torch"] == "2.13.0+cu130" and found["archs"] == list(CU130)


def test_each_of_several_gpus_is_looked_at(one_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "ask_torch", lambda device: gpu_torch("P100", (6, 0), gpus=2))
    found = json.loads(pipeline("preflight", "--json", "--store", tmp_path).out)
    failed = [check["words"] for check in found["checks"] if check["state"] == "FAIL"]
    assert [words.split()[0] for words in failed] == ["cuda:0", "cuda:1"]


# kernels


def test_wrong_numbers_are_a_failure(tmp_path, monkeypatch):
    def off_by_one_once(device, left, right):
        product = left @ right + left
        product[17, 4] += 1
        return product

    monkeypatch.setattr(looks, "compute", off_by_one_once)
    told = pipeline("preflight", "-q", "--device", "cpu", "--store", tmp_path)
    assert told.code == 1
    assert " computes wrongly: 1 of 65,536 numbers" in told.out


def test_numbers_that_are_none_are_wrong(monkeypatch):
    monkeypatch.setattr(looks, "compute", lambda device, left, right: left * float("nan"))
    assert looks.judge_kernel(Device("cpu", "x86_64")).state == "FAIL"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_numbers_rounded_on_the_way_in_are_right(kind, monkeypatch):
    """As TF32 does, and bfloat16 even more so."""

    def rounded(device, left, right):
        return left.to(kind).float() @ right.to(kind).float() + left

    monkeypatch.setattr(looks, "compute", rounded)
    assert looks.judge_kernel(Device("cpu", "x86_64")).state == "ok"


def test_a_kernel_that_torch_lacks_is_a_failure_with_the_fix(monkeypatch):
    def lacking(device, left, right):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    monkeypatch.setattr(looks, "compute", lacking)
    check = looks.judge_kernel(Device("cuda:0", "P100", (6, 0)))
    assert check.state == "FAIL" and "Compile" not in check.words
    assert "cannot compute: CUDA error: no kernel image is available. It is sm_60" in check.words
    assert "TORCH_VARIANT=cu126" in check.words


# places


def test_a_store_is_left_as_it_was(finished, tmp_path):
    before = tree(finished)
    assert pipeline("preflight", "--device", "cpu", "--store", finished).code == 0
    assert tree(finished) == before
    assert pipeline("preflight", "--device", "cpu", "--store", tmp_path / "a" / "b").code == 0
    assert tree(tmp_path) == []


def test_the_cache_of_a_remote_store_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("IGNITE_CACHE", str(tmp_path / "cache"))
    told = pipeline("preflight", "--device", "cpu", "--store", "s3://bucket/runs")
    assert told.code == 0 and f"can write to {tmp_path / 'cache'}" in told.out
    assert tree(tmp_path) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc here")
def test_a_store_that_cannot_be_written_is_a_failure_with_the_fix(tmp_path):
    told = pipeline("preflight", "-q", "--device", "cpu", "--store", "/proc/store")
    (line,) = (line for line in told.out.splitlines() if line.startswith("FAIL store"))
    assert told.code == 1 and "cannot write to /proc (" in line
    ours = os.getuid() == os.stat("/proc").st_uid
    assert ("make it writable" if ours else "docker run --user $(id -u):$(id -g)") in line
    assert "another --store" in line


def test_a_folder_of_another_user_is_to_be_given_away(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    words = looks._refused(tmp_path, "Permission denied", "another --store")
    owner = tmp_path.stat().st_uid
    assert f"belongs to uid {owner}; this process is uid 4321" in words
    assert "sudo chown -R 4321:" in words and "docker run --user" in words


def test_a_part_of_the_store_that_belongs_to_another_is_a_failure(tmp_path, monkeypatch):
    (tmp_path / "log").mkdir()
    (tmp_path / "tmp").mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: "log" not in str(path) and access(path, mode)
    )
    check = looks.judge_writing("store", "the store", tmp_path, "another --store", links=True)
    assert (
        check.state == "FAIL" and f"cannot write to {tmp_path / 'log'} (Permission" in check.words
    )


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_directory_of_another_user_is_a_failure(tmp_path):
    tmp_path.chmod(0o500)
    try:
        told = pipeline("preflight", "-q", "--device", "cpu", "--store", tmp_path / "store")
    finally:
        tmp_path.chmod(0o700)
    assert told.code == 1 and f"cannot write to {tmp_path} (Permission denied)" in told.out


def test_a_disk_without_hard_links_is_no_place_for_a_store(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    told = pipeline("preflight", "-q", "--device", "cpu", "--store", tmp_path)
    assert told.code == 1 and f"the file system of {tmp_path} has no hard links" in told.out
    assert tree(tmp_path) == []


def test_a_store_that_is_a_file_is_a_failure(tmp_path):
    (tmp_path / "file").touch()
    told = pipeline("preflight", "-q", "--device", "cpu", "--store", tmp_path / "file")
    assert told.code == 1 and f"FAIL store: --store {tmp_path / 'file'} is a file" in told.out
    told = pipeline("preflight", "-q", "--device", "cpu", "--store", tmp_path / "file" / "store")
    assert told.code == 1 and f"cannot write to {tmp_path / 'file'} (Not a directory)" in told.out


@pytest.mark.parametrize(
    ("mib", "state", "code"), [(200, "FAIL", 1), (300, "note", 0), (6000, "ok", 0)]
)
def test_little_space(tmp_path, monkeypatch, mib, state, code):
    monkeypatch.setattr(looks.shutil, "disk_usage", lambda path: Usage(1 << 40, 0, mib << 20))
    told = pipeline("preflight", "--device", "cpu", "--store", tmp_path / "store")
    (line,) = (line for line in told.out.splitlines() if " disk: " in line)
    assert told.code == code and line.split()[0] == state


def test_little_shared_memory_is_noted_where_several_gpus_want_it():
    assert looks.judge_shared(64 << 20, 1).state == "ok"
    assert looks.judge_shared(2 << 30, 8).state == "ok"
    check = looks.judge_shared(64 << 20, 8)
    assert check.state == "note" and "64.0 MiB" in check.words and "--shm-size 1g" in check.words


# the verb


def test_quiet_says_only_what_matters(tmp_path, monkeypatch):
    assert pipeline("preflight", "-q", "--device", "cpu", "--store", tmp_path).out == ""
    monkeypatch.setattr(looks, "ask_torch", lambda device: blind_torch("13.0"))
    monkeypatch.setattr(looks, "ask_gpu", lambda: Gpu())
    told = pipeline("preflight", "-q", "--store", tmp_path)
    assert told.code == 0 and told.out == "note driver: no GPU here: computing on the CPU\n"
    assert pipeline("preflight", "-q", "--device", "cuda", "--store", tmp_path).code == 1


def test_a_check_that_breaks_keeps_no_other_from_being_made(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyError("surprise")

    for name in ("judge_kernel", "judge_space", "ask_gpu"):
        monkeypatch.setattr(looks, name, broken)
    monkeypatch.setattr(looks, "ask_torch", lambda device: blind_torch("13.0"))
    told = pipeline("preflight", "--store", tmp_path)
    assert told.code == 1
    failed = [line for line in told.out.splitlines() if line.startswith("FAIL")]
    assert failed == [f"FAIL {name}: KeyError: 'surprise'" for name in ("driver", "kernel", "disk")]
    assert "ok   precision: " in told.out and "ok   store: " in told.out


def test_a_machine_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    told = pipeline("preflight", "--json", "--store", tmp_path)
    found = json.loads(told.out)
    assert told.code == 1 and found["torch"] is None and found["devices"] == []
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert states["torch"] == "FAIL" and states["store"] == "ok"


def test_a_device_that_there_is_nowhere_is_a_mistake(tmp_path):
    told = pipeline("preflight", "--device", "tpu", "--store", tmp_path)
    assert told.code == 2 and "--device tpu: it must be auto, cpu, cuda" in told.err


def test_a_run_is_refused_before_its_first_step_if_torch_lacks_the_chip(monkeypatch):
    monkeypatch.setattr(looks, "ask_torch", lambda name: gpu_torch("Tesla P100", (6, 0), CU130))
    with pytest.raises(ValueError, match=r"Tesla P100.* is sm_60.*/whl/cu126"):
        looks.require_code("cuda")
    monkeypatch.setattr(looks, "ask_torch", lambda name: gpu_torch())
    looks.require_code("cuda")
    looks.require_code("cpu")
