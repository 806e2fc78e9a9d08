"""A conversation with a served model that survives restarts: `python -m latentkv.chat --session NAME`.

Talks to an OpenAI endpoint, streaming, and keeps the transcript as the session's record in the daemon, so that the
same name resumes it later. After each answer a status line says what came from latentkv and what the engine read.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_ADDRESS = "127.0.0.1:7430"
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)$")


class ChatError(Exception):
    """Something a person can act on."""


@dataclass
class Reading:
    """Where the tokens of a prompt came from."""

    prompt: int = 0
    restored: int = 0
    read: int = 0
    held: int = 0
    restored_bytes: int = 0
    restore_ms: float = 0.0
    first_token_ms: float = 0.0

    def line(self) -> str:
        """One line for a person."""
        parts = [f"{self.restored} tokens restored"]
        if self.restored:
            parts[0] += f" ({self.restored_bytes / 1000:.0f} kB in {self.restore_ms:.0f} ms)"
        if self.held:
            parts.append(f"{self.held} still held")
        parts += [f"{self.read} read", f"first token after {self.first_token_ms:.0f} ms"]
        return ", ".join(parts)


@dataclass
class Answer:
    """What a model said."""

    text: str
    reading: Reading
    tokens: list[str] = field(default_factory=list)


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus samples, summed over engines: by name, or by name[source] where there is a label `source`."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if not found:
            continue
        name, labels, value = found.groups()
        source = re.search(r'(?:^|,)source="([^"]*)"', labels or "")
        key = f"{name}[{source.group(1)}]" if source else name
        try:
            sums[key] = sums.get(key, 0.0) + float(value)
        except ValueError:
            continue
    return sums


class Engine:
    """An OpenAI endpoint, as vLLM serves it."""

    def __init__(self, url: str, model: str | None = None, timeout: float = 600.0) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._timeout = timeout
        self._model = model

    @property
    def model(self) -> str:
        """The served model's name; asked for once."""
        if self._model is None:
            served = json.loads(self._open("/v1/models").read())["data"]
            if not served:
                raise ChatError(f"{self._url} serves no model")
            self._model = served[0]["id"]
        return self._model

    def metrics(self) -> dict[str, float]:
        """vLLM's counters; empty where the engine has none."""
        try:
            return parse_metrics(self._open("/metrics").read().decode())
        except ChatError:
            return {}

    def ask(self, messages: list[dict[str, str]], show: Callable[[str], None], **options: Any) -> Answer:
        """Streams an answer through `show` and returns it whole."""
        before, began, first, prompt = self.metrics(), time.monotonic(), 0.0, 0
        pieces: list[str] = []
        body = {"model": self.model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        for event in self._stream("/v1/chat/completions", {**body, **options}):
            for choice in event.get("choices", []):
                piece = choice.get("delta", {}).get("content") or ""
                if piece:
                    first = first or (time.monotonic() - began) * 1000
                    pieces.append(piece)
                    show(piece)
            prompt = (event.get("usage") or {}).get("prompt_tokens", prompt)
        reading = self._reading(before, prompt)
        reading.first_token_ms = first
        return Answer("".join(pieces), reading, pieces)

    def _reading(self, before: dict[str, float], prompt: int) -> Reading:
        after = self._settled_metrics(before)

        def grown(name: str) -> float:
            return after.get(name, 0.0) - before.get(name, 0.0)

        # Not vLLM's count of external tokens: it counts those that were found, also when they could not be loaded.
        restored = int(grown("latentkv:restored_tokens_total"))
        held = int(grown("vllm:prompt_tokens_by_source_total[local_cache_hit]"))
        return Reading(
            prompt=prompt,
            restored=restored,
            read=prompt - restored - held,
            held=held,
            restored_bytes=int(grown("latentkv:restored_bytes_total")),
            restore_ms=grown("latentkv:restore_seconds_total") * 1000,
        )

    def _settled_metrics(self, before: dict[str, float]) -> dict[str, float]:
        # The counters trail the stream by a step or two.
        name = "vllm:request_success_total"
        after = self.metrics()
        for _ in range(20):
            if not after or after.get(name, 0.0) > before.get(name, 0.0):
                break
            time.sleep(0.05)
            after = self.metrics()
        return after

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._open(path, body) as response:
            for raw in response:
                line = raw.decode().strip()
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ChatError(f"the engine says: {event['error'].get('message', event['error'])}")
                    yield event

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            return urllib.request.urlopen(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:500]
            raise ChatError(f"the engine refuses ({error.code}): {reason}") from error
        except OSError as error:
            raise ChatError(f"no engine answers at {self._url}: {error}") from error


def open_records(address: str, tenant: str = "") -> Any:
    """A client for session records alone. The interface asks for a geometry and a model all the same; no block goes
    through it."""
    from latentkv.client import Client
    from latentkv.geometry import PAIRING_NONE, Layer
    from latentkv.native import NativeError

    layers = [Layer(1, 64, 0, PAIRING_NONE, 1.0, 0, 1, ())]
    try:
        return Client(address, layers, b"no model".ljust(32), tenant=tenant)
    except NativeError as error:
        raise ChatError(f"cannot keep sessions: {error}") from error


class Conversation:
    """Messages under a name, kept in the daemon. A daemon that is away costs the record, not the conversation."""

    def __init__(self, client: Any, name: str, deadline_ms: int = 3000) -> None:
        self._client = client
        self._name = name
        self._deadline_ms = deadline_ms
        self.messages: list[dict[str, str]] = []

    def resume(self) -> bool:
        """Takes up the record of this name; False when there is none."""
        try:
            record = self._client.session_get(self._name, deadline_ms=self._deadline_ms)
        except Exception as error:
            raise ChatError(f"the daemon could not be asked for session {self._name}: {error}") from error
        if record is None:
            return False
        try:
            kept = json.loads(record)
            messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in kept["messages"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ChatError(f"session {self._name} holds a record that is no conversation") from error
        self.messages = messages
        return True

    def keep(self) -> None:
        """Writes the record."""
        record = json.dumps({"version": 1, "messages": self.messages}, ensure_ascii=False).encode()
        try:
            self._client.session_put(self._name, record, deadline_ms=self._deadline_ms)
        except Exception as error:
            raise ChatError(f"session {self._name} could not be kept: {error}") from error


def _talk(
    conversation: Conversation, engine: Engine, lines: Iterator[str], out: TextIO, options: dict[str, Any]
) -> None:
    def show(piece: str) -> None:
        print(piece, end="", file=out, flush=True)

    for line in lines:
        text = line.strip()
        if not text:
            continue
        conversation.messages.append({"role": "user", "content": text})
        try:
            answer = engine.ask(conversation.messages, show, **options)
        except ChatError as error:
            conversation.messages.pop()
            print(f"chat: {error}", file=sys.stderr)
            continue
        conversation.messages.append({"role": "assistant", "content": answer.text})
        print(f"\n[{answer.reading.line()}]", file=out, flush=True)
        try:
            conversation.keep()
        except ChatError as error:
            print(f"chat: {error}", file=sys.stderr)


def _prompted(stream: TextIO) -> Iterator[str]:
    while True:
        if stream.isatty():
            print("> ", end="", flush=True)
        line = stream.readline()
        if not line:
            return
        yield line


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m latentkv.chat", description=__doc__.split("\n\n")[0])
    parser.add_argument("--session", required=True, help="name; the same name resumes the conversation")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"the engine (default {DEFAULT_URL})")
    parser.add_argument("--address", default=DEFAULT_ADDRESS, help=f"latentkvd (default {DEFAULT_ADDRESS})")
    parser.add_argument("--tenant", default="")
    parser.add_argument("--model", help="the served model's name, if there are several")
    parser.add_argument("--context", type=Path, help="file with the text that opens a new conversation")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0)
    options = parser.parse_args(arguments)
    try:
        conversation = Conversation(open_records(options.address, options.tenant), options.session)
        if conversation.resume():
            print(f"resuming {options.session}: {len(conversation.messages)} messages")
        elif options.context:
            conversation.messages.append({"role": "system", "content": options.context.read_text(encoding="utf-8")})
        engine = Engine(options.url, options.model)
        _talk(
            conversation, engine, _prompted(sys.stdin), sys.stdout,
            {"max_tokens": options.max_tokens, "temperature": options.temperature},
        )
    except ChatError as error:
        print(f"chat: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
