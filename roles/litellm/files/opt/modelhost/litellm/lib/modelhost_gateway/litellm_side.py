"""All that knows LiteLLM. Nothing of it is imported before it is needed, so that tests need no LiteLLM."""

from __future__ import annotations

import logging
import os
from typing import Any

from . import connections
from .errors import Refused
from .front import USER, Front
from .keys import KeyStore, User
from .limits import Limits
from .replicas import Replicas
from .usage import Usage

LOG = logging.getLogger("modelhost.gateway")

#: Written by the role: hashes of the keys, and what each user may ask for.
KEY_FILE = os.environ.get("MODELHOST_KEY_HASHES", "/etc/modelhost/litellm/key_hashes.json")
MAX_BYTES = int(os.environ.get("MODELHOST_MAX_REQUEST_BYTES", 32 << 20))
BODY_SECONDS = float(os.environ.get("MODELHOST_BODY_TIMEOUT", 120))


async def user_api_key_auth(request: Any, api_key: str) -> Any:
    """LiteLLM's `custom_auth`: the user whom `Front` has let in, and nobody by any other way."""
    from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth

    user = request.scope.get(USER)
    if not isinstance(user, User):
        raise ProxyException(message="No.", type="authentication_error", param=None, code=401)
    # LiteLLM gets a name for the log and the hash, never the key itself, and the list of
    # models once more: its own check runs after this one.
    return UserAPIKeyAuth(
        api_key=user.sha256,
        token=user.sha256,
        key_alias=user.name,
        user_id=user.name,
        user_role=LitellmUserRoles.INTERNAL_USER,
        models=list(user.models),
    )


def _make_counter() -> Any:
    """LiteLLM's interface for a counter, answered by vLLM's own /v1/messages/count_tokens."""
    import httpx
    from litellm.llms.base_llm.base_utils import BaseTokenCounter
    from litellm.types.utils import TokenCountResponse

    class EngineTokenCounter(BaseTokenCounter):
        """Asks the engine, whose template and tokenizer decide."""

        client: Any = None

        def should_use_token_counting_api(self, custom_llm_provider: str | None = None) -> bool:
            return custom_llm_provider == "hosted_vllm"

        async def count_tokens(
            self,
            model_to_use: str,
            messages: Any,
            contents: Any,
            deployment: Any = None,
            request_model: str = "",
            tools: Any = None,
            system: Any = None,
            messages_format: str = "openai",
            **_: Any,
        ) -> Any:
            """None leaves it to LiteLLM's estimate, for instance while the engine is down."""
            params = (deployment or {}).get("litellm_params", {})
            base = str(params.get("api_base") or "").rstrip("/").removesuffix("/v1")
            if messages_format != "anthropic" or not base or not messages:
                return None
            body = {"model": model_to_use, "messages": messages}
            if tools:
                body["tools"] = tools
            if system:
                body["system"] = system
            key = str(params.get("api_key") or "")
            if key.startswith("os.environ/"):
                key = os.environ.get(key[len("os.environ/") :], "")
            try:
                if EngineTokenCounter.client is None:
                    # No proxy from the environment: the engine is on this host or network.
                    EngineTokenCounter.client = httpx.AsyncClient(timeout=30, trust_env=False)
                answer = await EngineTokenCounter.client.post(
                    base + "/v1/messages/count_tokens", json=body, headers={"authorization": "Bearer " + key}
                )
                answer.raise_for_status()
                total = int(answer.json()["input_tokens"])
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                LOG.warning("count_tokens: the engine did not count (%s), so LiteLLM estimates", type(error).__name__)
                return None
            return TokenCountResponse(
                total_tokens=total, request_model=request_model, model_used=model_to_use, tokenizer_type="vllm"
            )

    return EngineTokenCounter()


def _make_chooser() -> Any:
    """LiteLLM's interface for the choice among replicas, answered by `Replicas`."""
    from litellm.integrations.custom_logger import CustomLogger

    class Chooser(CustomLogger):
        replicas = Replicas()

        async def async_filter_deployments(
            self,
            model: str,
            healthy_deployments: list,
            messages: Any,
            request_kwargs: dict | None = None,
            parent_otel_span: Any = None,
        ) -> list:
            return self.replicas.standing(healthy_deployments)

        async def async_post_call_failure_deployment_hook(
            self, request_data: Any, exception: Exception, call_type: Any, fallback_depth: int | None = None
        ) -> None:
            self.replicas.failed(request_data.get("model_info"), exception)

    return Chooser()


def _write_down_at_the_end(limits: Limits) -> None:
    """LiteLLM calls its shutdown event when the last request has ended; a process that SIGTERM ends runs no atexit."""
    from litellm.proxy import proxy_server

    end = proxy_server.proxy_shutdown_event

    async def write_down_and_end(*arguments: Any, **options: Any) -> None:
        limits.close()
        await end(*arguments, **options)

    proxy_server.proxy_shutdown_event = write_down_and_end


def set_up() -> None:
    """Called by LiteLLM in each worker before it serves."""
    import litellm
    from litellm.llms.vllm.common_utils import VLLMModelInfo
    from litellm.proxy.proxy_server import app
    from uvicorn.protocols.http.h11_impl import H11Protocol

    # Starlette builds its stack before this hook runs, so the front is put around what is there.
    if app.middleware_stack is None:
        app.middleware_stack = app.build_middleware_stack()
    store = KeyStore(KEY_FILE)
    store.refresh()
    limits = Limits(Refused, usage=Usage(users=lambda: store.names))
    app.middleware_stack = Front(app.middleware_stack, store, limits, max_bytes=MAX_BYTES, body_seconds=BODY_SECONDS)
    _write_down_at_the_end(limits)
    counter = _make_counter()
    VLLMModelInfo.get_token_counter = lambda _self: counter
    litellm.callbacks.append(_make_chooser())
    connections.guard(H11Protocol)
