"""FrontendArgs: the flags of `vllm serve` that are the server's own, and what each means here."""

from dataclasses import dataclass
from typing import Any

from .meaning import no_meaning, not_served

HTTP = "the HTTP server has its own way and limits"
PROXY = "put a proxy in front of the server"
TEXTS = "the texts of a conversation are the model's"
PLUGINS = "no code of others runs in the server; --tool-call-parser has the formats"


@dataclass(kw_only=True)
class FrontendArgs:
    """The flags of a server, but for those that are served: --host, --port, --lora-modules, --api-key, --ssl-certfile,
    --ssl-keyfile and --ssl-ca-certs."""

    ssl_cert_reqs: int = not_served(0, "with --ssl-ca-certs, clients have to show a certificate")
    ssl_ciphers: str | None = not_served(None, "the server takes what TLS 1.2 and 1.3 recommend")
    enable_ssl_refresh: bool = no_meaning(False, "files of certificates are always read again when they change")
    middleware: list[str] | None = not_served(None, PROXY)
    uds: str | None = not_served(None, "the server listens on --host and --port")
    headless: bool = not_served(False, "a server is one engine and its front end")
    chat_template: str | None = not_served(None, TEXTS)
    chat_template_content_format: str = no_meaning("auto", TEXTS)
    default_chat_template_kwargs: dict[str, Any] | None = not_served(None, TEXTS)
    response_role: str = no_meaning("assistant", HTTP)
    trust_request_chat_template: bool = no_meaning(False, "the template of a request runs in a sandbox")
    enable_auto_tool_choice: bool = no_meaning(False, "calls are read wherever a request has tools")
    exclude_tools_when_tool_choice_none: bool = no_meaning(False, "the chat template gets the tools that a request has")
    tool_parser_plugin: str = not_served("", PLUGINS)
    tool_server: str | None = not_served(None, "the client runs the tools")
    return_tokens_as_token_ids: bool = no_meaning(False, "an answer has texts and token ids")
    enable_prompt_tokens_details: bool = no_meaning(False, "an answer always tells its cached tokens")
    enable_force_include_usage: bool = no_meaning(False, "an answer always tells its counts")
    enable_server_load_tracking: bool = no_meaning(False, "`blora info` shows the load")
    enable_tokenizer_info_endpoint: bool = no_meaning(False, HTTP)
    enable_offline_docs: bool = no_meaning(False, HTTP)
    disable_fastapi_docs: bool = no_meaning(False, HTTP)
    disable_frontend_multiprocessing: bool = no_meaning(False, "the engine has a process of its own")
    api_server_count: int | None = no_meaning(None, "one process answers all clients")
    grpc: bool = no_meaning(False, "blora always serves gRPC")
    root_path: str | None = no_meaning(None, HTTP)
    allow_credentials: bool = no_meaning(False, HTTP)
    allowed_methods: list[str] | None = no_meaning(None, HTTP)
    allowed_headers: list[str] | None = no_meaning(None, HTTP)
    enable_request_id_headers: bool = no_meaning(False, HTTP)
    h11_max_incomplete_event_size: int | None = no_meaning(None, HTTP)
    h11_max_header_count: int | None = no_meaning(None, HTTP)
    uvicorn_log_level: str = no_meaning("info", HTTP)
    disable_uvicorn_access_log: bool = no_meaning(False, HTTP)
    disable_access_log_for_endpoints: str | None = no_meaning(None, HTTP)
    log_config_file: str | None = no_meaning(None, "blora logs to its standard error")
    max_log_len: int | None = no_meaning(None, "blora logs no prompts")
    enable_log_outputs: bool = no_meaning(False, "blora logs no answers")
    enable_log_deltas: bool = no_meaning(False, "blora logs no answers")
