"""The chat against an endpoint that speaks OpenAI's streaming protocol, and a record store in memory."""

from __future__ import annotations

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from latentkv.chat import ChatError, Conversation, Engine, Reading, _talk, parse_metrics

METRICS = """# HELP vllm:request_success_total x
vllm:request_success_total{engine="0",finished_reason="stop"} %d
vllm:request_success_total{engine="0",finished_reason="length"} 0
vllm:prompt_tokens_by_source_total{engine="0",source="local_cache_hit"} %d
latentkv:restored_tokens_total{engine="0"} %d
latentkv:restored_bytes_total{engine="0"} %d
latentkv:restore_seconds_total{engine="0"} %f
"""


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[list[dict]] = []
    refuse = False

    def log_message(self, *arguments) -> None:
        return

    def _send(self, body: str, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        if self.path == "/metrics":
            n = len(self.asked)
            return self._send(METRICS % (n, 64 * n, 640 * n, 1000 * n, 0.25 * n))
        self._send(json.dumps({"data": [{"id": "small"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refuse:
            return self._send("too long", 400)
        self.asked.append(body)
        events = [{"choices": [{"delta": {"content": piece}}]} for piece in ("Go", "od", " day")]
        events.append({"choices": [], "usage": {"prompt_tokens": 720}})
        self._send("".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n")


@pytest.fixture
def engine():
    Handler.asked, Handler.refuse = [], False
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Engine(f"http://127.0.0.1:{server.server_port}/v1")
    server.shutdown()
    thread.join()
    server.server_close()


class Records:
    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.away = False

    def session_put(self, name, record, deadline_ms) -> None:
        if self.away:
            raise OSError("nobody there")
        self.kept[name] = record

    def session_get(self, name, deadline_ms):
        if self.away:
            raise OSError("nobody there")
        return self.kept.get(name)


def test_samples_of_several_engines_add_up():
    sums = parse_metrics('a_total{engine="0"} 1\na_total{engine="1"} 2.5\nb{x="1",source="far"} 3\n# a_total 9\nb x\n')
    assert sums == {"a_total": 3.5, "b[far]": 3.0}


def test_an_answer_streams_and_says_where_its_prompt_came_from(engine):
    shown: list[str] = []
    answer = engine.ask([{"role": "user", "content": "Hello"}], shown.append, max_tokens=5)
    assert shown == ["Go", "od", " day"]
    assert answer.text == "Good day"
    reading = answer.reading
    assert (reading.prompt, reading.restored, reading.held, reading.read) == (720, 640, 64, 16)
    assert (reading.restored_bytes, round(reading.restore_ms)) == (1000, 250)
    assert reading.line().startswith("640 tokens restored (1 kB in 250 ms), 64 still held, 16 read")
    assert Handler.asked[0]["model"] == "small" and Handler.asked[0]["max_tokens"] == 5


def test_a_line_without_a_restore_names_no_bytes():
    assert Reading(prompt=9, read=9).line() == "0 tokens restored, 9 read, first token after 0 ms"


def test_the_same_name_resumes_the_conversation(engine):
    records = Records()
    first = Conversation(records, "walk")
    assert not first.resume()
    _talk(first, engine, iter(["Hello\n", "\n"]), io.StringIO(), {})
    second = Conversation(records, "walk")
    assert second.resume()
    assert second.messages == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    _talk(second, engine, iter(["More\n"]), io.StringIO(), {})
    assert [m["content"] for m in Handler.asked[-1]["messages"]] == ["Hello", "Good day", "More"]


def test_a_refused_question_is_not_part_of_the_conversation(engine, capsys):
    Handler.refuse = True
    conversation = Conversation(Records(), "walk")
    _talk(conversation, engine, iter(["Hello\n"]), io.StringIO(), {})
    assert conversation.messages == []
    assert "too long" in capsys.readouterr().err


def test_a_daemon_that_is_away_costs_the_record_alone(engine, capsys):
    records = Records()
    records.away = True
    conversation, out = Conversation(records, "walk"), io.StringIO()
    _talk(conversation, engine, iter(["Hello\n"]), out, {})
    assert "Good day" in out.getvalue()
    assert "could not be kept" in capsys.readouterr().err
    with pytest.raises(ChatError, match="could not be asked"):
        conversation.resume()


@pytest.mark.parametrize("record", [b"\xff", b"[]", b"{}", b'{"messages": [{"role": "user"}]}'])
def test_a_record_that_is_no_conversation_is_refused(record):
    records = Records()
    records.kept["walk"] = record
    with pytest.raises(ChatError, match="no conversation"):
        Conversation(records, "walk").resume()


def test_an_engine_that_is_away_is_named():
    with pytest.raises(ChatError, match="no engine answers at http://127.0.0.1:1"):
        Engine("http://127.0.0.1:1").ask([], lambda piece: None)
