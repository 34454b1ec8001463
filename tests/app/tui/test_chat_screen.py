"""The chat screen, driven by keys against a fake server."""

from __future__ import annotations

import json

import pytest
from textual.widgets import Input, Markdown, Static, TextArea

from app.client import SamplingChoice
from app.history import ChatHistory
from app.tui.app import ShardwiseApp
from app.tui.conversation import HistoryStore
from app.tui.screens.question import QuestionScreen
from app.tui.widgets.banner import Banner
from app.tui.widgets.chats_panel import ChatList, ChatsPanel
from app.tui.widgets.message_view import MessageView
from app.tui.widgets.prompt_input import PromptInput
from app.tui.widgets.sampling_panel import SamplingPanel
from app.tui.widgets.status_line import StatusLine
from tests.fakes.fake_server import FakeServer, serving
from tests.fakes.tui import Outside, chat_screen, on_screen, say, until

FENCED = ["Look:\n\n", "``", "`py\n", "x = 1\n", "y = 2\n", "```", "\n\nand <b>so</b> on."]


def stored(outside: Outside) -> ChatHistory:
    return ChatHistory(outside.folder / "chats.sqlite3")


async def test_a_message_is_answered_shown_and_kept(connected, outside: Outside, fake: FakeServer) -> None:
    async with connected.run_test() as pilot:
        await say(pilot, "hi")
        screen = await chat_screen(pilot)
        view = screen.query(MessageView).last()
        assert view.query_one(Markdown).source == "Hello from the fake."
        line = screen.query_one(StatusLine).render_line_text()
        assert "fake/model" in line
        assert "15/4,096" in line
        assert "TTFT" in line
    history = stored(outside)
    turns = history.turns(history.chats()[0].id)
    assert [(turn.role, turn.content, turn.state) for turn in turns] == [
        ("user", "hi", "complete"),
        ("assistant", "Hello from the fake.", "complete"),
    ]
    assert turns[1].statistics.completion_tokens == 4
    history.close()


async def test_keys_write_several_lines_and_enter_sends(connected, fake: FakeServer) -> None:
    async with connected.run_test() as pilot:
        screen = await chat_screen(pilot)
        await pilot.press("a", "ctrl+j", "b", "shift+enter", "c", "enter")
        await until(pilot, lambda: len(screen.conversation.entries) == 2 and not screen.answering)
        assert fake.requests[0]["messages"] == [{"role": "user", "content": "a\nb\nc"}]
        await pilot.press("space", "enter")
        await pilot.pause()
        assert len(fake.requests) == 1


async def test_an_open_fence_is_plain_and_a_closed_one_is_code(connected, fake: FakeServer) -> None:
    fake.pieces, fake.hold_after = FENCED, 5
    async with connected.run_test() as pilot:
        await say(pilot, "code please", wait=False)
        screen = await chat_screen(pilot)
        view = screen.query(MessageView).last()
        await until(pilot, lambda: "y = 2" in str(view.query_one(".open", Static).content))
        assert "x = 1" not in view.query_one(Markdown).source
        fake.release.set()
        await until(pilot, lambda: not screen.answering)
        await pilot.pause()
        assert view.query_one(Markdown).source == "".join(FENCED)
        assert len(view.query("MarkdownFence")) == 1
        assert not view.query_one(".open").has_class("-shown")
        shown = "".join(str(block.render()) for block in view.query("MarkdownParagraph"))
        assert "<b>so</b>" in shown


async def test_escape_stops_and_keeps_the_half_answer(connected, outside: Outside, fake: FakeServer) -> None:
    fake.hold_after = 2
    async with connected.run_test() as pilot:
        await say(pilot, "long", wait=False)
        screen = await chat_screen(pilot)
        view = screen.query(MessageView).last()
        await until(pilot, lambda: view.answer == "Hello from")
        await pilot.press("escape")
        await until(pilot, lambda: not screen.answering)
        assert "stopped" in str(view.query_one(".note", Static).content)
        assert view.query_one(Markdown).source == "Hello from"
    assert fake.cancelled.wait(5)
    history = stored(outside)
    last = history.turns(history.chats()[0].id)[-1]
    assert (last.content, last.state) == ("Hello from", "stopped")
    history.close()


async def test_a_broken_answer_is_kept_and_marked(connected, outside: Outside, fake: FakeServer) -> None:
    fake.break_after = 2
    async with connected.run_test() as pilot:
        await say(pilot, "hi")
        screen = await chat_screen(pilot)
        view = screen.query(MessageView).last()
        assert view.query_one(Markdown).source == "Hello from"
        assert "broke off" in str(view.query_one(".note", Static).content)
        fake.break_after = None
        await pilot.press("f5")
        await until(pilot, lambda: len(fake.requests) == 2 and not screen.answering)
        assert screen.conversation.entries[-1].state == "complete"
        assert fake.requests[1]["messages"] == [{"role": "user", "content": "hi"}]
    history = stored(outside)
    assert [turn.state for turn in history.turns(history.chats()[0].id)] == ["complete", "complete"]
    history.close()


