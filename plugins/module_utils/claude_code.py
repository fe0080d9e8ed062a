# MIT licence (see LICENSE)
"""What Claude Code is told about a gateway. Runs on the controller; settings and snippets both come from here."""

from __future__ import annotations

import shlex
from typing import Any, Optional

#: Tools that agentic coding can do without. Each definition is sent with each request, before the user has typed
#: anything: 2.1.330 sends 91 KB interactively with all of them, 17 KB with the four that are left.
LEAN_DENY = [
    "Agent",
    "AskUserQuestion",
    "CronCreate",
    "CronDelete",
    "CronList",
    "EnterPlanMode",
    "EnterWorktree",
    "ExitPlanMode",
    "ExitWorktree",
    "ListAgents",
    "Monitor",
    "NotebookEdit",
    "ReportFindings",
    "ScheduleWakeup",
    "SendMessage",
    "Skill",
    "TaskStop",
    "WebFetch",
    "Workflow",
]


def max_output(max_context: int, wanted: int = 0) -> int:
    """Tokens for one answer: what is wanted, or a quarter of the context between 4K and 16K."""
    if wanted:
        return wanted
    return max(4096, min(16384, max_context // 4))


def environment(
    base_url: str,
    model: str,
    max_context_tokens: int,
    max_output_tokens: int = 0,
    timeout_seconds: int = 1800,
    extra: Optional[dict[str, Any]] = None,
) -> dict[str, str]:
    """The environment variables that point Claude Code at a gateway."""
    env: dict[str, Any] = {
        "ANTHROPIC_BASE_URL": base_url.rstrip("/"),
        "ANTHROPIC_MODEL": model,
        # Every alias, or a sub-agent or a background call asks for a model that nobody serves.
        "ANTHROPIC_DEFAULT_OPUS_MODEL": model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "ANTHROPIC_DEFAULT_FABLE_MODEL": model,
        # Heeded for names that Claude Code does not know; without it 200K are assumed.
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": max_context_tokens,
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": max_output(max_context_tokens, max_output_tokens),
        # These two vary from turn to turn and would spoil the engine's prefix cache.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_TOTAL_TOKENS_REMINDER": "off",
        # Fields of betas are refused by engines.
        "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
        # An update would replace the version that was tested with this gateway.
        "DISABLE_AUTOUPDATER": "1",
        # The first prefill on a slow engine is silent for minutes.
        "API_TIMEOUT_MS": timeout_seconds * 1000,
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": timeout_seconds * 1000,
    }
    env.update(extra or {})
    return {name: str(value) for name, value in env.items() if value is not None}


def settings(
    env: dict[str, str],
    key_file: str,
    token: str = "",
    profile: str = "standard",
    permission_mode: str = "default",
    deny: Optional[list[str]] = None,
) -> dict[str, Any]:
    """Content for ~/.claude/settings.json. With `token` the key stands in it, else a helper reads the file."""
    env = dict(env)
    found: dict[str, Any] = {"env": env}
    if token:
        env["ANTHROPIC_AUTH_TOKEN"] = token
    else:
        found["apiKeyHelper"] = "cat " + shlex.quote(key_file)
    found["permissions"] = {
        "deny": sorted({*(deny or []), *(LEAN_DENY if profile == "lean" else [])}),
        "defaultMode": permission_mode,
        # Auto mode has another model judge each call, by a field that no engine behind a gateway answers to; the first
        # start would offer it with "yes" preselected.
        "disableAutoMode": "disable",
    }
    return found


def snippet(env: dict[str, str], key_file: str) -> str:
    """Shell lines that do the same for one terminal; the key is read when they run."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    lines.insert(1, f'export ANTHROPIC_AUTH_TOKEN="$(cat {shlex.quote(key_file)})"')
    return "\n".join(lines)
