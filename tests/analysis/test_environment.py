"""What the look at the environment makes a problem of, and what not."""

import shutil
import struct
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from dinox.analysis.environment import operators, storage
from dinox.analysis.environment.cuda_binaries import Architectures, read_architectures
from dinox.utils import software


def problems(section):
    return [(problem.what, problem.cure) for problem in section.problems]


def facts(section):
    return dict(section.facts)


# ----------------------------------------------------------------------------------------------------------- processors


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(operators, "_GPU_DEVICE", "/nowhere")
    monkeypatch.setattr(operators, "_DRIVER", "/nowhere")


def give_gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)


def test_a_machine_without_a_gpu_is_fine(no_gpu):
    section = operators.processors_section()
    assert facts(section)["GPU"].startswith("none") and not section.problems


def test_a_gpu_that_torch_cannot_use_is_a_problem(no_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(operators, "_GPU_DEVICE", str(tmp_path))
    ((what, cure),) = problems(operators.processors_section())
    assert what.startswith("there is a GPU, but this torch")
    monkeypatch.setattr(torch.version, "cuda", None)
    ((what, cure),) = problems(operators.processors_section())
    assert "built for the CPU only" in what and cure == "install a torch for CUDA"


@pytest.mark.parametrize(
    "flags, isa",
    [
        ({"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"}, "avx512"),
        ({"avx2", "fma", "avx512f"}, "avx2"),
        ({"avx2"}, "portable"),
    ],
)
def test_the_instruction_set_is_the_best_that_the_cpu_has(flags, isa):
    assert operators.cpu_isa({}, flags) == isa
    assert operators.cpu_isa({"DINOX_CPU_ISA": "portable"}, flags) == "portable (DINOX_CPU_ISA)"


# ------------------------------------------------------------------------------------------------------------ operators


@pytest.mark.parametrize(
    "reason, cure",
    [
        ("no compiled extension (_C*.so) in dinox", "install a C++ compiler and run `make setup`"),
        ("the extension is disabled by DINOX_DISABLE_EXTENSION", "unset DINOX_DISABLE_EXTENSION"),
        ("the extension _C.so does not load (undefined symbol: x)", "run `make setup` again"),
    ],
)
def test_the_slow_reference_on_the_cpu_is_a_problem_with_its_cure(no_gpu, monkeypatch, reason, cure):
    monkeypatch.setattr(operators, "load_extension", lambda: (None, reason))
    monkeypatch.setattr(operators, "why_reference", lambda device: reason)
    ((what, found),) = problems(operators.operators_section())  # none about CUDA: there is no GPU
    assert reason in what and cure in found


def test_the_slow_reference_on_a_gpu_is_a_problem(monkeypatch):
    give_gpu(monkeypatch, (9, 0))
    reason = "the extension _C.so was built without kernels for cuda"
    monkeypatch.setattr(operators, "why_reference", lambda device: reason if device == "cuda" else "")
    ((what, cure),) = problems(operators.operators_section())
    assert reason in what and "nvcc" in cure


@pytest.mark.parametrize("capability, served", [((8, 0), True), ((8, 9), True), ((7, 5), False), ((12, 0), True)])
def test_architectures_serve_newer_gpus_of_their_kind_and_by_ptx_all_newer_ones(monkeypatch, capability, served):
    compiled = Architectures(machine_code=(80, 90), ptx=(90,))
    assert compiled.serve(capability) == served
    assert str(compiled) == "8.0, 9.0, 9.0 as PTX"
    give_gpu(monkeypatch, capability)
    found = operators._not_served(compiled, [capability])
    assert [problem.cure for problem in found] == ([] if served else ['TORCH_CUDA_ARCH_LIST="7.5" make setup'])


def fat_binary(*entries):
    """A fat binary of (kind, architecture) entries with some bytes of code each."""
    code = b"\x7fcode..."
    packed = b"".join(
        struct.pack("<HHIQIIHHIIIQQQ", kind, 0x101, 64, len(code), 0, 0, 0, 0, arch, 0, 0, 0, 0, 0) + code
        for kind, arch in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(packed)) + packed


def test_architectures_are_read_from_a_library(tmp_path):
    library = tmp_path / "lib.so"
    library.write_bytes(b"ELF" + bytes(100) + fat_binary((2, 80), (1, 80)) + bytes(9) + fat_binary((2, 90), (2, 80)))
    assert read_architectures(library) == Architectures(machine_code=(80, 90), ptx=(80,))


@pytest.mark.parametrize("content", [b"nothing of the kind", b"x" + fat_binary((2, 80))[:20], fat_binary((7, 80))])
def test_other_files_have_none(tmp_path, content):
    library = tmp_path / "lib.so"
    library.write_bytes(content)
    assert str(read_architectures(library)) == "none"


# ------------------------------------------------------------------------------------------------------------- software


def test_optional_packages_say_what_they_are_for(monkeypatch):
    monkeypatch.setattr(software, "_version", lambda name: "1.0" if name == "timm" else None)
    found = facts(software.optional_section())
    assert found["timm"] == "1.0: more backbones"
    assert found["av"] == "- pip install av: dinox predict on videos"


def test_a_release_that_is_known_to_be_broken_is_a_problem(monkeypatch):
    monkeypatch.setattr(software, "_version", lambda name: "2.0.9" if name == "pycocotools" else "1.0")
    assert ("pycocotools 2.0.9 cannot evaluate on every json", "pip install 'pycocotools!=2.0.9'") in problems(
        software.software_section()
    )


def test_a_torchvision_that_does_not_fit_is_a_problem(monkeypatch):
    import torchvision

    def nms(*args):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    ((what, _),) = problems(software.software_section())
    assert what.endswith("(RuntimeError: operator torchvision::nms does not exist)")


def test_switching_off_safe_loading_is_a_problem():
    assert problems(software.settings_section({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}))[0][1].startswith("unset")
    assert not software.settings_section({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0", "DINOX_DEBUG": "1"}).problems


def test_secrets_of_the_environment_are_not_shown():
    section = software.settings_section({"WANDB_API_KEY": "secret", "DINOX_CPU_ISA": "avx2"})
    assert section.facts == [("DINOX_CPU_ISA", "avx2")]


# -------------------------------------------------------------------------------------------------------------- storage


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A registered dataset without files -> (json, folder of images)."""
    name = "doctor_test"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(json_file=str(tmp_path / "a.json"), image_root=str(tmp_path / "images"))
    monkeypatch.setattr(storage, "DATASETS", (name,))
    yield tmp_path / "a.json", tmp_path / "images"
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_a_dataset_that_is_not_there_is_no_problem_but_half_of_one_is(dataset):
    json_file, images = dataset
    section = storage.datasets_section({})
    assert facts(section)["doctor_test"].startswith("not found") and not section.problems
    json_file.write_text("{}")
    ((what, _),) = problems(storage.datasets_section({}))
    assert what == f"dataset doctor_test is incomplete: {json_file} is there, {images} is not"
    images.mkdir()
    (images / "1.jpg").write_text("")
    section = storage.datasets_section({})
    assert facts(section)["doctor_test"] == f"found: {json_file}" and not section.problems


def test_a_folder_of_datasets_that_is_none_is_a_problem(tmp_path):
    ((what, _),) = problems(storage.datasets_section({"DETECTRON2_DATASETS": str(tmp_path / "nowhere")}))
    assert what.endswith("nowhere is no folder")


def test_cached_weights_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "get_cache_dir", lambda: str(tmp_path))
    assert "none yet" in facts(storage.weights_section())[""]
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "R-50.pkl").write_bytes(bytes(2**20))
    assert facts(storage.weights_section())["R-50.pkl"] == "1 MiB (detectron2)"


def test_full_disks_are_problems(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20, total=64 * 2**20))
    found = [what for what, _ in problems(storage.disk_section())]
    assert "0.0 GiB are free" in found[0]
    assert any("/dev/shm has 64 MiB" in what for what in found) or len(found) == 1
