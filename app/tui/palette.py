"""What the command palette offers beside Textual's own: everything that keys do, and what has no key."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from textual.app import SystemCommand

from app.tui.screens.chat import ChatScreen


def chat_commands(screen: ChatScreen) -> Iterable[SystemCommand]:
    """What can be done with a chat."""
    yield SystemCommand("What fits", "Plan models, machines and settings", screen.action_plan)
    yield SystemCommand("Memory", "Predicted and measured memory by term", screen.action_show_memory)
    yield SystemCommand("Cache", "Where cached pages lie", screen.action_show_cache)
    yield SystemCommand("New chat", "Start a new chat", screen.action_new_chat)
    yield SystemCommand("Chats", "All chats, with search", screen.action_toggle_chats)
    yield SystemCommand("Settings", "System prompt and sampling", screen.action_toggle_sampling)
    yield SystemCommand("Stop answer", "Stop the answer; what has come stays", screen.action_stop)
    yield SystemCommand("Regenerate", "Another answer to the same message", screen.action_regenerate)
    yield SystemCommand("Edit", "Take the last message back to edit it", screen.action_edit_last)
    yield SystemCommand("Copy answer", "Copy the last answer", screen.action_copy_answer)
    for kind in ("markdown", "json"):
        yield SystemCommand(
            f"Export chat as {kind}", "Write this chat to a file in the current folder", _export(screen, kind)
        )


def _export(screen: ChatScreen, kind: str) -> Callable[[], object]:
    return lambda: screen.export_current(kind)
