import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from livetalk.models.attention import FullAttention
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.layouts import DIT_TO_DIFFUSERS, Layout
from livetalk.models.lora import Adapter, LoraConfig, LoraTraining, adapt, merged, without_adapters
from livetalk.models.weights import entries_of, load_into, save, tensors_of
from OmniAvatar.merge_lora import SIZES, plan, sources, write
from tests.models.test_dit import clip

ROOT = Path(__file__).parents[2]
TINY = {"dim": 24, "ffn_dim": 32, "heads": 2, "layers": 4, "text_dim": 10, "text_len": 5, "freq_dim": 16}
TEACHER = DiTConfig(**TINY, audio_dim=6, audio_hidden=8)
BASE = DiTConfig(**TINY, in_channels=16, audio_dim=0)
LORA = LoraConfig(rank=3, alpha=1.5)
LINEAR = [f"{a}_attn.{p}" for a in ("self", "cross") for p in "qkvo"] + ["ffn.0", "ffn.2"]


def random_state(config):
    torch.manual_seed(0)
    return {name: torch.randn(value.shape) for name, value in WanDiT(config).state_dict().items()}


@pytest.fixture
def base():
    return random_state(BASE)


@pytest.fixture
def adapter(base):
    """As OmniAvatar saves it: factors for the linear layers of every block, whole audio and patch-embedding weights."""
    torch.manual_seed(1)
    tensors = {}
    for module in (f"blocks.{n}.{name}" for n in range(TEACHER.layers) for name in LINEAR):
        rows, columns = base[f"{module}.weight"].shape
        tensors[f"{module}.lora_A.default.weight"] = torch.randn(3, columns)
        tensors[f"{module}.lora_B.default.weight"] = torch.randn(rows, 3)
    whole = {name: v for name, v in random_state(TEACHER).items() if name.startswith(("audio_", "patch_embedding"))}
    return tensors | {name: value + 1 for name, value in whole.items()}


def values(entries):
    return {entry.name: entry.value().to(entry.dtype) for entry in entries}


def test_merging_is_the_formula(base, adapter):
    got = values(merged(base, Adapter.of(adapter), LORA))
    assert got.keys() == WanDiT(TEACHER).state_dict().keys()
    for name, value in got.items():
        if f"{name.removesuffix('.weight')}.lora_A.default.weight" in adapter and name.endswith("weight"):
            a, b = (adapter[f"{name.removesuffix('.weight')}.lora_{f}.default.weight"].double() for f in "AB")
            want = base[name].double() + 0.5 * torch.einsum("or,ri->oi", b, a)
            torch.testing.assert_close(value.double(), want, rtol=1e-6, atol=1e-5)
            assert not torch.allclose(value, base[name])
        else:
            assert torch.equal(value, adapter[name] if name in adapter else base[name])


def test_names_of_older_files(base, adapter):
    want = values(merged(base, Adapter.of(adapter), LORA))
    for change in (lambda n: n.replace(".default.", "."), lambda n: f"base_model.model.{n}"):
        got = values(merged(base, Adapter.of({change(name): v for name, v in adapter.items()}), LORA))
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


def test_the_sum_is_in_float32_and_the_result_in_the_type_asked_for(base, adapter):
    half = {name: value.bfloat16() for name, value in base.items()}
    name = "blocks.0.ffn.0.weight"
    got = values(merged(half, Adapter.of(adapter), LORA))[name]
    a, b = (adapter[name.replace("weight", f"lora_{f}.default.weight")] for f in "AB")
    assert torch.equal(got, (half[name].float() + 0.5 * b @ a).bfloat16())
    assert {v.dtype for v in values(merged(half, Adapter.of(adapter), LORA, torch.float32)).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"blocks.9.ffn.0.lora_A.weight": (3, 24), "blocks.9.ffn.0.lora_B.weight": (32, 3)},
            "blocks.9.ffn.0 is not in",
        ),
        ({"blocks.1.ffn.0.lora_B.default.weight": (31, 3)}, r"blocks.1.ffn.0.weight \[32, 24\] with A \[3, 24\]"),
        ({"blocks.1.ffn.0.weight": (32, 24)}, "blocks.1.ffn.0.weight is both adapted and replaced"),
        ({"blocks.2.norm3.lora_A.weight": (3, 24)}, "without both lora_A and lora_B: blocks.2.norm3"),
        (
            {"blocks.2.norm3.lora_A.weight": (3, 24), "blocks.2.norm3.lora_B.weight": (24, 3)},
            r"norm3.weight \[24\] with",
        ),
    ],
)
def test_what_does_not_fit_is_listed(base, adapter, change, message):
    adapter |= {name: torch.zeros(shape) for name, shape in change.items()}
    with pytest.raises(ValueError, match=message):
        merged(base, Adapter.of(adapter), LORA)


def test_a_wrong_rank_is_refused(base, adapter):
    with pytest.raises(ValueError, match="^40 tensors .*has rank 3 and 3, config.json says 4"):
        merged(base, Adapter.of(adapter), LoraConfig(4, 2.0))


@pytest.fixture
def folders(base, adapter, tmp_path):
    lora = tmp_path / "OmniAvatar-1.3B"
    lora.mkdir()
    torch.save(adapter, lora / "pytorch_model.pt")
    (lora / "config.json").write_text(json.dumps({"lora_rank": 3, "lora_alpha": 1.5, "in_dim": 33}))
    save(tmp_path / "base.safetensors", entries_of(base))
    return tmp_path / "base.safetensors", lora


