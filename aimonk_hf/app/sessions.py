"""Forgetting callers of the API, for whom gradio otherwise keeps a session each, with a copy of the whole page's configuration."""

from collections import deque
from threading import Lock

import gradio as gr

# More than can be under way at the same time: gradio runs at most 40 calls at once.
KEPT = 64
# Callers whose list of open calls is kept, an empty one too; gradio keeps the answers of the last 2,000.
KEPT_LISTS = 4000


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
        self._forget_lists()

    def _forget_lists(self) -> None:
        """Drop the lists of open calls of those whose answers gradio has dropped."""
        lists, answers = self.page._queue.pending_event_ids_session, self.page._queue.pending_messages_per_session
        if len(lists) > KEPT_LISTS:
            for name in list(lists):
                if name not in answers:
                    lists.pop(name, None)
