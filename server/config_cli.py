"""What `deltawire config` prints: an example, a check of a file, a key for a client.

Each is a function that gives the exit status, to be called by the command line.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from deltawire.server.config import Config, ConfigError, load
from deltawire.server.keys import hash_key, new_key

EXAMPLE: Final = """\
# deltawire.toml: what `deltawire serve` is told. Check it with `deltawire config check`.
# A setting that begins with "#" has its default there, or an example where it has none.
# Times are in seconds, sizes in bytes; where "inf" is allowed, it means no limit.
# Files are found from the directory of this one.

[server]
#host = "127.0.0.1"          # beyond this machine only with [[clients]], or public = true
#port = 8080
#transport = "asyncio"       # "sync", "trio"
#workers = 1                 # processes that share the port
#public = false              # true: anybody may ask who reaches the server
#tls_cert = "server.pem"     # and its key: the server speaks HTTPS
#tls_key = "server.key"
#grace = 5.0                 # an error within this time is an HTTP status; inf
#ping = 15.0                 # a comment after so much silence; inf
#ping_json = false           # blanks in the silence before a whole answer, too
#write_stall = 60.0          # a client that does not read is gone after this; inf
#shutdown = 30.0             # how long running answers may go on after SIGTERM
#log = "human"               # "json", "none"
#metrics = "open"            # "clients": for those with a key; "none"
#report_header = true        # x-deltawire-report: what of a request was lost

[limits]
#body = 33554432             # of a request
#head = 65536                # request line and headers
#head_timeout = 10.0
#body_timeout = 60.0
#idle_timeout = 75.0         # between two requests of a connection
#connections = 1000
#buffer = 65536              # for a client that is slower than upstream

[ledger]
#url = "sqlite:///deltawire.db"   # or "postgresql://user@host/database"; "": no ledger
#on_failure = "refuse"       # or "log": serve on, and write to the log what is missing

# Who may ask; without clients, everybody may. `deltawire config key` makes a key and its hash.
#[[clients]]
#name = "ann"
#key_hash = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
#models = ["fast", "gpt-5*"] # as she asks for them; none: all

# Who answers. A model is asked of the upstream that has it as an alias, or else of the first one
# with a pattern that it matches.
[[upstreams]]
name = "openai"
base_url = "https://api.openai.com/v1"
models = ["gpt-5", "gpt-5-mini", "gpt-*", "o*"]   # none: all
aliases = { fast = "gpt-5-mini" }
#api = "responses"           # "chat": speaks Chat Completions, and is passed through
#dialect = "openai"          # by default what the URL says
#headers = { OpenAI-Project = "proj_1" }
#strict = false              # true: refuse a request of which anything would be lost
#max_connections = inf
#proxy = "http://127.0.0.1:3128"   # by default what the environment says
#verify = true               # false, or a file of authorities
#cert = "client.pem"         # shown to the upstream
#cert_key = "client.key"

# The keys to it, each used in turn; one that fails rests while another one serves.
[[upstreams.accounts]]
name = "openai-1"            # in the ledger, so that it is to be found once in this file
key_env = "OPENAI_API_KEY"   # or key_file, or key
#base_url = "https://eu.api.openai.com/v1"
#models = ["gpt-5*"]         # of the upstream's, those that this account may use
#headers = { OpenAI-Organization = "org-1" }

#[[upstreams.accounts]]
#name = "openai-2"
#key_file = "openai-2.key"

#[[upstreams.accounts]]
#name = "openai-3"
#key = "sk-..."

[upstreams.timeouts]
#connect = 10.0              # each of these: inf
#first_event = 300.0
#idle = 300.0
#total = 3600.0

[upstreams.policy]
#attempts = inf              # at most so many for one request
#attempts_per_account = 1
#wait = 0.0                  # for an account that rests
#drain = 0.0                 # read on after the client has left, so that usage is known
#trail = 1.0                 # for the end of a body whose last word was said
#error_body = 10.0           # for the body of an error
#stream_upstream = true      # false for one that cannot stream
#retry_empty = true          # ask another account after an answer with nothing in it

[upstreams.stream_options]
#reasoning = "reasoning_content"   # "reasoning", "none"
#commentary = "reasoning"    # "content", "drop"
#images = "final"            # "partial", "none"
#max_event_size = 16777216

#[[upstreams]]
#name = "local"
#base_url = "http://127.0.0.1:8000/v1"
#dialect = "vllm"
#models = ["qwen*"]

# One that speaks Chat Completions itself; without dialect, strict and stream_options.
#[[upstreams]]
#name = "groq"
#base_url = "https://api.groq.com/openai/v1"
#api = "chat"
#models = ["llama*"]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `deltawire config`, for `run`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("example", help="print a file that says all that can be said").set_defaults(
        config=lambda _: example()
    )
    commands.add_parser("key", help="print a new key for a client, and its hash").set_defaults(
        config=lambda _: key()
    )
    checked = commands.add_parser("check", help="say whether a file is right")
    checked.add_argument("file", metavar="FILE", nargs="?", default="deltawire.toml")
    checked.set_defaults(config=lambda options: check(options.file, os.environ))


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; the exit status."""
    status: int = options.config(options)
    return status


def example() -> int:
    """Print a file that says all that can be said."""
    print(EXAMPLE, end="")
    return 0


def key() -> int:
    """Print a new key for a client, and what the configuration has of it."""
    made = new_key()
    print(f'key:      {made}\nkey_hash = "{hash_key(made)}"')
    return 0


def check(path: str | Path, environ: Mapping[str, str]) -> int:
    """Print what a file says, or on standard error all that is wrong with it; then 1."""
    try:
        config = load(path, environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"ok: {_summary(config)}")
    return 0


def _summary(config: Config) -> str:
    server = config.server
    host = f"[{server.host}]" if ":" in server.host else server.host
    accounts = sum(len(upstream.accounts) for upstream in config.upstreams)
    counts = (
        _count(len(config.upstreams), "upstream"),
        _count(accounts, "account"),
        _count(len(config.clients), "client"),
        _count(len(config.models()), "model") + " by name",
    )
    scheme = "https" if server.tls_cert else "http"
    return f"{', '.join(counts)}, on {scheme}://{host}:{server.port} by {server.transport}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
