"""The rules of CONTRIBUTING.md that a machine can check: arrows, inert imports, configs, sizes, top-level packages."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from livetalk import config

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("livetalk/**/*.py"), *ROOT.glob("OmniAvatar/**/*.py")])
SCRIPTS = sorted(ROOT.glob("scripts/*.py"))
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))

BASE = {"geometry", "flow", "conditions", "checks"}
# Who may import whom, by room: the first part of a module's name below livetalk, or OmniAvatar.
ARROWS = {
    "geometry": set(),
    "checks": set(),
    "devices": set(),
    "graphs": set(),
    "flow": BASE,
    "conditions": BASE,
    "media": {"geometry"},
    "espeak": set(),
    "faces": set(),
    "models": BASE,
    "rollout": {*BASE, "models"},
    "parts": {*BASE, "models"},
    "data": {*BASE, "models", "media", "devices", "espeak", "faces"},
    "evaluation": {"geometry", "checks", "media", "faces"},
    "OmniAvatar": {*BASE, "models", "data"},
    "training": {*BASE, "models", "rollout", "data", "media", "graphs"},
    "streaming": {*BASE, "models", "rollout", "media", "graphs"},
    "realtime": {"geometry", "streaming", "media", "espeak"},
    # The wiring: what composes rooms that do not know each other. Nothing but these may import config.
    "schemas": set(),
    "config": {
        "schemas",
        "geometry",
        "checks",
        "flow",
        "models",
        "training",
        "data",
        "evaluation",
        "streaming",
        "realtime",
    },
    "families": {*BASE, "config", "devices", "models", "rollout", "parts", "pipeline", "streaming", "OmniAvatar"},
    "cli": {"config"},
    "commands": {
        *BASE,
        *{"config", "cli", "devices", "faces", "media", "models", "rollout", "parts", "families", "pipeline"},
        *{"data", "training", "evaluation", "streaming", "realtime", "OmniAvatar"},
    },
    # from_pretrained hands over to families, inside the call: the one edge back into the wiring
    "pipeline": {*BASE, "models", "rollout", "media", "families", "streaming"},
}
# What a bare GPU machine has; everything else is imported where it is used.
SERVICE = {"aiortc", "av", "fastapi", "prometheus_client", "starlette", "uvicorn"}  # at the top in SERVER alone
SERVER = "livetalk.realtime.server."  # nothing else imports it but the command that serves
KERNELS = "_triton.py"  # modules that exist for one GPU compiler, and are imported where a GPU is
TOP_LEVEL = {
    "torch",
    "numpy",
    "einops",
    "safetensors",
    "transformers",
    "tokenizers",
    "accelerate",
    "omegaconf",
    "yaml",
    "PIL",
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room of one of our modules; None for livetalk itself and for other packages."""
    parts = module.split(".")
    if parts[0] == "OmniAvatar":
        return "OmniAvatar"
    return parts[1] if parts[0] == "livetalk" and len(parts) > 1 else None


def imports(nodes, package: str):
    """Full names of what import statements among `nodes` bring in."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            base = ".".join(filter(None, [stem if node.level else "", node.module]))
            for alias in node.names:
                yield f"{base}.{alias.name}"


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def package_of(path: Path) -> str:
    module = module_of(path)
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def test_arrows():
    wrong = []
    for path in SOURCES:
        room = room_of(module_of(path))
        if room is None:
            continue
        assert room in ARROWS, f"{path}: add the room {room} to ARROWS, with what it may import"
        for name in imports(ast.walk(tree_of(path)), package_of(path)):
            other = room_of(name)
            if other in ARROWS and other != room and other not in ARROWS[room]:
                wrong.append(f"{path.relative_to(ROOT)} ({room}) imports {name} ({other})")
    assert not wrong, "\n".join(wrong)


def test_the_arrow_test_sees_every_form_of_import():
    code = "import livetalk.a\nfrom livetalk import b\nfrom livetalk.c import d\n"
    code += "def f():\n  from ..g import h\n  from . import i"
    found = set(imports(ast.walk(ast.parse(code)), "livetalk.x.y"))
    assert found == {"livetalk.a", "livetalk.b", "livetalk.c.d", "livetalk.x.g.h", "livetalk.x.y.i"}


def top_level(tree: ast.Module):
    """Statements run at import: not inside functions, and not inside `if TYPE_CHECKING`."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def test_rare_packages_are_imported_where_they_are_used():
    known = TOP_LEVEL | set(sys.stdlib_module_names) | {"livetalk", "OmniAvatar"}
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name in imports(top_level(tree_of(path)), package_of(path))
        if name.split(".")[0] not in known | (SERVICE if module_of(path).startswith(SERVER) else set())
        and not path.name.endswith(KERNELS)
    ]
    assert not wrong, "\n".join(wrong)


