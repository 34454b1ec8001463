"""The chat database: what is committed stays, what cannot be kept is said."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.client import AnswerStatistics, SamplingChoice
from app.history import MIGRATIONS, ChatHistory, HistoryError
from app.history_export import to_json, to_markdown, write_export

WRITER = """
import sys
from pathlib import Path
from app.history import ChatHistory
history = ChatHistory(Path(sys.argv[1]))
chat = history.add_chat("m", "loop").id
for number in range(100_000):
    turn = history.add_turn(chat, "assistant", "", "m", "streaming")
    history.change_turn(turn, f"turn {number} " + "x" * 2000, "complete")
    print(number, flush=True)
"""


@pytest.fixture
def history(tmp_path: Path):
    opened = ChatHistory(tmp_path / "data" / "chats.sqlite3")
    yield opened
    opened.close()


def test_chats_and_turns_come_back_as_they_were(history: ChatHistory) -> None:
    sampling = SamplingChoice(temperature=0.5, seed=7)
    chat = history.add_chat("starter", "A\x1b[31m title\n", "be brief", sampling)
    history.add_turn(chat.id, "user", "hello \ud83d")
    answer = history.add_turn(chat.id, "assistant", "", "starter", "streaming")
    figures = AnswerStatistics(5, 9, 0.25, 80.0)
    history.change_turn(answer, "hi there", "stopped", figures)
    again = history.chat(chat.id)
    assert again is not None
    assert (again.title, again.system, again.sampling) == ("A title", "be brief", sampling)
    first, second = history.turns(chat.id)
    assert (first.role, first.content, first.state) == ("user", "hello ?", "complete")
    assert (second.content, second.state, second.statistics) == ("hi there", "stopped", figures)
    assert second.message.role == "assistant"


def test_files_and_folder_are_private(history: ChatHistory) -> None:
    history.add_chat("m", "t")
    assert history.path is not None
    folder = history.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert "chats.sqlite3-wal" in modes


def test_search_finds_words_prefixes_accents_titles_and_unspaced_scripts(history: ChatHistory) -> None:
    tea = history.add_chat("m", "About tea").id
    history.add_turn(tea, "user", "How long does Crème brûlée keep?")
    code = history.add_chat("m", "Sorting").id
    history.add_turn(code, "assistant", "Use `sorted()` with a key, 100%_sure. 東京都に住んでいます")

    def found(words: str) -> list[int]:
        return [chat.id for chat in history.chats(words)]

    assert found("") == [code, tea]
    assert found("creme brul") == [tea]
    assert found("TEA") == [tea]
    assert found("京都") == [code]
    assert found("0%_s") == [code]
    assert found('"quoted AND (') == []
    history.delete(tea)
    assert found("creme") == []
    assert history.turns(tea) == ()


def test_changed_and_dropped_turns_leave_the_index(history: ChatHistory) -> None:
    chat = history.add_chat("m", "t").id
    history.add_turn(chat, "user", "question")
    turn = history.add_turn(chat, "assistant", "elephants")
    history.change_turn(turn, "giraffes", "complete")
    assert history.chats("elephants") == ()
    assert len(history.chats("giraffes")) == 1
    history.drop_turns_from(chat, turn)
    assert history.chats("giraffes") == ()
    assert [each.content for each in history.turns(chat)] == ["question"]


def test_rename_and_change(history: ChatHistory) -> None:
    chat = history.add_chat("m", "old").id
    history.rename(chat, "new")
    history.change_chat(chat, "other", "sys", SamplingChoice(top_k=3))
    again = history.chat(chat)
    assert again is not None
    assert (again.title, again.model, again.system, again.sampling.top_k) == ("new", "other", "sys", 3)


def test_an_older_schema_is_migrated_and_a_newer_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    old = ChatHistory(path)
    chat = old.add_chat("m", "kept").id
    old.close()
    newer = (*MIGRATIONS, ("ALTER TABLE chats ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0",))
    lifted = ChatHistory(path, newer)
    assert lifted.chats()[0].id == chat
    lifted.close()
    with pytest.raises(HistoryError, match="newer version") as error:
        ChatHistory(path)
    assert "version 2" in error.value.why


def test_a_failed_migration_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    ChatHistory(path).close()
    with pytest.raises(HistoryError):
        ChatHistory(path, (*MIGRATIONS, ("CREATE TABLE half (id)", "no such statement")))
    ChatHistory(path).close()
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    database.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    path.write_bytes(b"not a database at all, " * 100)
    with pytest.raises(HistoryError, match="not being saved"):
        ChatHistory(path)


def test_a_full_disk_fails_one_write_and_keeps_the_rest(history: ChatHistory) -> None:
    chat = history.add_chat("m", "t").id
    pages = history._db.execute("PRAGMA page_count").fetchone()[0]
    history._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(HistoryError, match="full"):
        history.add_turn(chat, "user", "x" * 1_000_000)
    assert history.turns(chat) == ()
    history._db.execute("PRAGMA max_page_count = 1000000")
    history.add_turn(chat, "user", "fits")
    assert len(history.turns(chat)) == 1


def test_a_read_only_database_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    ChatHistory(path).close()
    history = ChatHistory(path)
    history._db.execute("PRAGMA query_only = ON")
    with pytest.raises(HistoryError, match="readonly"):
        history.add_chat("m", "t")
    assert history.chats() == ()
    history.close()


def test_killed_in_mid_write_keeps_every_committed_turn(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    for _ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.25)
        writer.send_signal(signal.SIGKILL)
        last = int(writer.stdout.read().split()[-1])
        writer.wait()
        writer.stdout.close()
        history = ChatHistory(path)
        assert history._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        history._db.execute("INSERT INTO turns_text (turns_text) VALUES ('integrity-check')")
        turns = [turn for turn in history.turns(history.chats()[0].id) if turn.state == "complete"]
        assert len(turns) >= last + 1
        assert turns[last].content.startswith(f"turn {last} ")
        history.close()


def test_exports_are_clean_private_and_never_overwrite(history: ChatHistory, tmp_path: Path) -> None:
    chat = history.add_chat("starter", "Tea / time?", "be\x1b[1m brief")
    history.add_turn(chat.id, "user", "hello")
    history.add_turn(chat.id, "assistant", "```py\nx\x1b]0;t\x07\n```", "starter", "stopped")
    turns = history.turns(chat.id)
    markdown = to_markdown(chat, turns)
    assert "# Tea / time?" in markdown
    assert "## You\n\nhello" in markdown
    assert "```py\nx\n```" in markdown
    assert "*(stopped)*" in markdown
    assert "\x1b" not in markdown
    document = json.loads(to_json(chat, turns))
    assert document["system"] == "be brief"
    assert [each["role"] for each in document["messages"]] == ["user", "assistant"]
    first = write_export(chat, turns, tmp_path, "markdown")
    second = write_export(chat, turns, tmp_path, "json")
    third = write_export(chat, turns, tmp_path, "markdown")
    assert [each.name for each in (first, second, third)] == [
        "shardwise-tea-time.md",
        "shardwise-tea-time.json",
        "shardwise-tea-time-2.md",
    ]
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    with pytest.raises(HistoryError, match="exported"):
        write_export(chat, turns, tmp_path / "missing", "json")
