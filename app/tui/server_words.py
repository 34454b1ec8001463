"""A server's state as words for somebody who chats. Pure."""

from __future__ import annotations

from app.health_view import Health


def state_in_words(health: Health) -> str:
    """What it means that a server answers and is not ready, or mends something; empty where all is well."""
    if health.status == "degraded" and health.engines:
        main = health.engines[0]
        return f"{main.model} is away ({main.state}); the fallback {health.fallback} answers new messages meanwhile."
    if health.status in ("ready", "restarting") and (trouble := trouble_in_words(health)):
        return trouble
    words = {
        "ready": "",
        "starting": "The engine is starting; messages wait for it.",
        "restarting": "The engine is being restarted; answers go on when it is back.",
        "draining": "The server is shutting down: it finishes its answers and takes no new messages.",
    }
    if health.status in words:
        return words[health.status]
    errors = [engine.error for engine in health.engines if engine.error]
    return f"The engine has failed: {errors[0] if errors else 'F9 shows the log'}"


def trouble_in_words(health: Health | None) -> str:
    """What an engine that serves is mending; empty where it mends nothing."""
    troubles = [engine.trouble for engine in health.engines if engine.trouble] if health else []
    return f"A machine was lost, going on in a moment: {troubles[0]}" if troubles else ""
