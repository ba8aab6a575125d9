"""Flow control of a connection whose bytes are parsed in turns."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl


class HoldableFlow(FlowControl):
    """Reading is also paused while bytes that came are not parsed yet."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._held = False

    def hold(self) -> None:
        if not self._held:
            self._held = True
            if not self.read_paused:
                self._transport.pause_reading()

    def release(self) -> None:
        if self._held:
            self._held = False
            if not self.read_paused:
                self._transport.resume_reading()

    def pause_reading(self) -> None:
        if self._held:
            self.read_paused = True
        else:
            super().pause_reading()

    def resume_reading(self) -> None:
        if self._held:
            self.read_paused = False
        else:
            super().resume_reading()
