from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from livetalk.commands.export import export
from livetalk.config import load
from livetalk.models.dit import WanDiT
from livetalk.models.layouts import DIT_DIFFUSERS
from livetalk.models.weights import load_into
from livetalk.training import checkpoint, distributed, sharding
from livetalk.training.export import ExportRun
from tests.models.test_dit import TINY
from tests.training.test_sharded import CONFIG, trainer_of


@pytest.fixture(scope="module", params=[True, False], ids=["sharded", "plain"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    trainer = trainer_of("dmd", folder, replace(CONFIG, steps=2, shard=request.param))
    trainer.fit()
    yield trainer
    distributed.leave()


def weights_of(trainer, module, averaged):
    state = trainer.weights() if averaged else trainer.modules.state_dict()
    start = f"{module}."
    return {k.removeprefix(start): sharding.whole(v) for k, v in state.items() if k.startswith(start)}


@pytest.mark.parametrize("averaged", [True, False])
def test_one_published_file_of_the_newest_checkpoint(trained, averaged, tmp_path, capsys):
    run = ExportRun(
        checkpoint=str(trained.folder), averaged=averaged, precision="float32", output=str(tmp_path / "a.safetensors")
    )
    export(run)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a.safetensors")
    wanted, found = weights_of(trained, "student", averaged), load_file(tmp_path / "a.safetensors")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    with torch.device("meta"):
        dit = WanDiT(TINY)
    load_into(dit, found)


def test_a_large_module_is_read_in_portions(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("livetalk.training.export.PORTION", 20_000)
    export(ExportRun(checkpoint=str(trained.folder), precision="float32", output=str(tmp_path / "c.safetensors")))
    wanted, found = weights_of(trained, "student", True), load_file(tmp_path / "c.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


def test_in_bfloat16_under_the_names_of_diffusers(trained, tmp_path):
    path = tmp_path / "b.safetensors"
    export(ExportRun(checkpoint=str(trained.folder), module="critic", layout="diffusers", output=str(path)))
    wanted = weights_of(trained, "critic", True)
    found = DIT_DIFFUSERS(load_file(path))
    assert "blocks.0.attn1.to_q.weight" in load_file(path)
    assert wanted.keys() == found.keys() and {value.dtype for value in found.values()} == {torch.bfloat16}
    assert all(torch.equal(value.bfloat16(), found[name]) for name, value in wanted.items())


def test_what_is_not_there_is_named(trained, tmp_path, capsys):
    with pytest.raises(ValueError, match="no module 'teacher': it has critic, student"):
        export(ExportRun(checkpoint=str(trained.folder), module="teacher"))
    with pytest.raises(ValueError, match="no whole checkpoint in"):
        export(ExportRun(checkpoint=str(tmp_path)))
    with pytest.raises(ValueError, match="checkpoint is not set"):
        export(ExportRun())
    export(ExportRun(checkpoint=str(trained.folder)), dry_run=True)
    assert "total memory" in capsys.readouterr().out.splitlines()[-1]


def test_adapters_are_no_published_file(tmp_path):
    weights = {f"dit.blocks.0.ffn.0.{name}.weight": torch.zeros(1) for name in ("linear", "lora_A", "lora_B")}
    checkpoint.save(tmp_path, checkpoint.State(1, weights, {}, {}), {}, 1)
    with pytest.raises(ValueError, match="step-0000001 is of adapters: .* part teacher"):
        export(ExportRun(checkpoint=str(tmp_path), module="dit"))


def test_settings_are_checked_at_the_door():
    with pytest.raises(ValueError, match="layout 'comfy'"):
        load(None, ["layout=comfy"], run="export")
    with pytest.raises(ValueError, match="precision 'fp8'"):
        load(None, ["precision=fp8"], run="export")
    with pytest.raises(ValueError, match="output=x.mp4: .* ends in .safetensors"):
        load(None, ["output=x.mp4"], run="export")
