"""The manifests are what Kubernetes takes, and their commands do what they are there for.

Nothing is built and no cluster is asked: the commands of the manifests are run here as processes,
with the paths of their volumes mapped to a temporary folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from serving.servers import (
    BROKEN_LAYER,
    EXAMPLES,
    IMAGE,
    checkpoint,
    environment,
    free_port,
    serving,
)

FOLDER = EXAMPLES / "kubernetes"
ROOT = EXAMPLES.parents[1]


def documents(name):
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def pod():
    (deployment,) = documents("init-container.yaml")
    return deployment["spec"]["template"]["spec"]


def init_container():
    (container,) = pod()["initContainers"]
    return container


def mapped(words, tmp_path):
    """Words of a command with the folders of a pod below ``tmp_path``."""
    return [re.sub(r"(?<![\w/.])/(?=\w)", f"{tmp_path}/", word) for word in words]


def run(command, tmp_path, **environs):
    """A command as the kubelet starts it: no shell, what is installed beside this Python on PATH."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=EXAMPLES,
        env=environment(tmp_path, **environs),
        timeout=60,
    )


@pytest.fixture
def volumes(tmp_path):
    """Folders that the pods mount, the model's missing."""
    for folder in ("models", "var/cache/ckptdoctor", "var/run/ckptdoctor", "mnt/models"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_init_container_lets_a_fit_checkpoint_pass_and_leaves_report_and_cache(volumes):
    checkpoint(volumes / "models/model.safetensors")
    container = init_container()
    done = run(mapped(container["command"] + container["args"], volumes), volumes)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    report = json.loads((volumes / "var/run/ckptdoctor/preflight.json").read_text())
    assert report["reports"][0]["verdict"]["serve"] == "fit"
    assert any((volumes / "var/cache/ckptdoctor").iterdir())


def test_init_container_stops_the_pod_with_one_line_where_the_checkpoint_is_broken(volumes):
    checkpoint(volumes / "models/model.safetensors", broken=True)
    container = init_container()
    done = run(mapped(container["command"] + container["args"], volumes), volumes)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert BROKEN_LAYER in line
    assert done.stderr == ""
    report = json.loads((volumes / "var/run/ckptdoctor/preflight.json").read_text())
    assert report["reports"][0]["verdict"]["serve"] == "unfit"


def test_init_container_stops_the_pod_where_the_checkpoint_cannot_be_checked(volumes):
    (volumes / "models/model.safetensors").write_text("not a checkpoint")
    container = init_container()
    done = run(mapped(container["command"] + container["args"], volumes), volumes)
    assert done.returncode == 3


def test_line_of_the_init_container_fits_a_termination_message(volumes):
    """The kubelet keeps 2,048 bytes of the log where nothing else was written."""
    checkpoint(volumes / "models/model.safetensors", broken=True)
    container = init_container()
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    done = run(mapped(container["command"] + container["args"], volumes), volumes)
    assert len((done.stdout + done.stderr).encode()) <= 2048


def test_init_container_writes_only_to_its_volumes():
    container = init_container()
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod()["securityContext"]["runAsNonRoot"] is True
    mounts = {m["mountPath"]: m.get("readOnly", False) for m in container["volumeMounts"]}
    paths = [arg.removeprefix("json=") for arg in container["args"] if "/" in arg]
    assert [mounts[str(Path(path).parent)] for path in paths if "." in path] == [True, False]
    assert mounts["/var/cache/ckptdoctor"] is False
    assert mounts["/tmp"] is False


def test_every_mount_has_its_volume():
    names = {volume["name"] for volume in pod()["volumes"]}
    for container in (*pod()["initContainers"], *pod()["containers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= names


def test_server_loads_the_file_that_was_examined():
    (server,) = pod()["containers"]
    environs = {entry["name"]: entry["value"] for entry in server["env"]}
    assert environs["CHECKPOINT"] == init_container()["args"][0]
    assert environs["CKPTDOCTOR_CACHE"] in init_container()["args"]


def test_memory_limit_is_twice_what_a_preflight_takes(volumes):
    path = checkpoint(volumes / "models/model.safetensors")
    limit = init_container()["resources"]["limits"]["memory"]
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = run([sys.executable, "-c", script, "ckptdoctor", "preflight", path], volumes)
    peak = int(done.stdout.splitlines()[-1]) / 1024
    assert limit.endswith("Mi")
    assert 2 * peak < int(limit.removesuffix("Mi"))


# The image.


def instructions():
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_dockerfile_copies_what_the_build_of_the_package_needs():
    copied = [shlex.split(rest) for word, rest in instructions() if word == "COPY"]
    sources = [source for *some, _ in copied for source in some]
    assert all((ROOT / source).exists() for source in sources)
    assert {"pyproject.toml", "ckptdoctor", "README.md", "LICENSE"} <= set(sources)


def test_dockerfile_installs_without_a_framework_and_leaves_root():
    words = [word for word, _ in instructions()]
    (install,) = [rest for word, rest in instructions() if word == "RUN"]
    assert install.startswith("pip install --no-cache-dir /src &&")
    users = [rest for word, rest in instructions() if word == "USER"]
    assert users == ["root", "${RUN_AS}"]
    assert words.index("RUN") < len(words) - 1 - words[::-1].index("USER")
    assert ("ARG", "RUN_AS=65534:65534") in instructions()


def test_entrypoint_of_the_image_is_a_command_of_the_package():
    (entrypoint,) = [json.loads(rest) for word, rest in instructions() if word == "ENTRYPOINT"]
    scripts = importlib.metadata.entry_points(group="console_scripts")
    assert entrypoint[0] in scripts.names
    assert entrypoint == init_container()["command"]


# KServe.


def storage_container():
    container = documents("kserve.yaml")[0]["spec"]["container"]
    assert container["name"] == "storage-initializer"
    return container


def download(volumes, *, broken, fails=False, arguments=("s3://models/classifier", "/mnt/models")):
    """Run the storage container as KServe starts it; a script of the test stands for the download."""
    made = checkpoint(volumes / "bucket/model.safetensors", broken=broken)
    entrypoint = "storage-initializer/scripts/initializer-entrypoint"
    script = f'#!/bin/sh\necho "downloaded $*"\ncp "{made}" "$2"\nexit {7 if fails else 0}\n'
    executable(volumes / entrypoint, script)
    words = [*mapped(storage_container()["command"], volumes), *mapped(arguments, volumes)]
    return run(words, volumes)


def test_storage_initializer_passes_a_fit_download_on(volumes):
    done = download(volumes, broken=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"downloaded s3://models/classifier {volumes}/mnt/models\n")


def test_storage_initializer_refuses_a_broken_download_with_its_line_last(volumes):
    done = download(volumes, broken=True)
    assert done.returncode == 1
    assert BROKEN_LAYER in done.stdout.splitlines()[-1]


def test_storage_initializer_refuses_when_any_of_several_models_is_broken(volumes):
    checkpoint(volumes / "mnt/adapter/model.safetensors")
    both = ("s3://a", "/mnt/models", "s3://b", "/mnt/adapter")
    assert download(volumes, broken=True, arguments=both).returncode == 1
    assert download(volumes, broken=False, arguments=both).returncode == 0
    checkpoint(volumes / "mnt/adapter/model.safetensors", broken=True)
    assert download(volumes, broken=False, arguments=both).returncode == 1


def test_storage_initializer_that_fails_to_download_fails_as_before(volumes):
    assert download(volumes, broken=False, fails=True).returncode == 7


def predictor():
    (container,) = documents("kserve.yaml")[1]["spec"]["predictor"]["containers"]
    return container


def test_kserve_container_starts_no_server_on_a_broken_checkpoint(volumes):
    path = checkpoint(volumes / "mnt/models/model.safetensors", broken=True)
    done = run(
        predictor()["command"] + ["touch", str(volumes / "served")], volumes, CHECKPOINT=path
    )
    assert done.returncode == 1
    assert BROKEN_LAYER in done.stdout
    assert not (volumes / "served").exists()


@pytest.mark.oracle
def test_kserve_container_becomes_the_server_on_a_fit_checkpoint(volumes):
    for framework in ("uvicorn", "fastapi", "torch"):
        pytest.importorskip(framework)
    (given,) = [entry["value"] for entry in predictor()["env"] if entry["name"] == "CHECKPOINT"]
    (path,) = mapped([given], volumes)
    checkpoint(Path(path))
    port = free_port()
    assert predictor()["ports"][0]["containerPort"] == 8080
    arguments = [str(port) if word == "8080" else word for word in predictor()["args"]]
    with serving([*predictor()["command"], *arguments], port, volumes, CHECKPOINT=path) as server:
        assert server.ready(predictor()["readinessProbe"]["httpGet"]["path"])["serve"] == "fit"
        assert server.ask("/predict", IMAGE)[0] == 200
        # `exec`: the server is the container's first process and gets its signals
        assert "uvicorn" in Path(f"/proc/{server.process.pid}/cmdline").read_text()
