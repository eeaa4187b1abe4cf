"""What is said on the control socket.

A stream socket carries one JSON object a line, UTF-8, ``LINE_LIMIT`` bytes at most::

    {"method": "register", "parameters": {"id": "web"}}        (a pidfd rides along, SCM_RIGHTS)
    {"result": {"directory": "containers/web", "views": [...], "binds": {...}}}
    {"error": {"code": "exists", "message": "..."}}

``register`` may bring settings of the container's policy: ``"policy": {"cpu-policy": "pin"}``, and
``"annotations"`` the same, from the container's.

Methods: ``hello``, ``reserve``, ``watch_root``, ``register``, ``release``, ``list``, ``show``,
``resolve``, ``stats``. Processes are always named by a pidfd, never by a number: a number can be
somebody else's by the time it is read. The peer must be uid 0 (SO_PEERCRED).

``resolve`` may bring the ``path`` of a view, and a ``domain``, as ``show`` does: what that would
answer comes along.

``watch_root`` comes between ``reserve`` and ``register``, with the root directories of two overlays
over one upper layer, the engine's and the container's, both as O_PATH descriptors. The daemon keeps
them in step for as long as the range of ids is that container's.

On the hook's path: standard library only.
"""

from __future__ import annotations

from sysfsd import jsontext
from sysfsd.errors import InvalidRequest, from_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from sysfsd.errors import SysfsdError

    Message: TypeAlias = dict[str, Any]

LINE_LIMIT = 1 << 20
"""Bytes of one message, newline included."""


def encode(message: Message) -> bytes:
    """One line."""
    return jsontext.dumps(message).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Parse one line; raises ``InvalidRequest`` for anything that is not a JSON object."""
    try:
        message = jsontext.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not a line of JSON: {error}") from None
    if not isinstance(message, dict):
        raise InvalidRequest("a message must be a JSON object")
    return message


def request(method: str, parameters: Message) -> bytes:
    """Encode a request."""
    return encode({"method": method, "parameters": parameters})


def parse_request(line: bytes) -> tuple[str, Message]:
    """Method and parameters of a request; raises ``InvalidRequest``."""
    message = decode(line)
    method, parameters = message.get("method"), message.get("parameters", {})
    if not isinstance(method, str) or not isinstance(parameters, dict):
        raise InvalidRequest('a request is {"method": "...", "parameters": {...}}')
    return method, parameters


def result(value: Message) -> bytes:
    """Encode the reply to a request that was carried out."""
    return encode({"result": value})


def failure(error: SysfsdError) -> bytes:
    """Encode the reply to a request that was not."""
    return encode({"error": {"code": error.code, "message": str(error)}})


def parse_reply(line: bytes) -> Message:
    """The result in a reply; raises the error it names, rebuilt from its code."""
    reply = decode(line)
    value = reply.get("result")
    if isinstance(value, dict):
        return value
    error = reply.get("error")
    if isinstance(error, dict):
        raise from_code(str(error.get("code")), str(error.get("message")))
    raise InvalidRequest("the daemon's answer is neither a result nor an error")
