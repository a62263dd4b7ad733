"""`deltawire` as a program: what it prints, when, and with which status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from deltawire import Done, to_responses_request
from deltawire.server.keys import hash_key
from deltawire.testing import (
    Answer,
    CustomToolCall,
    ErrorEvent,
    Reasoning,
    write_frames,
    write_stream,
)
from wire import SHARED, Json, parsed, plain, receive

COMMAND = [sys.executable, "-m", "deltawire.server.cli"]
ANSWER = Answer((Reasoning("Hm."), "Hello there."))


def run(
    *arguments: str, data: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments], input=data, env=env, capture_output=True, check=False
    )


def test_a_stream_becomes_the_frames_of_the_core() -> None:
    data = write_stream(ANSWER)
    result = run("translate", data=data)
    assert parsed(result.stdout) == plain(receive(data)[1])
    assert (result.returncode, result.stderr) == (0, b"")


REQUEST: Json = {
    "model": "gpt-5",
    "messages": [{"role": "user", "content": "Hi", "name": "ann"}],
    "seed": 1,
    "max_tokens": 5,
}


def test_a_request_becomes_the_body_of_the_core_and_its_report() -> None:
    result = run("request", data=json.dumps(REQUEST).encode())
    assert json.loads(result.stdout) == to_responses_request(REQUEST).body
    assert result.returncode == 0
    assert result.stderr.decode().splitlines() == [
        "dropped seed: the Responses API has no such sampling setting",
        "dropped messages[0].name: the Responses API does not name the participants",
        "adjusted max_tokens: raised from 5 to 16, the least upstream takes",
    ]


def test_a_request_is_for_a_dialect_by_name_or_url(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(REQUEST))
    assert json.loads(run("request", str(path), "--dialect", "vllm").stdout)["seed"] == 1
    url = "https://api.openai.com/v1"
    assert "seed" not in json.loads(run("request", str(path), "--upstream", url).stdout)
    both = run("request", str(path), "--dialect", "vllm", "--upstream", url)
    assert both.returncode == 2


def test_a_strict_request_is_refused_with_all_that_is_lost() -> None:
    result = run("request", "--strict", data=json.dumps(REQUEST).encode())
    assert (result.stdout, result.returncode) == (b"", 1)
    assert "deltawire: not supported by the upstream: seed (" in result.stderr.decode()
    assert "messages[0].name (" in result.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"model": "m"}', "deltawire: messages: expected a list, found nothing\n"),
        (b"{", "deltawire: the request is no JSON that can be read: Input data was truncated\n"),
        (b'{"a": "\xff"}', "deltawire: the request is no JSON that can be read: "),
        (b"[" * 1_000_000, "deltawire: the request is no JSON that can be read: "),
    ],
)
def test_a_wrong_request_is_refused(data: bytes, message: str) -> None:
    result = run("request", data=data)
    assert (result.stdout, result.returncode) == (b"", 1)
    assert result.stderr.decode().startswith(message)
    assert result.stderr.count(b"\n") == 1


def test_a_request_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    result = run("request", str(tmp_path / "none"))
    assert (result.stdout, result.returncode) == (b"", 2)


def test_a_file_is_as_good_as_standard_input(tmp_path: Path) -> None:
    path = tmp_path / "stream.sse"
    path.write_bytes(write_stream(ANSWER))
    assert run("translate", str(path)).stdout == run("translate", data=path.read_bytes()).stdout


def test_json_lines_are_one_value_a_line() -> None:
    data = write_stream(ANSWER)
    lines = run("translate", "--format", "jsonl", data=data).stdout.splitlines()
    assert [json.loads(line) for line in lines] == plain(receive(data)[1])[:-1]


def test_text_is_what_the_model_says() -> None:
    result = run("translate", "--format", "text", data=write_stream(ANSWER))
    assert result.stdout == b"Hello there.\n"


@pytest.mark.parametrize("form", ["sse", "jsonl", "text"])
def test_a_failure_has_status_1_and_its_message_on_standard_error(form: str) -> None:
    data = write_stream(Answer("Hel", ErrorEvent(message="No more.")))
    result = run("translate", "--format", form, data=data)
    assert (result.returncode, result.stderr) == (1, b"deltawire: No more.\n")
    assert b"Hel" in result.stdout


def test_a_stream_that_is_cut_off_is_a_failure() -> None:
    result = run("translate", data=write_stream(ANSWER)[:-200])
    assert result.returncode == 1
    assert b"without a terminal event" in result.stderr
    assert b"[DONE]" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--include-usage"], {"include_usage": True}),
        (["--reasoning", "reasoning"], {"reasoning": "reasoning"}),
        (["--reasoning", "none"], {"reasoning": None}),
        (["--stop", "zzz", "--stop", "there"], {"stop": ["zzz", "there"]}),
        (["--client-tool", "a"], {"client_tools": ["a"]}),
        (["--dialect", "xai", "--client-tool", "b"], {"client_tools": ["b"]}),
    ],
)
def test_options_are_those_of_the_core(arguments: list[str], options: dict[str, Any]) -> None:
    answer = Answer((Reasoning("Hm."), "Hello there.", CustomToolCall("a", "x")))
    data = write_stream(answer)
    result = run("translate", *arguments, data=data)
    assert parsed(result.stdout) == plain(receive(data, **options)[1])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], b"COMMAND"),
        (["translate", "--dialect", "groq"], b"groq"),
        (["translate", "--format", "xml"], b"xml"),
        (["translate", "no/such/file"], b"no/such/file: No such file"),
        (["translate", "/"], b"/: Is a directory"),
        (["translate", "/dev/null/file"], b"/dev/null/file: Not a directory"),
        (["request", "/dev/null/file"], b"/dev/null/file: Not a directory"),
        (["request", "x" * 300], b"File name too long"),
        (["demo", "--pace", "fast"], b"fast"),
    ],
)
def test_wrong_usage_has_status_2_and_names_what_is_wrong(
    arguments: list[str], named: bytes
) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert named in result.stderr
    assert result.stdout == b""


def test_frames_are_written_while_the_input_is_still_open_a_byte_at_a_time() -> None:
    frames = write_frames(ANSWER)
    with subprocess.Popen([*COMMAND, "translate"], stdin=-1, stdout=-1, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        received = b""
        expected = b""
        for count, frame in enumerate(frames, 1):
            for byte in frame:
                process.stdin.write(bytes([byte]))
            _, events = receive(b"".join(frames[:count]))
            # All but the failure that the end of the bytes would be here.
            said = [event for event in events if not event.to_wire().startswith(b'data: {"error')]
            expected = b"".join(event.to_wire() for event in said)
            # If a frame were held back, this would wait for ever.
            while len(received) < len(expected):
                received += os.read(process.stdout.fileno(), 65536)
            assert received == expected
        assert received.endswith(Done().to_wire())
        process.stdin.close()
        assert process.wait() == 0


def test_a_reader_that_leaves_is_no_error_to_speak_of() -> None:
    with subprocess.Popen(
        [*COMMAND, "translate"], stdin=-1, stdout=-1, stderr=-1, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(write_stream(ANSWER))
        process.stdin.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""


def test_the_demo_of_the_core_shows_the_main_job() -> None:
    result = run("demo", "--core", "--pace", "0")
    assert result.returncode == 0
    for part in (b"output_text.delta", b'{"content":" look"}', b"call_rome", b"[DONE]"):
        assert part in result.stdout


def packages_of_the_server() -> set[str]:
    """What is imported of everything that the extra `server` installs by name."""
    manifest = Path(__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(manifest.read_text())["project"]["optional-dependencies"]
    needs = [each for extra in ("server", "sync", "asyncio", "trio") for each in extras[extra]]
    names = {re.split(r"[^\w-]", each)[0].replace("-", "_") for each in needs}
    return names - {"deltawire"}


@pytest.mark.parametrize("name", sorted(packages_of_the_server()))
def test_without_a_package_of_the_server_the_demo_is_that_of_the_core(name: str) -> None:
    script = (
        f"import sys; sys.modules[{name!r}] = None; from deltawire.server.cli import main;"
        "sys.exit(main(['demo', '--pace', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"for want of {name}.".encode() in done.stdout
    assert b"[DONE]" in done.stdout


def test_the_version_is_the_one_of_the_package() -> None:
    import deltawire

    assert run("--version").stdout.decode() == f"deltawire {deltawire.__version__}\n"


@pytest.mark.skipif(not SHARED.exists(), reason="the recorded streams are not there (../shared)")
def test_a_recorded_stream_through_the_program() -> None:
    path = sorted(SHARED.glob("corpus/streams/xai/*.sse"))[0]
    assert parsed(run("translate", str(path)).stdout) == plain(receive(path.read_bytes())[1])


def test_config_prints_an_example_that_it_takes(tmp_path: Path) -> None:
    example = run("config", "example")
    (tmp_path / "deltawire.toml").write_bytes(example.stdout)
    checked = run(
        "config", "check", str(tmp_path / "deltawire.toml"), env={"OPENAI_API_KEY": "sk-x"}
    )
    assert (checked.returncode, checked.stderr) == (0, b"")
    assert checked.stdout.startswith(b"ok: 1 upstream, 1 account")
    refused = run("config", "check", str(tmp_path / "deltawire.toml"), env={})
    assert refused.returncode == 1
    assert b"upstreams[0].accounts[0].key_env" in refused.stderr


def test_config_makes_a_key_and_its_hash() -> None:
    key, digest = run("config", "key").stdout.decode().splitlines()
    made = key.removeprefix("key:").strip()
    assert digest == f'key_hash = "{hash_key(made)}"'
