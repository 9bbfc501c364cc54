"""Token ids to text as they arrive, and stop strings.

Text once given out never changes and never holds half a character: a token may end inside a UTF-8
sequence, and decoders differ in what they make of that (byte-level ones write one U+FFFD for the
unfinished character, byte-fallback ones one for every byte of the run), so the end is held back
while it may change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from marlin.tokenizer import Tokenizer

BROKEN: Final = "\ufffd"
PATIENCE: Final = 8  # tokens that may wait for a character to finish: more than a character has bytes
CONTEXT: Final = 8  # prompt tokens decoded along, since decoders strip the space of the first word
WINDOW: Final = 64  # tokens decoded again and again while no character boundary comes, then the window is cut


class Detokenizer:
    """Turns ids into text piece by piece.

    stop: strings that end the text; they are not given out, nor is what follows. Text that may be
    the beginning of one is held back. `stopped` is the one that was met.
    prompt: the ids before the first one, so that the first word keeps its space.
    """

    def __init__(self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        if isinstance(stop, str):
            stop = (stop,)
        if not all(isinstance(text, str) and text for text in stop):
            raise ValueError("stop strings must not be empty")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._held = ""  # text that may begin a stop string
        self.stopped: str | None = None
        self._ids = [id for id in prompt[-CONTEXT:] if not tokenizer.is_special(id)]
        self._read = len(self._ids)  # ids before this one are only context
        self._given = len(tokenizer.decode(self._ids))  # characters of the window's text given out

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids make final; "" after a stop string was met."""
        if self.stopped is not None:
            return ""
        return self._stop_at(self._decode([id for id in ids if not self._tokenizer.is_special(id)]))

    def flush(self) -> str:
        """The text still held back, but for an unfinished character; call it when no more ids
        come."""
        if self.stopped is not None:
            return ""
        text = self._tokenizer.decode(self._ids)[self._given :]
        self._given += len(text)
        text = text.rstrip(BROKEN)
        text, self._held = self._held + text, ""
        return self._cut(text) if self._find(text) >= 0 else text

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text = self._tokenizer.decode(self._ids + ids)
        if text.endswith(BROKEN) and len(ids) > 1:  # characters may end at ids between
            return "".join(self._decode([id]) for id in ids)
        self._ids += ids
        if text.endswith(BROKEN):
            waiting = len(self._ids) - self._read
            end = len(text) - 1 if waiting >= PATIENCE else len(text.rstrip(BROKEN))
            new = text[self._given : end]
            self._given = max(self._given, end)
            if waiting >= WINDOW:
                self._shorten(text)
            return new
        new = text[self._given :]
        # Every character is complete here, so the window can move: what was new is the context of
        # the next.
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._given = len(self._tokenizer.decode(self._ids))
        return new

    def _shorten(self, text: str) -> None:
        """Drop the front of a long window if its end still reads the same without it."""
        tail = self._ids[-2 * PATIENCE :]
        short = self._tokenizer.decode(tail)
        given = len(short) - (len(text) - self._given)
        if given >= 0 and short[given:] == text[self._given :]:
            self._ids, self._read, self._given = tail, 0, given

    def _stop_at(self, new: str) -> str:
        text, self._held = self._held + new, ""
        if not self._stop or not text:
            return text
        if self._find(text) >= 0:
            return self._cut(text)
        hold = max(
            (n for s in self._stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])),
            default=0,
        )
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def _find(self, text: str) -> int:
        """Where the first stop string begins; -1 without one."""
        return min((at for s in self._stop if (at := text.find(s)) >= 0), default=-1)

    def _cut(self, text: str) -> str:
        at = self._find(text)
        # Of two that begin at the same place the longer is named.
        self.stopped = max((s for s in self._stop if text.startswith(s, at)), key=len)
        return text[:at]