async def test_a_refused_message_says_why(connected, fake: FakeServer) -> None:
    fake.refuse = "The prompt has 5000 tokens, the context 4096.\nShorten it."
    async with connected.run_test() as pilot:
        await say(pilot, "hi")
        screen = await chat_screen(pilot)
        assert "5000 tokens" in str(screen.query(MessageView).last().query_one(".note", Static).content)


async def test_edit_takes_the_last_message_back(connected, outside: Outside, fake: FakeServer) -> None:
    async with connected.run_test() as pilot:
        await say(pilot, "first")
        await say(pilot, "secnd")
        screen = await chat_screen(pilot)
        await pilot.press("f4")
        await until(pilot, lambda: screen.query_one(PromptInput).text == "secnd")
        assert len(screen.conversation.entries) == 2
        await say(pilot, "second")
        assert [each["content"] for each in fake.requests[-1]["messages"]] == [
            "first",
            "Hello from the fake.",
            "second",
        ]
    history = stored(outside)
    contents = [turn.content for turn in history.turns(history.chats()[0].id)]
    assert contents == ["first", "Hello from the fake.", "second", "Hello from the fake."]
    history.close()


async def test_copy_puts_the_answer_into_the_clipboard(connected) -> None:
    async with connected.run_test() as pilot:
        await say(pilot, "hi")
        await pilot.press("f8")
        assert connected.clipboard == "Hello from the fake."


async def test_model_text_is_no_markup_and_no_control(connected, fake: FakeServer) -> None:
    fake.pieces = ["[bold]x[/bold] \x1b[31mred\x1b]0;title\x07 [@click=app.quit]quit[/] [a](http://evil)"]
    async with connected.run_test() as pilot:
        await say(pilot, "[b]me[/b]\u202e")
        screen = await chat_screen(pilot)
        view = screen.query(MessageView).last()
        await until(pilot, lambda: bool(view.query("MarkdownParagraph")))
        shown = str(view.query_one("MarkdownParagraph").render())
        assert shown == "[bold]x[/bold] red [@click=app.quit]quit[/] a"
        assert str(screen.query(MessageView).first().query_one(".plain", Static).render()) == "[b]me[/b]"


async def test_sampling_panel_changes_the_next_request_and_is_remembered(
    connected, outside: Outside, fake: FakeServer
) -> None:
    async with connected.run_test() as pilot:
        screen = await chat_screen(pilot)
        await pilot.press("f3")
        await until(pilot, lambda: bool(screen.query(SamplingPanel)))
        panel = screen.query_one(SamplingPanel)
        panel.query_one("#system", TextArea).text = "Be brief."
        panel.query_one("#field-temperature", Input).value = "0.2"
        panel.query_one("#field-top_k", Input).value = "7"
        await until(pilot, lambda: screen.conversation.sampling == SamplingChoice(temperature=0.2, top_k=7))
        panel.query_one("#field-temperature", Input).value = "9"
        await until(pilot, lambda: "from 0 to 2" in str(panel.query_one(".problem", Static).content))
        await pilot.press("escape")
        await until(pilot, lambda: not screen.query(SamplingPanel))
        await say(pilot, "hi")
    sent = fake.requests[0]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["top_k"]) == (0.2, 7)
    remembered = json.loads((outside.folder / "tui.json").read_text())
    assert (remembered["system"], remembered["sampling"]["top_k"]) == ("Be brief.", 7)


async def test_chats_are_searched_opened_renamed_and_deleted(connected, fake: FakeServer) -> None:
    async with connected.run_test(size=(130, 40)) as pilot:
        screen = await chat_screen(pilot)
        await say(pilot, "about elephants")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: screen.conversation.entries == [])
        await say(pilot, "about giraffes")
        await pilot.press("f2")
        await until(pilot, lambda: bool(screen.query(ChatList)) and screen.query_one(ChatList).option_count == 2)
        await pilot.press(*"eleph")
        await until(pilot, lambda: screen.query_one(ChatList).option_count == 1)
        await pilot.press("down", "enter")
        await until(pilot, lambda: screen.conversation.entries[0].content == "about elephants")
        screen.query_one(ChatList).focus()
        await pilot.press("r")
        await on_screen(pilot, QuestionScreen)
        pilot.app.screen.query_one(Input).value = "Elephants!"
        await pilot.press("enter")
        chats = screen.query_one(ChatList)
        await until(pilot, lambda: chats.option_count == 1 and "Elephants!" in str(chats.options[0].prompt))
        chats.focus()
        await pilot.press("d")
        await on_screen(pilot, QuestionScreen)
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.screen is screen and chats.option_count == 0)
        assert screen.conversation.entries == []
        screen.query_one("#search", Input).value = ""
        await until(pilot, lambda: chats.option_count == 1)
        await pilot.press("escape")


