# SPDX-License-Identifier: Apache-2.0
"""A server on this machine that speaks the Messages API, as its documentation describes the stream.

It answers each request with the next of its scripted replies, and keeps what it was sent.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic

Reply = dict[str, Any]
PIECE = 5  # characters of one event


def text(words: str, stop: str = "end_turn", **more: Any) -> Reply:
    return {"blocks": [{"type": "text", "text": words}], "stop": stop, **more}


def tool(name: str, **arguments: Any) -> Reply:
    block = {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": arguments}
    return {"blocks": [block], "stop": "tool_use"}


def error(status: int, kind: str, **headers: str) -> Reply:
    return {"status": status, "kind": kind, "headers": headers}


class Provider:
    """Replies to come, and requests that came."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.replies = list(replies)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    @contextlib.contextmanager
    def client(self, key: str = "sk-ant-test-000") -> Iterator[anthropic.Anthropic]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                provider.requests.append(json.loads(body))
                provider.headers.append(dict(self.headers))
                _send(self, provider.replies.pop(0))

            def log_message(self, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            with anthropic.Anthropic(
                api_key=key, base_url=url, max_retries=0, timeout=20
            ) as client:
                yield client
        finally:
            server.shutdown()
            server.server_close()


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    status = reply.get("status", 200)
    if status != 200:
        said = {"type": "error", "error": {"type": reply["kind"], "message": reply["kind"]}}
        _headers(handler, status, "application/json", reply["headers"])
        return _chunk(handler, json.dumps(said), is_last=True)
    _headers(handler, 200, "text/event-stream", {})
    events = list(_events(reply))
    cut = reply.get("cut_after")
    for name, data in events[:cut]:
        payload = reply.get("garbage") or json.dumps({"type": name, **data})
        _chunk(handler, f"event: {name}\ndata: {payload}\n\n")
    if cut is None:
        _chunk(handler, "", is_last=True)
    else:
        handler.close_connection = True  # in the middle of the stream
        handler.connection.shutdown(socket.SHUT_RDWR)
    return None


def _events(reply: Reply) -> Iterator[tuple[str, dict[str, Any]]]:
    usage = {"input_tokens": 100, "output_tokens": 1, **reply.get("usage", {})}
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test", "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": usage,
    }  # fmt: skip
    yield "message_start", {"message": message}
    for index, block in enumerate(reply["blocks"]):
        if block["type"] == "text":
            start, kind, key, whole = {**block, "text": ""}, "text_delta", "text", block["text"]
        else:
            whole = reply.get("partial_json") or json.dumps(block["input"])
            start, kind, key = {**block, "input": {}}, "input_json_delta", "partial_json"
        yield "content_block_start", {"index": index, "content_block": start}
        for i in range(0, len(whole), PIECE):
            delta = {"type": kind, key: whole[i : i + PIECE]}
            yield "content_block_delta", {"index": index, "delta": delta}
        yield "content_block_stop", {"index": index}
    ended = {"stop_reason": reply["stop"], "stop_sequence": None}
    yield "message_delta", {"delta": ended, "usage": {"output_tokens": 50}}
    yield "message_stop", {}


def _headers(
    handler: BaseHTTPRequestHandler, status: int, kind: str, headers: dict[str, str]
) -> None:
    handler.send_response(status)
    handler.send_header("content-type", kind)
    handler.send_header("transfer-encoding", "chunked")
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def _chunk(handler: BaseHTTPRequestHandler, data: str, is_last: bool = False) -> None:
    raw = data.encode()
    if raw:
        handler.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
    if is_last:
        handler.wfile.write(b"0\r\n\r\n")
    handler.wfile.flush()