INERT = """
import importlib.util, json, os, sys
sys.path.insert(0, {root!r})
import accelerate, einops, numpy, omegaconf, PIL.Image, safetensors.torch, torch, transformers, yaml
from transformers import UMT5EncoderModel, Wav2Vec2Model

class Watched(list):
    def touched(self, *_):
        raise AssertionError("sys.argv is read at import")
    __getitem__ = __iter__ = __len__ = touched

def state():
    import locale, logging, random, signal, threading, warnings
    return dict(
        environment=dict(os.environ), path=list(sys.path), folder=os.getcwd(), files=os.listdir(),
        cuda=torch.cuda.is_initialized(), threads=threading.active_count(), torch_threads=torch.get_num_threads(),
        grad=torch.is_grad_enabled(), dtype=str(torch.get_default_dtype()), seed=torch.initial_seed(),
        random=hash(random.getstate()), numpy=int(numpy.random.get_state()[1].sum()),
        terminate=str(signal.getsignal(signal.SIGTERM)),
        handlers=len(logging.getLogger().handlers), level=logging.getLogger().level,
        precision=torch.get_float32_matmul_precision(), deterministic=torch.are_deterministic_algorithms_enabled(),
    )

def compile(*_, **__):
    raise AssertionError("torch.compile is called at import")

torch.compile = compile
arguments, sys.argv = sys.argv, Watched()
before, wrong = state(), []
for name in arguments[1:]:
    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location("script", name)
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        else:
            importlib.import_module(name)
    except Exception as error:
        wrong.append(f"{{name}}: {{type(error).__name__}}: {{error}}")
    after = state()
    wrong += [f"{{name}} changes {{key}}" for key in before if before[key] != after[key]]
    before = after
os.write(3, json.dumps(wrong).encode())
"""


def test_importing_does_nothing(tmp_path):
    """One process imports every module and script in turn and compares the state of the world around each."""
    names = [module_of(path) for path in SOURCES if not path.name.endswith(KERNELS)] + [str(path) for path in SCRIPTS]
    (tmp_path / "inert.py").write_text(INERT.format(root=str(ROOT)))
    (tmp_path / "empty").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = ["sh", "-c", 'exec "$@" 3>../report', "sh", sys.executable, "../inert.py", *names]
    result = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads((tmp_path / "report").read_text()) == []
    assert result.stdout == "" and not list((tmp_path / "empty").iterdir())


