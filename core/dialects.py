"""How providers differ, as data. Nothing here acts; the request and the stream read it.

Every entry says where its facts come from; what is not known of a provider is not in its entry.
GENERIC, an upstream of which nothing is known, is treated with care: where the same can be said in
two ways, it is said in the one that no provider is known to refuse. What a client asks for goes to
it all the same, for it to judge.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct


class Refusal(Struct, frozen=True):
    """A field of the Responses request that an upstream refuses or ignores.

    `field` is its path, an element of `include` being `include[...]`; `reason` is for the report,
    `source` where the fact comes from.
    """

    field: str
    reason: str
    source: str


class Dialect(Struct, frozen=True, kw_only=True):
    """One provider's ways. The defaults are OpenAI's.

    Of the upstream itself:

    hosts: the hosts it answers on, each with all its subdomains.
    sources: where those of its facts come from that are no refusals.

    Of the request:

    refuses: what it refuses, or ignores in silence.
    accepts: fields of a Chat request that it takes as they are, beyond the Responses API's.
    instructions: whether the messages that begin with instructions go into `instructions`.
    developer_role: what it calls the role of a developer.
    typed_messages: whether messages say that they are messages (`"type": "message"`).
    plain_text: what stands between the parts of content that is all text and is sent as one
        string; None: it is sent in its parts.
    output_messages: whether an assistant's message may have parts, which refusals and citations
        need.
    result_parts: whether the result of a tool may have parts; if not, it is one string, and its
        images and files follow in a message of the user's.
    custom_tools: whether it knows tools that take free text.
    reasoning_history: how it takes back what the model thought: only `encrypted`, only as `text`,
        or not at all (`none`).
    reasoning_ids: whether a reasoning item that is taken back encrypted keeps its id.
    reasoning_summary: the summary to ask for where an effort is asked for; None: none.
    min_output_tokens: the least that `max_output_tokens` may be, in tokens.
    web_search_tool: the type of its web search; None: it has none.

    Of the answer:

    server_side_tools: names of `custom_tool_call` items that the provider runs itself.
    server_side_call_prefixes: how the `call_id` of such an item begins.
    usage: what its usage has, or lacks, in words.
    """

    name: str
    hosts: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    refuses: tuple[Refusal, ...] = ()
    accepts: tuple[str, ...] = ()
    instructions: bool = False
    developer_role: Literal["developer", "system"] = "developer"
    typed_messages: bool = False
    plain_text: str | None = None
    output_messages: bool = True
    result_parts: bool = True
    custom_tools: bool = True
    reasoning_history: Literal["encrypted", "text", "none"] = "encrypted"
    reasoning_ids: bool = True
    reasoning_summary: Literal["auto", "concise", "detailed"] | None = None
    min_output_tokens: int = 16
    web_search_tool: str | None = "web_search"
    server_side_tools: frozenset[str] = frozenset()
    server_side_call_prefixes: tuple[str, ...] = ()
    usage: str = ""

    def runs_tool(self, name: str, call_id: str) -> bool:
        """Whether a custom tool call is the provider's own rather than the client's."""
        return name in self.server_side_tools or (
            bool(self.server_side_call_prefixes)
            and call_id.startswith(self.server_side_call_prefixes)
        )

    def refusal(self, field: str) -> str | None:
        """Why this field of the Responses request cannot be sent; None if it can."""
        for refused in self.refuses:
            if field == refused.field or field.startswith(
                (refused.field + ".", refused.field + "[")
            ):
                return refused.reason
        return None


OPENAI: Final = Dialect(
    name="openai",
    hosts=("api.openai.com",),
    sources=(
        "min_output_tokens: openai-openapi f85dbe2; earendil-works/pi issue 6265",
        "reasoning_history: without encrypted content a reasoning item is looked up by its id, and"
        " none is stored (vercel/ai issue 7543, can1357/oh-my-pi issue 41)",
        "reasoning_ids: an id is checked against the encrypted content, and its form"
        " (can1357/oh-my-pi issue 290, jlcodes99/cockpit-tools issue 2090)",
        "instructions: for json_object the word has to be in the input (pydantic-ai)",
    ),
)

AZURE: Final = Dialect(
    name="azure",
    hosts=("openai.azure.com", "cognitiveservices.azure.com"),
    sources=(
        "the same models as OpenAI's: recordings",
        "hosts, min_output_tokens: ttttmr/pi-web-search pull request 23, vectorize-io/hindsight"
        " issue 58",
        "output_messages: LiteLLM takes the status off items that go to Azure (its issue 13484)",
        "web_search_tool: laravel/ai pull request 843, ttttmr/pi-web-search pull request 23",
        "usage: pydantic/pydantic-ai issue 7173",
    ),
    refuses=(
        Refusal(
            "prompt_cache_retention",
            "Azure has no such setting",
            "OpenHands/software-agent-sdk issue 2295 and pull request 2311",
        ),
    ),
    output_messages=False,
    usage="may have cache_write_tokens",
)

XAI: Final = Dialect(
    name="xai",
    hosts=("api.x.ai",),
    sources=(
        "accepts: the parameters of /v1/responses in @langchain/xai",
        "custom_tools: CLIProxyAPI turns them into functions for xAI (xai_executor.go)",
        "reasoning_history: recordings",
        "server_side_tools: the provider-executed tools in vercel/ai's xai-responses provider",
        "server_side_call_prefixes: recordings",
        "usage: recordings",
    ),
    refuses=(
        Refusal(
            "service_tier",
            "xAI takes it for compatibility only and ignores it",
            "the parameters of /v1/responses in @langchain/xai",
        ),
        Refusal(
            "metadata",
            "xAI refuses it",
            "router-for-me/CLIProxyAPI issue 5648, rbb-dev/Open-WebUI-OpenRouter-pipe issue 62",
        ),
        Refusal(
            "tools[web_search].search_context_size",
            "xAI's web search has no such setting",
            "LiteLLM's transformation for xAI",
        ),
        Refusal(
            "include[message.output_text.logprobs]",
            "xAI includes encrypted reasoning only; logprobs is a field of its own there",
            "the parameters of /v1/responses in @langchain/xai",
        ),
    ),
    accepts=("logprobs",),
    custom_tools=False,
    server_side_tools=frozenset(
        {
            "x_keyword_search",
            "x_semantic_search",
            "x_user_search",
            "x_thread_fetch",
            "view_x_video",
            "view_image",
        }
    ),
    server_side_call_prefixes=("xs_call_",),
    usage="has counts of sources and server-side tools, and cost_in_usd_ticks",
)

_VLLM_REQUEST: Final = "vllm-project/vllm entrypoints/openai/responses/protocol.py at 010a69c"


def _ignored_by_vllm(*fields: str) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(field, "vLLM ignores it", f"ResponsesRequest in {_VLLM_REQUEST}")
        for field in fields
    )


VLLM: Final = Dialect(
    name="vllm",
    sources=(
        f"accepts, min_output_tokens: ResponsesRequest in {_VLLM_REQUEST}",
        "output_messages: of an answer only the first part is read, reasoning_history: encrypted"
        " content is an error and the first text is read, custom_tools: their items fall through"
        " (entrypoints/openai/responses/utils.py at 01ca842; pull request 55974)",
        "developer_role: roles go to the model's chat template as they are (the same file)",
        "plain_text: its chat_utils puts the texts of a message together like this",
    ),
    refuses=_ignored_by_vllm(
        "safety_identifier",
        "moderation",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "stream_options",
        "conversation",
    ),
    accepts=(
        "logit_bias",
        "seed",
        "top_k",
        "repetition_penalty",
        "ignore_eos",
        "skip_special_tokens",
        "structured_outputs",
        "mm_processor_kwargs",
        "cache_salt",
        "priority",
        "vllm_xargs",
    ),
    developer_role="system",
    plain_text="\n",
    output_messages=False,
    custom_tools=False,
    reasoning_history="text",
    min_output_tokens=1,
    web_search_tool=None,
    usage="has counts per turn",
)

LMSTUDIO: Final = Dialect(
    name="lmstudio",
    sources=(
        "result_parts: lmstudio-ai/lmstudio-bug-tracker issue 2248",
        "plain_text, developer_role, output_messages, reasoning_history: not known; what is always"
        " understood",
    ),
    developer_role="system",
    plain_text="\n",
    output_messages=False,
    result_parts=False,
    reasoning_history="none",
)

_OPENROUTER_DOCS: Final = "openrouter.ai/docs, Responses API"

OPENROUTER: Final = Dialect(
    name="openrouter",
    hosts=("openrouter.ai",),
    sources=(
        f"accepts: {_OPENROUTER_DOCS}, create a response",
        "min_output_tokens: goes on to OpenAI as it is (musistudio/claude-code-router issue 994)",
        "typed_messages: CherryHQ/cherry-studio issue 10477",
        "usage: recordings",
    ),
    refuses=(
        Refusal(
            "previous_response_id",
            "OpenRouter keeps no state",
            f"{_OPENROUTER_DOCS}, error handling",
        ),
    ),
    accepts=("models", "provider", "plugins", "top_k"),
    typed_messages=True,
    usage="has cost, cost_details and is_byok",
)

COPILOT: Final = Dialect(
    name="copilot",
    hosts=("githubcopilot.com",),
    sources=(
        "hosts: PrimeIntellect-ai/prime-agent issue 645",
        "reasoning_ids: its ids are longer than it takes, and changed ones are refused; without"
        " one it knows the item by its content (can1357/oh-my-pi issues 284 and 290,"
        " openclaw/openclaw issue 72602)",
        "web_search_tool: caozhiyuan/copilot-api issue 189",
        "usage: recordings",
    ),
    refuses=(
        Refusal(
            "service_tier",
            "GitHub Copilot refuses it",
            "PrimeIntellect-ai/prime-agent issue 645",
        ),
    ),
    reasoning_ids=False,
    web_search_tool=None,
    usage="copilot_usage stands beside it",
)

# What any provider marks unmistakably as its own is its own. The names alone do not do that (a
# client may well call its tool view_image), the prefix does.
GENERIC: Final = Dialect(
    name="generic",
    sources=(
        "developer_role: refused by DeepSeek and Qwen (num-scope/pix issue 34,"
        " haru/redmine_ai_helper issue 242)",
        "typed_messages: llama.cpp wants it of an assistant's (ggml-org/llama.cpp issue 26394);"
        " others put up with it (NousResearch/hermes-agent pull request 76695)",
        "plain_text, output_messages: vLLM",
        "result_parts: LM Studio",
        "reasoning_history: vLLM refuses encrypted reasoning, OpenAI any other",
        "min_output_tokens: OpenAI",
    ),
    developer_role="system",
    typed_messages=True,
    plain_text="\n",
    output_messages=False,
    result_parts=False,
    reasoning_history="none",
    server_side_call_prefixes=XAI.server_side_call_prefixes,
)

DIALECTS: Final = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (OPENAI, AZURE, XAI, VLLM, LMSTUDIO, OPENROUTER, COPILOT, GENERIC)
    }
)


def dialect_named(name: str) -> Dialect:
    """The dialect of that name. Raises ValueError naming the ones there are."""
    try:
        return DIALECTS[name]
    except KeyError:
        known = ", ".join(sorted(DIALECTS))
        raise ValueError(f"unknown dialect {name!r}; known are: {known}") from None


def dialect_for_url(url: str) -> Dialect:
    """The dialect of the upstream at that base URL; GENERIC where its host does not tell.

    What people run themselves (vLLM, LM Studio) has any host, so that only its name selects it.
    """
    rest = url.partition("://")[2] or url
    authority = rest.replace("?", "/").replace("#", "/").replace("\\", "/").partition("/")[0]
    host = authority.rpartition("@")[2].partition(":")[0].rstrip(".").lower()
    for dialect in DIALECTS.values():
        if any(f".{host}".endswith(f".{known}") for known in dialect.hosts):
            return dialect
    return GENERIC
