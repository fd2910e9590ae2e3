"""Forgetting callers of the API, for whom gradio otherwise keeps a session each, with a copy of the whole page's configuration."""

from collections import deque
from threading import Lock

import gradio as gr

# More than can be under way at the same time: gradio runs at most 40 calls at once.
KEPT = 64


class ApiSessions:
    """Drops the sessions of API calls but for the last `KEPT`; an API call has no state, so a caller who comes back misses nothing."""

    def __init__(self, page: gr.Blocks) -> None:
        self.page = page
        self._recent: deque[str] = deque()
        self._lock = Lock()

    def note(self, request: gr.Request) -> None:
        """Remember the session of a call that has begun, and drop the oldest."""
        name = request.session_hash
        if name is None:
            return
        with self._lock:
            if name in self._recent:
                self._recent.remove(name)
            self._recent.append(name)
            dropped = self._recent.popleft() if len(self._recent) > KEPT else None
        holder = getattr(self.page, "state_holder", None)
        if dropped is not None and holder is not None:
            with holder.lock:
                holder.session_data.pop(dropped, None)
                holder.time_last_used.pop(dropped, None)
