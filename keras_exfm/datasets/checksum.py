"""Digests of a data set's files."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Checksum:
    """Digests of one file.

    Attributes:
        file: The file.
        md5: MD5 of its plain content, or of an archive as it is.
        sha256: SHA-256 of the same.
        published: The MD5 that the publisher states; `None` where none is known.
    """

    file: str
    md5: str
    sha256: str
    published: str | None = None

    @property
    def matches(self) -> bool:
        """Whether nothing else is published."""
        return self.published in (None, self.md5)