def test_import_livetalk_is_light_and_names_the_pipeline():
    code = (
        "import sys, livetalk; heavy = [m for m in ('torch', 'transformers', 'PIL', 'numpy') if m in sys.modules];"
        "assert not heavy, heavy; assert 'LiveTalkPipeline' in dir(livetalk);"
        "from livetalk import LiveTalkPipeline, Video; assert LiveTalkPipeline.from_pretrained"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    import livetalk

    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = livetalk.nothing_of_the_kind


# Configs


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads(path):
    loaded = config.load(path)
    assert is_dataclass(loaded) and type(loaded) in config.RUNS.values()
    with pytest.raises(AttributeError):
        loaded.seed = 1


def test_there_are_configs():
    assert {path.name for path in CONFIGS} >= {"inference.yaml", "causal_inference.yaml"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_misspelt_key_is_refused_with_a_suggestion(path, tmp_path):
    key = [name for name in get_type_hints(type(config.load(path))) if name != "run"][-1]
    wrong = key[:-1] + ("x" if key[-1] != "x" else "y")
    with pytest.raises(ValueError, match=re.escape(key)):
        config.load(path, [f"{wrong}=1"])
    (tmp_path / "a.yaml").write_text(path.read_text() + f"\n{wrong}: 1\n")
    with pytest.raises(ValueError, match=re.escape(key)):
        config.load(tmp_path / "a.yaml")


# Sizes and habits


def test_functions_and_files_have_a_readable_size():
    wrong = []
    for path in [*SOURCES, *SCRIPTS]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 500:
            wrong.append(f"{path.relative_to(ROOT)}: {lines} lines, at most 500")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 80:
                length = node.end_lineno - node.lineno + 1
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines, at most 80")
    assert not wrong, "\n".join(wrong)


SETTINGS = re.compile(r"\b(config|cfg|run|settings)\b")


def test_no_second_chance_for_settings():
    """getattr with a default hides a misspelt setting; so does a broad or empty except for a failure."""
    wrong = []
    for path in [*SOURCES, *SCRIPTS]:
        for node in ast.walk(tree_of(path)):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            if called == "getattr" and len(node.args) == 3 and SETTINGS.search(ast.unparse(node.args[0])):
                wrong.append(f"{where}: getattr with a default")
            if called == "print" and path not in SCRIPTS and room_of(module_of(path)) not in ("cli", "commands"):
                wrong.append(f"{where}: print in the library")
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                if caught in ("", "Exception", "BaseException") and not any(
                    isinstance(inner, ast.Raise) for inner in ast.walk(node)
                ):
                    wrong.append(f"{where}: a broad except")
    assert not wrong, "\n".join(wrong)


def tracked() -> list[Path]:
    """Files under version control, or every file that would be, where git or its folder is missing."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        rooms = ("livetalk", "OmniAvatar", "configs", "scripts", "tests", "docs")
        return [path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_is_too_large_to_travel():
    large = {str(path): path.stat().st_size for path in tracked() if path.stat().st_size >= 16 * 2**20}
    assert not large
    golden = sum(path.stat().st_size for path in tracked() if "golden" in path.parts)
    assert golden < 9 * 2**20
    family = sum(path.stat().st_size for path in tracked() if ROOT / "livetalk/assets/nano" in path.parents)
    assert 2**20 < family < 32 * 2**20, "the shipped family, teacher included"


def test_scripts_are_thin_and_runnable():
    for path in sorted(ROOT.glob("scripts/*.sh")):
        text = path.read_text()
        subprocess.run(["bash", "-n", str(path)], check=True)
        if not path.name.startswith("_"):
            assert text.startswith("#!/usr/bin/env bash\n") and os.access(path, os.X_OK), path
            assert len(text.splitlines()) <= 60, path


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_documents_name_what_exists(document):
    """Scripts, configs and modules by path, unless NAME stands for a name, and links within the repository."""
    text = (ROOT / document).read_text(encoding="utf-8")
    names = set(re.findall(r"(?:scripts|configs|docs|livetalk|tests)/[\w./-]+\.(?:sh|yaml|md|py)", text))
    names |= set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text))
    gone = [name for name in names if "NAME" not in name and not (ROOT / name).exists()]
    assert not gone, f"{document} names {gone}, which do not exist"


def test_the_readme_has_both_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "scripts/inference.sh" in text and "scripts/test.sh" in text


def test_requirements_are_read_by_setup():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9-]+(\[[a-z,]+\])?[<>=][\w<>=.,*]+", line), line
    assert "requirements.txt" in (ROOT / "setup.py").read_text()
