"""Talks to a ComfyUI server over HTTP and its websocket: queue a graph, follow it, fetch what it made."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import aiohttp

Json: TypeAlias = Any  # what json.loads returns
Graph: TypeAlias = dict[str, dict[str, Json]]  # the API form: node id -> class_type, inputs

HTTP_SECONDS = 60
HISTORY_SECONDS = 10

# A proxy of the environment cannot reach the loopback address, and would be asked for it.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class NodeFault(NamedTuple):
    """What is wrong at one node of a graph."""

    node_id: str
    node_type: str
    message: str

    def __str__(self) -> str:
        return f"node {self.node_id} ({self.node_type}): {self.message}"


class PromptRejected(Exception):
    """The server refused a graph before it ran anything: the whole graph or some of its outputs are not valid."""

    def __init__(self, answer: Json) -> None:
        self.kind: str = (answer.get("error") or {}).get("type", "")
        self.faults = [
            NodeFault(str(node_id), entry.get("class_type", ""), f"{error['message']}: {error['details']}")
            for node_id, entry in (answer.get("node_errors") or {}).items()
            for error in entry["errors"]
        ]
        general = (answer.get("error") or {}).get("message", "")
        super().__init__("; ".join(map(str, self.faults)) or general)

    @property
    def node_ids(self) -> list[str]:
        """The nodes at which something is wrong."""
        return [fault.node_id for fault in self.faults]


class ExecutionFailed(Exception):
    """A node raised while the graph ran, or the run was cancelled (`interrupted`)."""

    def __init__(self, kind: str, data: Json) -> None:
        self.interrupted = kind == "execution_interrupted"
        self.exception_type: str = data.get("exception_type", "")
        self.traceback: list[str] = data.get("traceback", [])  # outermost call first
        message = "interrupted" if self.interrupted else str(data.get("exception_message", "")).strip()
        self.fault = NodeFault(str(data.get("node_id")), str(data.get("node_type")), message)
        super().__init__(str(self.fault))

    @property
    def node_id(self) -> str:
        """The node that raised."""
        return self.fault.node_id


class Event(NamedTuple):
    """One JSON message of the websocket that belongs to the run."""

    kind: str
    data: Json


class Result(NamedTuple):
    """A run that has ended: its outputs by node id, and the events and previews of the run."""

    prompt_id: str
    outputs: dict[str, Json]
    events: list[Event]
    previews: list[bytes]
    seconds: float

    def cached_nodes(self) -> list[str]:
        """The nodes that the server did not run again."""
        return [node for event in self.events if event.kind == "execution_cached" for node in event.data["nodes"]]

    def progress(self, node_id: str) -> list[tuple[int, int]]:
        """The reports of a node, each (value, max)."""
        reports = [event.data for event in self.events if event.kind == "progress"]
        return [(data["value"], data["max"]) for data in reports if str(data.get("node")) == node_id]

    def image_files(self) -> list[dict[str, str]]:
        """The filename, subfolder and type of every picture, in the order of node ids."""
        ids = sorted(self.outputs, key=lambda node_id: (len(node_id), node_id))
        return [file for node_id in ids for file in self.outputs[node_id].get("images", [])]


class Client:
    """A client of one server, by its URL. `diagnose` gives the text that explains why a connection broke off."""

    def __init__(self, url: str, diagnose: Callable[[], str] = str) -> None:
        self.url = url.rstrip("/")
        self._diagnose = diagnose

    def get_bytes(self, path: str, **query: str) -> bytes:
        suffix = f"?{urllib.parse.urlencode(query)}" if query else ""
        with _open(f"{self.url}{urllib.parse.quote(path)}{suffix}", timeout=HTTP_SECONDS) as answer:
            return answer.read()

    def get(self, path: str, **query: str) -> Json:
        return json.loads(self.get_bytes(path, **query))

    def post(self, path: str, body: Json) -> None:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with _open(request, timeout=HTTP_SECONDS) as answer:
            answer.read()

    def object_info(self) -> dict[str, Json]:
        """Every node type that the server knows, as the frontend gets it."""
        return self.get("/object_info")

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def forget(self) -> None:
        """Unloads models and drops cached node outputs, once the server's queue is idle."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def image_bytes(self, file: dict[str, str]) -> bytes:
        return self.get_bytes("/view", filename=file["filename"], subfolder=file["subfolder"], type=file["type"])

    def run(self, graph: Graph, timeout: float = 300, on_event: Callable[[Event], None] | None = None) -> Result:
        """Queues a graph and follows it to its end. Returns what it made.

        Raises PromptRejected if the graph is not valid, and ExecutionFailed if a node raises or the run is cancelled.
        """
        return asyncio.run(asyncio.wait_for(self._run(graph, on_event), timeout))

    async def _run(self, graph: Graph, on_event: Callable[[Event], None] | None) -> Result:
        client_id, start = uuid.uuid4().hex, time.monotonic()
        events: list[Event] = []
        previews: list[bytes] = []
        socket_url = f"{self.url}/ws?clientId={client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(socket_url, max_msg_size=0) as socket:
            # the socket is open before the graph is queued, so that no event is missed
            prompt_id = await self._queue(session, graph, client_id)
            while True:
                message = await socket.receive()
                if message.type == aiohttp.WSMsgType.BINARY:
                    previews.append(message.data)
                    continue
                if message.type != aiohttp.WSMsgType.TEXT:
                    raise ConnectionError(f"the server closed the connection during a run\n{self._diagnose()}")
                event = Event(
                    **{"kind" if key == "type" else key: value for key, value in json.loads(message.data).items()}
                )
                if event.data.get("prompt_id", prompt_id) != prompt_id:
                    continue
                events.append(event)
                if on_event:
                    on_event(event)
                if event.kind in ("execution_error", "execution_interrupted"):
                    raise ExecutionFailed(event.kind, event.data)
                if event.kind == "executing" and event.data["node"] is None:
                    break
        outputs = (await self._history(prompt_id))["outputs"]
        return Result(prompt_id, outputs, events, previews, time.monotonic() - start)

    async def _queue(self, session: aiohttp.ClientSession, graph: Graph, client_id: str) -> str:
        async with session.post(f"{self.url}/prompt", json={"prompt": graph, "client_id": client_id}) as answer:
            body = await answer.json(content_type=None)
        if answer.status == 200 and not body.get("node_errors"):
            return body["prompt_id"]
        if "prompt_id" in body:  # a 200 with node errors: the valid outputs were queued all the same
            self.post("/queue", {"delete": [body["prompt_id"]]})
            self.post("/interrupt", {"prompt_id": body["prompt_id"]})
        raise PromptRejected(body)

    async def _history(self, prompt_id: str) -> Json:
        """The record of a run, which the server writes shortly after the last event."""
        deadline = time.monotonic() + HISTORY_SECONDS
        while time.monotonic() < deadline:
            if record := self.get(f"/history/{prompt_id}").get(prompt_id):
                return record
            await asyncio.sleep(0.05)
        raise TimeoutError(f"the server has no record of the finished run {prompt_id}")
