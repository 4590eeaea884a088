"""One warning where the white point cannot be that of pictures of more than eight bits: 12 bits in 16-bit files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from codegrid.pipelines.data.batches import Picture
from codegrid.tokenizer.images import Preprocessing

# A picture whose largest value is below this share of white leaves two bits or more unused.
_FAR_BELOW = 0.25
_FAR_ABOVE = 2.0  # times white: more than half of the range is cut
_ENOUGH = 16  # pictures, before it is said


class DepthWatch:
    """Looks at the peaks of pictures of more than 8 bits (`Picture.peak`); pictures of 8 bits have none."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.white = preprocessing.white
        self.seen, self.peak, self.above, self.said = 0, 0.0, 0, False

    def add(self, peaks: Iterable[float | None]) -> None:
        for peak in peaks:
            if peak is not None:
                self.seen += 1
                self.peak = max(self.peak, peak)
                self.above += peak > _FAR_ABOVE

    def of(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        """The same pictures, looked at as they pass."""
        for picture in pictures:
            self.add([picture.peak])
            yield picture

    def sentence(self, last: bool = False) -> str | None:
        """Once: what is wrong, where all pictures so far stay far below white, or most go far beyond it.

        `last`: no more will come.
        """
        if self.said or self.seen < (1 if last else _ENOUGH):
            return None
        if self.white is not None and 2 * self.above > self.seen:
            self.said = True
            return (
                f"{self.above} of {self.seen} pictures of more than 8 bits so far go beyond white by more than twice, "
                f"up to {self.peak:.1f} times: what lies above is cut. If white is another value in them, train the "
                f"tokenizer with a higher preprocessing.white than {self.white:g}."
            )
        if self.peak >= _FAR_BELOW:
            return None
        self.said = True
        levels = round(255 * self.peak) + 1
        text = (
            f"All {self.seen} pictures of more than 8 bits so far stay below {max(self.peak, 0.01):.0%} of white: the "
            f"model sees {levels} of 256 levels. If white is another value in them, train the tokenizer with "
        )
        if self.white is not None:
            return f"{text}a lower preprocessing.white than {self.white:g}."
        return f"{text}--preprocessing.white {2 ** max(1, round(self.peak * 65535)).bit_length() - 1}."