def test_a_merged_file_loads_strictly(base, adapter, folders, tmp_path):
    out = write(plan(TEACHER, *folders, dtype=torch.float32), tmp_path / "merged" / "teacher.safetensors")
    assert [path.name for path in out.parent.iterdir()] == ["teacher.safetensors"]
    with torch.device("meta"):
        dit = WanDiT(TEACHER)
    load_into(dit, tensors_of(out))
    want = values(merged(base, Adapter.of(adapter), LORA))
    assert all(torch.equal(value, want[name]) for name, value in dit.state_dict().items())


def test_a_base_in_the_layout_of_diffusers_gives_the_same(base, folders, tmp_path):
    other = save(tmp_path / "transformer" / "diffusion.safetensors", entries_of(DIT_TO_DIFFUSERS(base)))
    want, got = (values(plan(TEACHER, source, folders[1])) for source in (folders[0], other.parent))
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


def test_another_size_is_refused_by_name(folders):
    wider = DiTConfig(**{**TINY, "layers": 5}, audio_dim=6, audio_hidden=8)
    with pytest.raises(ValueError, match=r"27 differ: blocks.4.cross_attn.k.bias: expected \(24,\), merged nothing"):
        plan(wider, *folders)


def test_mistakes_are_named(folders, tmp_path):
    layout = Layout(tmp_path / "none")
    with pytest.raises(ValueError, match="size '2b' is not known: use 1.3b or 14b"):
        sources("2b", layout)
    with pytest.raises(ValueError, match="Wan2.1-T2V-1.3B/.* is not there: bash scripts/download.sh --teacher-1.3b"):
        sources("1.3b", layout)
    assert sources("1.3b", layout, *map(str, folders)) == folders
    (folders[1] / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say lora_rank"):
        plan(TEACHER, *folders)
    with pytest.raises(ValueError, match="must end in .safetensors"):
        write([], tmp_path / "out.pt")


def test_the_command_refuses_in_one_line(folders, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "merge_lora.py", "size=1.3b", f"base={folders[0]}"]
    command += ["--lora", folders[1], "--out", tmp_path / "out.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("merge_lora: ") and "is not this size of OmniAvatar" in line
    assert not (tmp_path / "out.safetensors").exists()


def test_the_command_tells_of_a_place_that_cannot_be(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "1.3b", lambda: TEACHER)
    (tmp_path / "file").touch()
    told = [f"base={folders[0]}", f"lora={folders[1]}", f"out={tmp_path / 'file' / 'out.safetensors'}"]
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["merge_lora.py", *told])
    script = spec_from_file_location("merge_lora", ROOT / "scripts" / "merge_lora.py")
    module = module_from_spec(script)
    script.loader.exec_module(module)
    assert module.main() == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("merge_lora: ") and "file cannot be used" in line


def test_download_prints_its_commands():
    def run(*options):
        command = ["bash", ROOT / "scripts" / "download.sh", *options]
        return subprocess.run(command, capture_output=True, text=True)

    student, both = run("--dry-run"), run("--dry-run", "--teacher-1.3b", "--teacher-14b")
    assert student.returncode == both.returncode == 0
    lines = student.stdout.splitlines()
    assert all(line.startswith("hf download ") and "--local-dir pretrained_checkpoints/" in line for line in lines)
    layout = Layout(Path("pretrained_checkpoints"))
    for path in (layout.audio, layout.student.parent, layout.wan("text").parent):
        assert any(line.endswith(f"--local-dir {path}") for line in lines), path
    for size in ("1.3b", "14b"):
        for path in (layout.lora(size), layout.wan("transformer", size).parent):
            assert any(line.endswith(f"--local-dir {path}") for line in both.stdout.splitlines()), path
    wrong = run("--everything")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "--teacher-14b" in wrong.stderr
    assert run("--help").stdout.count("--") > 6


@pytest.mark.parametrize("learnt", [False, True])
def test_trained_adapters_become_part_of_the_weights(learnt):
    """In float64; untrained ones change nothing."""
    before = WanDiT(TEACHER).double()
    before.load_state_dict(random_state(TEACHER))
    dit = WanDiT(TEACHER)
    dit.load_state_dict(before.state_dict())
    adapt(dit, LORA)
    dit.double()
    learning = {name for name, value in dit.named_parameters() if value.requires_grad}
    assert learning == {f"blocks.{n}.{m}.lora_{f}.weight" for n in range(4) for m in LINEAR for f in "AB"}
    if learnt:
        for name in learning:
            torch.nn.init.normal_(dit.get_parameter(name), std=0.3)
    noisy, conditions = clip(batch=2)
    t = torch.tensor([900.0, 300.0])
    wanted, given = dit(noisy, t, conditions, FullAttention()), before(noisy, t, conditions, FullAttention())
    assert torch.equal(wanted, given) != learnt
    after = WanDiT(TEACHER).double()
    after.load_state_dict(without_adapters(dit.state_dict(), LORA))
    assert torch.allclose(after(noisy, t, conditions, FullAttention()), wanted, rtol=1e-4, atol=1e-5)


def test_adapters_that_cannot_be():
    assert LoraTraining(8, 16).config == LoraConfig(8, 16)
    for wrong in ({"rank": -1}, {"rank": 4, "alpha": 0}):
        with pytest.raises(ValueError, match="lora.rank"):
            LoraTraining(**wrong)