async def test_export_writes_the_chat(connected, outside: Outside) -> None:
    async with connected.run_test() as pilot:
        await say(pilot, "hi there")
        screen = await chat_screen(pilot)
        screen.export_current("markdown")
        await until(pilot, (outside.folder / "shardwise-hi-there.md").exists)


async def test_old_messages_are_mounted_when_asked_for(connected, outside: Outside) -> None:
    history = stored(outside)
    chat = history.add_chat("fake/model", "long one").id
    for number in range(70):
        history.add_turn(chat, "user" if number % 2 == 0 else "assistant", f"turn {number}", "fake/model")
    history.close()
    async with connected.run_test(size=(130, 40)) as pilot:
        screen = await chat_screen(pilot)
        await pilot.press("f2")
        await until(pilot, lambda: bool(screen.query(ChatList)) and screen.query_one(ChatList).option_count == 1)
        await pilot.press("down", "enter")
        await until(pilot, lambda: len(screen.query(MessageView)) == 30)
        for count in (60, 70):
            screen.query_one("#earlier").focus()
            await pilot.press("enter")
            await until(pilot, lambda count=count: len(screen.query(MessageView)) == count)
        await until(pilot, lambda: not screen.query("#earlier"))
        assert [view.entry.content for view in screen.query(MessageView)] == [f"turn {n}" for n in range(70)]


async def test_a_lost_server_is_told_and_taken_up_again(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.tui.app.WATCH_SECONDS", 0.05)
    monkeypatch.setattr("app.tui.app.LOST_SECONDS", 0.05)
    fake = FakeServer(context=100)
    app: ShardwiseApp | None = None
    with serving(fake):
        app = ShardwiseApp(outside.dependencies(), connect=fake.url)
        context = app.run_test()
        pilot = await context.__aenter__()
        await say(pilot, "hi")
    screen = await chat_screen(pilot)
    banner = screen.query_one(Banner)
    await until(pilot, lambda: "No server answers" in banner.text)
    await say(pilot, "are you there?")
    assert screen.conversation.entries[-1].state == "interrupted"
    fake.context = 200
    with serving(fake):
        await until(pilot, lambda: banner.text == "")
        assert screen.query_one(StatusLine).context == 200
        await pilot.press("f5")
        await until(pilot, lambda: screen.conversation.entries[-1].state == "complete")
        fake.status = "restarting"
        await until(pilot, lambda: "restarted" in banner.text)
        await context.__aexit__(None, None, None)


async def test_quitting_in_mid_answer_keeps_what_came(connected, outside: Outside, fake: FakeServer) -> None:
    fake.hold_after = 3
    async with connected.run_test() as pilot:
        await say(pilot, "hi", wait=False)
        screen = await chat_screen(pilot)
        await until(pilot, lambda: screen.query(MessageView).last().answer == "Hello from the")
        await pilot.press("ctrl+q")
    history = stored(outside)
    last = history.turns(history.chats()[0].id)[-1]
    assert (last.content, last.state) == ("Hello from the", "stopped")
    history.close()


async def test_a_broken_database_is_told_and_chatting_goes_on(fake: FakeServer, outside: Outside) -> None:
    (outside.folder / "chats.sqlite3").write_bytes(b"no database " * 1000)
    app = ShardwiseApp(outside.dependencies(), connect=fake.url)
    async with app.run_test() as pilot:
        await say(pilot, "hi")
        screen = await chat_screen(pilot)
        assert screen.conversation.entries[-1].content == "Hello from the fake."
        assert "chat not saved" in screen.query_one(StatusLine).render_line_text()
        assert any("not being saved" in each.message for each in app._notifications)


async def test_a_disk_that_fills_up_is_told_once_and_caught_up_with(connected, outside: Outside) -> None:
    async with connected.run_test() as pilot:
        screen = await chat_screen(pilot)
        store: HistoryStore = connected._store
        store._history._db.execute("PRAGMA query_only = ON")
        await say(pilot, "hi")
        assert "chat not saved" in screen.query_one(StatusLine).render_line_text()
        store._history._db.execute("PRAGMA query_only = OFF")
        await say(pilot, "again")
        assert "chat not saved" not in screen.query_one(StatusLine).render_line_text()
    history = stored(outside)
    assert len(history.turns(history.chats()[0].id)) == 4
    history.close()


async def test_panels_share_a_narrow_screen_and_stand_side_by_side_on_a_wide_one(connected) -> None:
    async with connected.run_test(size=(80, 24)) as pilot:
        screen = await chat_screen(pilot)
        await pilot.press("f2")
        await until(pilot, lambda: bool(screen.query(ChatsPanel)))
        await pilot.press("f3")
        await until(pilot, lambda: bool(screen.query(SamplingPanel)) and not screen.query(ChatsPanel))
        await pilot.resize_terminal(160, 48)
        await pilot.press("f2")
        await until(pilot, lambda: bool(screen.query(SamplingPanel)) and bool(screen.query(ChatsPanel)))
